#!/usr/bin/env bash
# Builds the library and the tests of the attention kernels for arm64 Linux and runs them under
# qemu, on every instruction set of arm64. Needs g++-aarch64-linux-gnu and qemu-user.
# --share: every second program, the others two days later: emulation is slow, and CI runs this every
# second day.
source "$(dirname "$0")/common.sh"

build=build/arm64
tests=(half_test sdpa_test sdpa_merge_test sdpa_packed_test sdpa_prefill_test sdpa_decode_test)
if [ "${1:-}" = --share ]; then
  days=$(($(date +%s) / 86400))
  first=$((days / 2 % 2))
  tests=("${tests[first]}" "${tests[first + 2]}" "${tests[first + 4]}")
  echo "today: ${tests[*]}"
fi

cmake -G Ninja -S . -B "$build" --log-level=WARNING \
  -DCMAKE_TOOLCHAIN_FILE="$ROOT/cmake/toolchains/linux-arm64.cmake" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" \
  -DMETAL_SDPA_DEVELOPER=ON -DMETAL_SDPA_PYTHON=OFF \
  -DMETAL_SDPA_METAL=OFF
cmake --build "$build" --target "${tests[@]}"
pattern=$(IFS='|' && echo "^(${tests[*]})\$")
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(nproc)" -R "$pattern"
