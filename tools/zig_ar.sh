#!/usr/bin/env bash
# The archiver of cmake/toolchains/macos-arm64.cmake.
exec "${METAL_SDPA_PYTHON:-python3}" -m ziglang ar "$@"
