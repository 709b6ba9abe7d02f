#!/usr/bin/env bash
# Builds the wheel into dist/ and installs it into the virtual environment.
source "$(dirname "$0")/common.sh"

ensure_venv build
echo "building the wheel"
rm -f dist/metal_sdpa-*.whl
# The build backend imports installed packages that offer CMake files: an old wheel must not matter.
"$PYTHON" -m pip uninstall --quiet --yes metal-sdpa 2>/dev/null
"$PYTHON" -m pip wheel . --quiet --no-deps --no-build-isolation --wheel-dir dist
"$PYTHON" -m pip install --quiet --force-reinstall --no-deps dist/metal_sdpa-*.whl
"$PYTHON" -m pip install --quiet dist/metal_sdpa-*.whl  # its dependencies, where they are missing
