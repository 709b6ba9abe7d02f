// The version, read by CMake, by the wheel and by the library itself.
#pragma once

#define METAL_SDPA_VERSION_MAJOR 0
#define METAL_SDPA_VERSION_MINOR 1
#define METAL_SDPA_VERSION_PATCH 0
#define METAL_SDPA_VERSION "0.1.0"
