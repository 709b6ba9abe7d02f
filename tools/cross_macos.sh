#!/usr/bin/env bash
# Compiles and links the library (core, CPU with NEON, Metal) and the bindings for arm64 macOS on
# this machine, and checks that what came out is Mach-O arm64. It cannot run here, so that -O2 does.
source "$(dirname "$0")/common.sh"

ensure_venv build cross
build=build/cross-macos
METAL_SDPA_PYTHON=$PYTHON
export METAL_SDPA_PYTHON

cmake -G Ninja -S . -B "$build" --log-level=WARNING \
  -DCMAKE_TOOLCHAIN_FILE="$ROOT/cmake/toolchains/macos-arm64.cmake" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" -DMETAL_SDPA_METAL=ON \
  -DMETAL_SDPA_ISAS=neon \
  -DPython_EXECUTABLE="$PYTHON"
cmake --build "$build"

# 0xfeedfacf: a 64-bit Mach-O file; 0x0100000c: CPU_TYPE_ARM64.
"$PYTHON" - "$build"/lib/libmetal_sdpa*.dylib "$build"/python/_core*.so <<'END'
import struct
import sys

for path in sys.argv[1:]:
    with open(path, "rb") as file:
        magic, cpu = struct.unpack("<II", file.read(8))
    assert (magic, cpu) == (0xFEEDFACF, 0x0100000C), f"{path} is not Mach-O arm64"
    print(f"{path}: Mach-O arm64")
END
