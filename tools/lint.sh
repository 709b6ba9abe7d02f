#!/usr/bin/env bash
# make lint: formatting, ruff, mypy --strict on the package, and what the project's files may hold.
source "$(dirname "$0")/common.sh"

ensure_venv lint
failed=0
run() {
  echo "$1"
  shift
  "$@" || failed=1
}
each_source() {  # each_source KIND COMMAND...
  local kind=$1
  shift
  "$PYTHON" tools/project_files.py "$kind" | xargs "$@"
}

run "clang-format" each_source cpp clang-format --dry-run -Werror
run "ruff format" each_source python ruff format --quiet --check
run "ruff check" each_source python ruff check --quiet
run "mypy" mypy
run "hygiene" "$PYTHON" tools/check_hygiene.py
run "workflows" "$PYTHON" tools/check_workflows.py
exit "$failed"
