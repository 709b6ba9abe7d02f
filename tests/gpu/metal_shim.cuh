// The part of the Metal standard library that our shaders use, for CUDA C++ under NVRTC
// (-default-device -std=c++17). msl_to_cuda.py puts it in front of a translated shader.
//
// A simdgroup is a warp. Lanes are numbered so that the layout of Apple's 8x8 matrices (row
// (l/16)*4 + l%8/2, columns ((l%16)/8)*4 + l%2*2 and the next) is the accumulator layout of
// mma.sync: hardware lane n holds row n/4, columns 2*(n%4) and the next.
#define __METAL_VERSION__ 310
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned long ulong;
typedef unsigned char uchar;

// The instructions under everything else; a host build brings its own.
#ifndef MSL_ON_HOST
namespace msl_hw {
inline ushort f32_to_f16(float x) {
  ushort r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
inline ushort f32_to_bf16(float x) {
  ushort r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
inline float f16_to_f32(ushort x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
  return r;
}
inline float round_to_tf32(float x) {
  uint r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return __uint_as_float(r);
}
inline float ex2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
/// Transpose of an 8x8 matrix of 16-bit elements, two a lane.
inline uint transpose16(uint x) {
  uint r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}
/// 16x8 accumulators of mma.m16n8k8: a, b are of rows 0 to 7, c, d of rows 8 to 15.
struct f4 {
  float a, b, c, d;
};
inline void mma_f16(f4& d, uint a0, uint a1, uint b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d.a), "+f"(d.b), "+f"(d.c), "+f"(d.d)
      : "r"(a0), "r"(a1), "r"(b));
}
inline void mma_bf16(f4& d, uint a0, uint a1, uint b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d.a), "+f"(d.b), "+f"(d.c), "+f"(d.d)
      : "r"(a0), "r"(a1), "r"(b));
}
/// Two floats as 16-bit elements, x in the lower half.
inline uint pack_f16(float x, float y) {
  uint r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
  return r;
}
inline uint pack_bf16(float x, float y) {
  uint r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
  return r;
}
inline void mma_tf32(f4& d, float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d.a), "+f"(d.b), "+f"(d.c), "+f"(d.d)
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
        "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
}  // namespace msl_hw
#endif

// ---- 16-bit floats: storage, converted to float by anything that computes -----------------------
struct half {
  ushort bits;
  half() = default;
  explicit half(float x) : bits(msl_hw::f32_to_f16(x)) {}
  operator float() const { return msl_hw::f16_to_f32(bits); }
};
struct bfloat {
  ushort bits;
  bfloat() = default;
  explicit bfloat(float x) : bits(msl_hw::f32_to_bf16(x)) {}
  operator float() const { return __uint_as_float(uint(bits) << 16); }
};

// ---- vectors: storage ---------------------------------------------------------------------------
namespace metal {
template <class T, int N>
struct vec;
template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  vec() = default;
  vec(T x_, T y_) : x(x_), y(y_) {}
  explicit vec(T s) : x(s), y(s) {}
  T operator[](int i) const { return i == 0 ? x : y; }
};
// Both of a pair of 16-bit elements in one register.
template <class T>
struct HalfPair {
  uint word;
  HalfPair() = default;
  HalfPair(T x, T y) : word(uint(x.bits) | uint(y.bits) << 16) {}
  explicit HalfPair(T s) : HalfPair(s, s) {}
  T operator[](int i) const {
    T element;
    element.bits = ushort(i == 0 ? word & 0xffffu : word >> 16);
    return element;
  }
};
template <>
struct vec<half, 2> : HalfPair<half> {
  using HalfPair<half>::HalfPair;
};
template <>
struct vec<bfloat, 2> : HalfPair<bfloat> {
  using HalfPair<bfloat>::HalfPair;
};
template <class T>
struct vec<T, 3> {
  T x, y, z;
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  vec(T x_, T y_, T z_, T w_) : x(x_), y(y_), z(z_), w(w_) {}
};
}  // namespace metal

template <class To, class From>
inline To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
  union {
    From from;
    To to;
  } u{x};
  return u.to;
}

