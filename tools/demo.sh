#!/usr/bin/env bash
# make demo: builds and installs the wheel, then runs the example engine. Arguments go to it.
source "$(dirname "$0")/common.sh"

tools/system_packages.sh demo
tools/build_wheel.sh
ensure_venv demo
exec "$PYTHON" examples/generate.py "$@"
