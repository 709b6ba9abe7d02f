# Sourced by the scripts of this directory: places, headings, stages with times, the environment.
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

VENV=${METAL_SDPA_VENV:-$ROOT/.venv}
PYTHON=$VENV/bin/python
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
export CMAKE_BUILD_PARALLEL_LEVEL=$JOBS CTEST_PARALLEL_LEVEL=$JOBS
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The scripts say what they import from where: a module of the caller's may not stand in its place.
unset PYTHONPATH PYTHONHOME

heading() { printf '\n=== %s\n' "$*"; }

die() {
  printf '%s\n' "$@" >&2
  exit 1
}

on_macos() { [ "$(uname -s)" = Darwin ]; }

# --- stages ------------------------------------------------------------------------------------------

STAGE_LINES=()
STAGE_FAILED=0

# stage NAME COMMAND...: runs the command under a heading and goes on when it fails.
stage() {
  local name=$1 start=$SECONDS status=0
  shift
  heading "$name"
  # A command left of || would run without errexit, so it gets a shell of its own.
  set +e
  (set -e; "$@")
  status=$?
  set -e
  local verdict=ok
  if [ "$status" -ne 0 ]; then
    verdict="FAILED ($status)"
    STAGE_FAILED=$((STAGE_FAILED + 1))
  fi
  STAGE_LINES+=("$(printf '%5d s  %-12s %s' $((SECONDS - start)) "$verdict" "$name")")
  printf -- '--- %s: %s, %d s\n' "$name" "$verdict" $((SECONDS - start))
}

# Prints every stage with its time; the exit status is 1 if any failed.
finish_stages() {
  heading "summary"
  printf '%s\n' "${STAGE_LINES[@]}"
  [ "$STAGE_FAILED" -eq 0 ] || die "" "$STAGE_FAILED of ${#STAGE_LINES[@]} stages failed"
}

# --- the virtual environment -------------------------------------------------------------------------

find_python() {
  local candidate
  for candidate in "${METAL_SDPA_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "Python 3.10 or later is needed; set METAL_SDPA_PYTHON to its path."
}

# ensure_venv GROUP...: makes the environment and installs dependency groups of pyproject.toml,
# unless that was done since pyproject.toml last changed.
ensure_venv() {
  local group stamp
  if [ ! -x "$PYTHON" ]; then
    echo "making the virtual environment ${VENV#"$ROOT"/}"
    "$(find_python)" -m venv "$VENV"
  fi
  for group in "$@"; do
    stamp=$VENV/.installed-$group
    if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
      echo "installing dependency group '$group' of pyproject.toml"
      [ -e "$VENV/.pip" ] || "$PYTHON" -m pip install --quiet 'pip==26.3'
      touch "$VENV/.pip"
      "$PYTHON" -m pip install --quiet --group "$group"
      touch "$stamp"
    fi
  done
  export PATH="$VENV/bin:$PATH"
}

# run_pytest EXPRESSION ARGUMENTS...: the tests that EXPRESSION selects (empty: all), as many at once
# as there are processors, then by themselves those that measure time. PYTEST_PRELOAD: libraries to
# load first.
run_pytest() {
  local wanted=${1:+ and ($1)} status=0
  shift
  local pytest=(env ${PYTEST_PRELOAD:+"LD_PRELOAD=$PYTEST_PRELOAD"} "$PYTHON" -m pytest)
  "${pytest[@]}" -n "$JOBS" -m "not alone$wanted" "$@" || status=$?
  "${pytest[@]}" -m "alone$wanted" "$@" || [ $? -eq 5 ] || status=1  # 5: there are none
  return "$status"
}

# build_preset NAME [-DVARIABLE=VALUE...] [TARGET...]: configures and builds build/NAME with the
# environment's Python. A preset sets its variables anew each time, so that those of before are gone.
build_preset() {
  local preset=$1 options=()
  shift
  while [[ ${1:-} == -D* ]]; do
    options+=("$1")
    shift
  done
  cmake --preset "$preset" -DPython_EXECUTABLE="$PYTHON" ${options[@]+"${options[@]}"} \
    --log-level=WARNING
  cmake --build "build/$preset" ${1:+--target "$@"}
}
