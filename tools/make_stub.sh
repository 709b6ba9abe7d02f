#!/usr/bin/env bash
# Rewrites python/metal_sdpa/_core.pyi and the README's table of arguments from the extension module:
# tools/make_stub.sh BUILD_DIR
# Tests compare them, so run it after every change of a signature in csrc/bindings.
source "$(dirname "$0")/common.sh"

build=${1:-build/dev}
stub=python/metal_sdpa/_core.pyi
export PYTHONPATH=$build/stage
patterns=$(mktemp)
trap 'rm -f "$patterns"' EXIT
"$PYTHON" tools/parameter_texts.py stub >"$patterns"
"$PYTHON" tools/parameter_texts.py readme
"$PYTHON" -m nanobind.stubgen -q -m _core -i "$build/stage/metal_sdpa" -p "$patterns" -o "$stub"
"$PYTHON" -m ruff check --quiet --fix --select I "$stub"
"$PYTHON" -m ruff format --quiet "$stub"
