#!/usr/bin/env bash
# The compiler of cmake/toolchains/macos-arm64.cmake: zig c++ for arm64 macOS 14.
#
# zig has the headers of libc, libc++ and objc, but no framework: those that metal-cpp includes come
# from tests/metal/stubs, and -framework and linker lists are replaced by looking symbols up at load.
here=$(dirname "${BASH_SOURCE[0]}")
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    -framework) shift ;;
    -Wl,-framework,* | -Wl,@* | -Wl,-exported_symbols_list* | -Wl,-dead_strip) ;;
    -march=armv8.2-a+bf16) arguments+=(-mcpu=generic+bf16+fullfp16) ;;  # zig names CPUs only
    -bundle) arguments+=(-dynamiclib) ;;  # zig's linker makes no bundles
    *) arguments+=("$1") ;;
  esac
  shift
done
exec "${METAL_SDPA_PYTHON:-python3}" -m ziglang c++ -target aarch64-macos.14.0 -fblocks \
  -idirafter "$here/../tests/metal/stubs" -Wno-unused-command-line-argument \
  -undefined dynamic_lookup "${arguments[@]}"
