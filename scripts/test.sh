#!/usr/bin/env bash
# Lint and tests; further arguments go to pytest.
#   bash scripts/test.sh [--slow] [pytest arguments]        --slow runs the long ones instead
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

selection="not slow"
if [[ "${1:-}" == --slow ]]; then
  selection=slow
  shift
fi
# The tests of several hosts make them out of namespaces; where these packages cannot be had, they are skipped.
if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null && ! { command -v pdsh && command -v sshd && command -v ip; } >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    openssh-server openssh-client pdsh iproute2 procps util-linux >/dev/null 2>&1 || true
fi
ruff check .
exec python -m pytest -m "$selection" "$@"
