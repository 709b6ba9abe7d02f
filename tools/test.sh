#!/usr/bin/env bash
# make test: builds and runs every test of this machine, then the linters.
source "$(dirname "$0")/common.sh"

test_cpp() {
  build_preset dev tests/all
  ctest --preset dev
}

test_python() { run_pytest ""; }

# The order in which the device runs threads, threadgroups and dispatches follows a seed: the first
# for all tests, one of the day for those of kernels again and for Python's.
test_software_metal() {
  local day
  day=${SOFTWARE_METAL_SEED:-$(date +%Y%m%d)}
  echo "SOFTWARE_METAL_SEED=$day"
  build_preset software-metal all stage
  env -u SOFTWARE_METAL_SEED ctest --preset software-metal
  SOFTWARE_METAL_SEED=$day ctest --preset software-metal --label-regex shuffled
  export SOFTWARE_METAL_SEED=$day METAL_SDPA_TEST_DEVICES=metal PYTHONPATH=build/software-metal/stage
  run_pytest "not frameworks and not alone"
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
