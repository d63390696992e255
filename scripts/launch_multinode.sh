#!/usr/bin/env bash
# Runs the chain on the hosts of a hostfile: `rlhf run CONFIG --nodes HOSTFILE` in the environment of this checkout.
#   bash scripts/launch_multinode.sh HOSTFILE CONFIG [key=value ...] [options of `rlhf run`]
set -euo pipefail

if [[ $# -lt 2 || "$1" == -* || "$2" == -* ]]; then
  sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
nodes=$(realpath -m -- "$1")
config=$(realpath -m -- "$2")
shift 2

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
config=${config#"$PWD/"}
nodes=${nodes#"$PWD/"}
source scripts/setup_env.sh
exec rlhf run "$config" --nodes "$nodes" "$@"
