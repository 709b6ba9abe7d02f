#!/usr/bin/env bash
# make mutants: plants every fault of tests/mutants/*_table.py, then a random sample of 60 mutants.
# mutants.sh ARGUMENTS...: those of tests/mutants/random_mutants.py (--seed, --count, --jobs, ...),
# and the sample alone. A sample goes on where it was left: its seed is printed.
source "$(dirname "$0")/common.sh"

tools/system_packages.sh test
ensure_venv dev mutants
if [ "$#" -eq 0 ]; then
  stage "planted faults" "$PYTHON" tests/mutants/mutants.py --all
fi
stage "random mutants" "$PYTHON" tests/mutants/random_mutants.py "$@"
finish_stages
