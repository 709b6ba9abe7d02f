#!/usr/bin/env bash
# make demo: builds and installs the wheel, then runs the example engine, for one sequence and as a
# server. Arguments go to the former, which then runs alone.
source "$(dirname "$0")/common.sh"

tools/system_packages.sh demo
tools/build_wheel.sh
ensure_venv demo
"$PYTHON" examples/generate.py "$@"
[ "$#" -eq 0 ] || exit 0
heading "several requests at once, on a paged cache"
exec "$PYTHON" examples/serve.py --requests 4 --tokens 24
