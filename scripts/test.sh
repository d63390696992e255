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
ruff check .
exec python -m pytest -m "$selection" "$@"
