#!/usr/bin/env bash
# Rewrites python/metal_sdpa/_core.pyi from the extension module: tools/make_stub.sh BUILD_DIR
# A test compares the two, so run it after every change of a signature in csrc/bindings.
source "$(dirname "$0")/common.sh"

build=${1:-build/dev}
stub=python/metal_sdpa/_core.pyi
"$PYTHON" -m nanobind.stubgen -q -m _core -i "$build/stage/metal_sdpa" -p csrc/bindings/stub.pat -o "$stub"
"$PYTHON" -m ruff check --quiet --fix --select I "$stub"
"$PYTHON" -m ruff format --quiet "$stub"
