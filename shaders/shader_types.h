// Fixed-width integer names that mean the same in Metal Shading Language and in host C++.
#ifndef METAL_SDPA_SHADER_TYPES_H
#define METAL_SDPA_SHADER_TYPES_H

#ifdef __METAL_VERSION__
typedef int sdpa_i32;
typedef uint sdpa_u32;
typedef long sdpa_i64;
#define SDPA_SHARED_ASSERT(condition, text)
#else
#include <cstddef>
#include <cstdint>
typedef std::int32_t sdpa_i32;
typedef std::uint32_t sdpa_u32;
typedef std::int64_t sdpa_i64;
#define SDPA_SHARED_ASSERT(condition, text) static_assert(condition, text)
#endif

#endif  // METAL_SDPA_SHADER_TYPES_H
