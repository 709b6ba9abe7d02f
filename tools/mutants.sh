#!/usr/bin/env bash
# make mutants: plants every fault of tests/mutants/*_table.py and runs the whole C++ suite on each.
# Arguments go to tests/mutants/mutants.py: --only TEXT, --list, --fresh.
source "$(dirname "$0")/common.sh"

tools/system_packages.sh test
ensure_venv build
exec "$PYTHON" tests/mutants/mutants.py --all --full "$@"
