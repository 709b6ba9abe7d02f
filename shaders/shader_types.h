// Fixed-width integer names and shared functions that mean the same in Metal Shading Language and
// in host C++.
#ifndef METAL_SDPA_SHADER_TYPES_H
#define METAL_SDPA_SHADER_TYPES_H

#ifdef __METAL_VERSION__
typedef int sdpa_i32;
typedef uint sdpa_u32;
typedef long sdpa_i64;
#define SDPA_SHARED_ASSERT(condition, text)
#define SDPA_SHARED inline
#else
#include <cstddef>
#include <cstdint>
typedef std::int32_t sdpa_i32;
typedef std::uint32_t sdpa_u32;
typedef std::int64_t sdpa_i64;
#define SDPA_SHARED_ASSERT(condition, text) static_assert(condition, text)
// Of each file's own: CPU kernels are compiled for several instruction sets, and one of these
// functions must not stand in for another's.
#define SDPA_SHARED static inline
#endif

#endif  // METAL_SDPA_SHADER_TYPES_H
