#!/usr/bin/env bash
# sanitize.sh asan|tsan|software-metal-asan [PYTEST_ARGS...]: builds that preset and runs ctest; asan
# runs pytest too, on the tests that PYTEST_EXPRESSION selects. Under software-metal-asan the shaders are
# instrumented and buffers end exactly. What measures time is not run under sanitizers.
#
# pytest runs in an interpreter that knows nothing of sanitizers, so the runtime is preloaded, and
# libstdc++ with it: without that its exceptions are not intercepted. Leaks are looked for by a test
# of its own; at exit the interpreter's own memory would drown them.
source "$(dirname "$0")/common.sh"

preset=$1
shift
ensure_venv build test

export UBSAN_OPTIONS=print_stacktrace=1

# The programs that ctest runs of this preset, which are targets of the same names.
tested_programs() {
  cmake --preset "$preset" -DPython_EXECUTABLE="$PYTHON" --log-level=ERROR >/dev/null
  ctest --preset "$preset" --show-only | sed -n 's/^ *Test *#[0-9]*: //p'
}

run_ctest() {
  # ThreadSanitizer needs the address space that it expects: no randomisation where that can be had.
  if command -v setarch >/dev/null && setarch "$(uname -m)" -R true 2>/dev/null; then
    setarch "$(uname -m)" -R ctest --preset "$preset"
  else
    ctest --preset "$preset"
  fi
}

# Test files that say nothing of our memory which another one does not: numbers, text, other programs.
unsanitized=(accuracy bench bench_peers bench_verdicts environment examples exit properties tools tools_checks)

run_sanitized_pytest() {
  local library preload= name
  for library in libasan.so libstdc++.so; do
    preload+=" $(readlink -f "$(c++ -print-file-name=$library)")"
  done
  export ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH="build/$preset/stage"
  export METAL_SDPA_SWEEP="${METAL_SDPA_SWEEP:-200}" PYTEST_PRELOAD="${preload# }"
  for name in "${unsanitized[@]}"; do set -- "$@" "--ignore=tests/python/test_$name.py"; done
  run_pytest "${PYTEST_EXPRESSION:-not frameworks and not alone}" "$@"
}

case $preset in
  asan)
    build_preset asan all stage
    run_ctest
    run_sanitized_pytest "$@"
    ;;
  tsan)
    build_preset tsan $(tested_programs)
    run_ctest
    ;;
  software-metal-asan)
    build_preset "$preset" $(tested_programs)
    ctest --preset "$preset"
    ;;
  *) die "sanitize.sh: $preset is not asan, tsan or software-metal-asan" ;;
esac
