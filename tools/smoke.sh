#!/usr/bin/env bash
# make smoke: builds, then the quick C++ programs and a few files of the Python tests. What it finds
# is wrong; what it does not find is for make test.
source "$(dirname "$0")/common.sh"

PYTHON_FILES=(tests/python/test_{bindings_types,buffer,dlpack_fields,encoder,graph,hazards,params}.py)

smoke_cpp() {
  build_preset dev all stage
  ctest --preset dev --label-regex smoke
}

smoke_python() {
  METAL_SDPA_SWEEP=100 PYTHONPATH=build/dev/stage \
    "$PYTHON" -m pytest -q -n "$JOBS" -m "not alone and not frameworks" \
    "${PYTHON_FILES[@]}"
}

tools/system_packages.sh test
ensure_venv dev
stage "C++" smoke_cpp
stage "Python" smoke_python
finish_stages
