#!/usr/bin/env bash
# Runs the whole chain: environment, data, SFT, reward model, PPO, evaluation, report.
#   bash scripts/run_rlhf.sh [CONFIG] [key=value ...] [options of `rlhf run`]
set -euo pipefail

config=configs/imdb_smollm2.yaml
if [[ $# -gt 0 && "$1" != -* && "$1" != *=* ]]; then
  config=$1
  shift
  [[ -f "$config" ]] && config=$(realpath -- "$config")
fi

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
config=${config#"$PWD/"}
source scripts/setup_env.sh
exec rlhf run "$config" "$@"