// ---- built-in arguments -------------------------------------------------------------------------
namespace msl {
constexpr uint kAllLanes = 0xffffffffu;
/// Hardware lane of a Metal lane, and back. Linear over xor.
constexpr uint hw_lane(uint l) { return (l & 0x11u) | ((l & 0x06u) << 1) | ((l & 0x08u) >> 2); }
constexpr uint metal_lane(uint n) { return (n & 0x11u) | ((n & 0x0cu) >> 1) | ((n & 0x02u) << 2); }

inline metal::vec<uint, 3> group_position() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
inline uint lane() { return metal_lane(threadIdx.x & 31u); }
inline uint simdgroup() { return threadIdx.x >> 5; }
inline uint thread_index() { return (threadIdx.x & ~31u) | lane(); }
inline metal::vec<uint, 3> group_threads() { return {blockDim.x, blockDim.y, blockDim.z}; }
inline metal::vec<uint, 3> thread_position() { return {thread_index(), 0u, 0u}; }

template <class T>
inline T shuffle(T x, uint hw) {
  static_assert(sizeof(T) == 4, "shuffles move one word");
  return as_type<T>(__shfl_sync(kAllLanes, as_type<uint>(x), int(hw)));
}
}  // namespace msl

// ---- functions ----------------------------------------------------------------------------------
namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags) { __syncthreads(); }

inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline uint min(uint a, uint b) { return a < b ? a : b; }
inline uint max(uint a, uint b) { return a > b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline float ceil(float x) { return ceilf(x); }
inline float floor(float x) { return floorf(x); }
inline float rint(float x) { return rintf(x); }
inline float fabs(float x) { return fabsf(x); }
inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
inline float exp2(float x) { return msl_hw::ex2(x); }
inline float log2(float x) { return log2f(x); }
inline float tanh(float x) { return tanhf(x); }
inline bool isfinite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

template <class T>
inline T simd_shuffle(T x, uint lane) {
  return msl::shuffle(x, msl::hw_lane(lane));
}
template <class T>
inline T simd_shuffle_xor(T x, uint mask) {
  return as_type<T>(__shfl_xor_sync(msl::kAllLanes, as_type<uint>(x), int(msl::hw_lane(mask))));
}
inline float simd_max(float x) {
  for (uint m = 16; m > 0; m /= 2) x = fmaxf(x, simd_shuffle_xor(x, m));
  return x;
}
inline bool simd_any(bool p) { return __any_sync(msl::kAllLanes, p); }

// ---- simdgroup_matrix ---------------------------------------------------------------------------
template <class T, int kColumns, int kRows>
struct simdgroup_matrix {
  static_assert(kColumns == 8 && kRows == 8, "Metal has 8x8 simdgroup matrices");
  vec<T, 2> elements;
  vec<T, 2>& thread_elements() { return elements; }
};
}  // namespace metal

