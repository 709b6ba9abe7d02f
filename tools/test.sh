#!/usr/bin/env bash
# make test: builds and runs every test of this machine, then the linters.
source "$(dirname "$0")/common.sh"

test_cpp() {
  build_preset dev
  ctest --preset dev
}

test_python() { "$PYTHON" -m pytest; }

test_software_metal() {
  build_preset software-metal all stage
  ctest --preset software-metal
  METAL_SDPA_TEST_DEVICES=metal PYTHONPATH=build/software-metal/stage \
    "$PYTHON" -m pytest -m "not frameworks"
}

check_shaders() { "$PYTHON" tests/metal/check_shaders.py; }

tools/system_packages.sh test
stage "Python environment" ensure_venv dev
export PATH="$VENV/bin:$PATH"
stage "C++ tests (ctest)" test_cpp
stage "wheel" tools/build_wheel.sh
stage "Python tests on the installed wheel (pytest)" test_python
stage "README examples and a C++ consumer of the wheel" "$PYTHON" tests/install/run.py
stage "source distribution" "$PYTHON" tests/install/sdist.py
if ! on_macos; then
  stage "shader checks" check_shaders
  stage "C++ and Python tests on software Metal" test_software_metal
fi
stage "lint" tools/lint.sh
finish_stages