namespace msl {
using Pair = metal::vec<float, 2>;

/// mma.sync takes B by columns: its lane layout is that of B's transpose.
inline Pair multiply_accumulate(metal::vec<half, 2> a, metal::vec<half, 2> b, Pair c) {
  msl_hw::f4 d = {c.x, c.y, 0.0f, 0.0f};
  msl_hw::mma_f16(d, as_type<uint>(a), 0u, msl_hw::transpose16(as_type<uint>(b)));
  return Pair(d.a, d.b);
}
inline Pair multiply_accumulate(metal::vec<bfloat, 2> a, metal::vec<bfloat, 2> b, Pair c) {
  msl_hw::f4 d = {c.x, c.y, 0.0f, 0.0f};
  msl_hw::mma_bf16(d, as_type<uint>(a), 0u, msl_hw::transpose16(as_type<uint>(b)));
  return Pair(d.a, d.b);
}

/// A float matrix times one of 16-bit elements: rows 0 to 7 of the 16-row A are A rounded to those
/// elements, rows 8 to 15 what the rounding lost. f16 elements hold 22 bits together, bf16 ones 16:
/// a 256th of what rounding the result to bf16 loses. f16 has few exponents, so what was lost comes
/// scaled: that takes |A| < 2^15 (our shaders multiply weights, at most 1) and holds A to 2^-36.
inline Pair multiply_accumulate(Pair a, metal::vec<half, 2> b, Pair c) {
  constexpr float kScale = 2048.0f;
  const uint high = msl_hw::pack_f16(a.x, a.y);
  const float hx = msl_hw::f16_to_f32(ushort(high)), hy = msl_hw::f16_to_f32(ushort(high >> 16));
  msl_hw::f4 d = {c.x, c.y, 0.0f, 0.0f};
  msl_hw::mma_f16(d, high, msl_hw::pack_f16((a.x - hx) * kScale, (a.y - hy) * kScale),
                  msl_hw::transpose16(as_type<uint>(b)));
  return Pair(fmaf(d.c, 1.0f / kScale, d.a), fmaf(d.d, 1.0f / kScale, d.b));
}
inline Pair multiply_accumulate(Pair a, metal::vec<bfloat, 2> b, Pair c) {
  const uint high = msl_hw::pack_bf16(a.x, a.y);
  const float hx = __uint_as_float(high << 16), hy = __uint_as_float(high & 0xffff0000u);
  msl_hw::f4 d = {c.x, c.y, 0.0f, 0.0f};
  msl_hw::mma_bf16(d, high, msl_hw::pack_bf16(a.x - hx, a.y - hy),
                   msl_hw::transpose16(as_type<uint>(b)));
  return Pair(d.a + d.c, d.b + d.d);
}

/// Transpose of an 8x8 matrix of floats, as two of 16-bit halves.
inline Pair transpose(Pair v) {
  const uint x = __float_as_uint(v.x), y = __float_as_uint(v.y);
  const uint low = msl_hw::transpose16(__byte_perm(x, y, 0x5410));
  const uint high = msl_hw::transpose16(__byte_perm(x, y, 0x7632));
  return Pair(__uint_as_float(__byte_perm(low, high, 0x5410)),
              __uint_as_float(__byte_perm(low, high, 0x7632)));
}
/// A float product from tf32 parts: x = high + low, of which the unit cuts low to 11 bits, holds x
/// to 2^-22. Rows 0 to 7 of the 16-row A are its high parts, rows 8 to 15 its low ones. The k order
/// 0,2,4,6,1,3,5,7 is that of A and B alike, so the pairs that a lane holds are the registers that
/// mma wants. The small product comes first and the sum with c is a float addition,
/// because the unit's own additions truncate.
inline Pair multiply_accumulate(Pair a, Pair b, Pair c) {
  const Pair bt = transpose(b);
  const float ahx = msl_hw::round_to_tf32(a.x), ahy = msl_hw::round_to_tf32(a.y);
  const float alx = a.x - ahx, aly = a.y - ahy;
  const float bhx = msl_hw::round_to_tf32(bt.x), bhy = msl_hw::round_to_tf32(bt.y);
  const float blx = bt.x - bhx, bly = bt.y - bhy;
  msl_hw::f4 d = {0.0f, 0.0f, 0.0f, 0.0f};
  msl_hw::mma_tf32(d, ahx, alx, ahy, aly, blx, bly);
  msl_hw::mma_tf32(d, ahx, alx, ahy, aly, bhx, bhy);
  return Pair(c.x + (d.a + d.c), c.y + (d.b + d.d));
}
}  // namespace msl

namespace metal {
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b,
                                          simdgroup_matrix<C, 8, 8> c) {
  d.elements = msl::multiply_accumulate(a.elements, b.elements, c.elements);
}
}  // namespace metal

// ---- words --------------------------------------------------------------------------------------
// CUDA has vector types of these names with other members.
typedef metal::vec<float, 2> msl_float2;
typedef metal::vec<float, 4> msl_float4;
typedef metal::vec<uint, 2> msl_uint2;
typedef metal::vec<uint, 3> msl_uint3;
typedef metal::vec<uint, 4> msl_uint4;
#define float2 msl_float2
#define float4 msl_float4
#define uint2 msl_uint2
#define uint3 msl_uint3
#define uint4 msl_uint4
#undef INFINITY
#define INFINITY __uint_as_float(0x7f800000u)
#define device
#define constant const
#define thread
#define threadgroup
#define is_function_constant_defined(name) true
#define MSL_JOIN_(a, b) a##b
#define MSL_JOIN(a, b) MSL_JOIN_(a, b)
#define MSL_FUNCTION_CONSTANT(index) MSL_JOIN(MSL_FUNCTION_CONSTANT_, index)
