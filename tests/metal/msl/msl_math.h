// Functions of metal_math, metal_common, metal_geometric, metal_relational and metal_integer.
#ifndef SOFTWARE_METAL_MSL_MATH_H
#define SOFTWARE_METAL_MSL_MATH_H

#include "msl_types.h"

namespace metal {

// ----- Element-wise functions that Clang knows for scalars and vectors

#define MSL_UNARY(name, builtin) \
  template <class T>             \
  inline T name(T x) {           \
    return builtin(x);           \
  }
MSL_UNARY(ceil, __builtin_elementwise_ceil)
MSL_UNARY(cos, __builtin_elementwise_cos)
MSL_UNARY(exp, __builtin_elementwise_exp)
MSL_UNARY(exp2, __builtin_elementwise_exp2)
MSL_UNARY(fabs, __builtin_elementwise_abs)
MSL_UNARY(floor, __builtin_elementwise_floor)
MSL_UNARY(log, __builtin_elementwise_log)
MSL_UNARY(log2, __builtin_elementwise_log2)
MSL_UNARY(log10, __builtin_elementwise_log10)
MSL_UNARY(rint, __builtin_elementwise_roundeven)
MSL_UNARY(round, __builtin_elementwise_round)
MSL_UNARY(sin, __builtin_elementwise_sin)
MSL_UNARY(sqrt, __builtin_elementwise_sqrt)
MSL_UNARY(trunc, __builtin_elementwise_trunc)
#undef MSL_UNARY

#define MSL_BINARY(name, builtin) \
  template <class T>              \
  inline T name(T x, T y) {       \
    return builtin(x, y);         \
  }
// With one NaN, the other argument comes back, as Metal has it.
MSL_BINARY(max, __builtin_elementwise_max)
MSL_BINARY(min, __builtin_elementwise_min)
MSL_BINARY(fmax, __builtin_elementwise_max)
MSL_BINARY(fmin, __builtin_elementwise_min)
MSL_BINARY(copysign, __builtin_elementwise_copysign)
#undef MSL_BINARY

template <class T>
inline T fma(T x, T y, T z) {
  return __builtin_elementwise_fma(x, y, z);
}

template <class T>
inline T msl_abs(T x, true_type) {
  return x;
}
template <class T>
inline T msl_abs(T x, false_type) {
  return __builtin_elementwise_abs(x);
}
template <class T>
inline T abs(T x) {
  typedef typename msl_shape<T>::element element;
  return msl_abs(x, integral_constant<bool, ((element)(-1) > (element)0)>());
}

template <class T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
template <class T>
inline T saturate(T x) {
  return clamp(x, T(0), T(1));
}
template <class T>
inline T mix(T x, T y, T a) {
  return x + (y - x) * a;
}
template <class T>
inline T sign(T x) {
  return T(x > T(0)) - T(x < T(0));
}
template <class T>
inline T step(T edge, T x) {
  return x < edge ? T(0) : T(1);
}
template <class T>
inline T rsqrt(T x) {
  return T(1) / sqrt(x);
}
template <class T>
inline T fract(T x) {
  return x - floor(x);
}

// ----- Scalar functions of the C library, applied to each element

#define MSL_LIBRARY(name, builtin)                                       \
  template <class T>                                                     \
  inline T msl_##name(T x, msl_count<1>) {                               \
    return (T)builtin((float)x);                                         \
  }                                                                      \
  template <class T, int N>                                              \
  inline T msl_##name(T x, msl_count<N>) {                               \
    for (int i = 0; i < N; ++i) x[i] = msl_##name(x[i], msl_count<1>()); \
    return x;                                                            \
  }                                                                      \
  template <class T>                                                     \
  inline T name(T x) {                                                   \
    return msl_##name(x, msl_count<msl_shape<T>::size>());               \
  }
MSL_LIBRARY(acos, __builtin_acosf)
MSL_LIBRARY(asin, __builtin_asinf)
MSL_LIBRARY(atan, __builtin_atanf)
MSL_LIBRARY(cosh, __builtin_coshf)
MSL_LIBRARY(exp10, __builtin_exp10f)
MSL_LIBRARY(sinh, __builtin_sinhf)
MSL_LIBRARY(tan, __builtin_tanf)
MSL_LIBRARY(tanh, __builtin_tanhf)
#undef MSL_LIBRARY

template <class T>
inline T pow(T x, T y) {
  return __builtin_elementwise_pow(x, y);
}
template <class T>
inline T powr(T x, T y) {
  return __builtin_elementwise_pow(x, y);
}
inline float fmod(float x, float y) { return __builtin_fmodf(x, y); }
inline float atan2(float y, float x) { return __builtin_atan2f(y, x); }
inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
inline half ldexp(half x, int e) { return (half)__builtin_ldexpf((float)x, e); }
#if !MSL_SPACES
inline float frexp(float x, int& e) { return __builtin_frexpf(x, &e); }
inline float modf(float x, float& whole) { return __builtin_modff(x, &whole); }
#endif

// ----- Relational

template <class T>
inline bool isnan(T x) {
  return x != x;
}
template <class T>
inline bool isinf(T x) {
  return __builtin_isinf((float)x);
}
template <class T>
inline bool isfinite(T x) {
  return __builtin_isfinite((float)x);
}
template <class T>
inline bool signbit(T x) {
  return __builtin_signbit((float)x);
}

template <class T>
inline T msl_select(T a, T b, bool c, msl_count<1>) {
  return c ? b : a;
}
template <class T, class C, int N>
inline T msl_select(T a, T b, C c, msl_count<N>) {
  for (int i = 0; i < N; ++i) a[i] = c[i] ? b[i] : a[i];
  return a;
}
/// b where c is true, else a.
template <class T, class C>
inline T select(T a, T b, C c) {
  return msl_select(a, b, c, msl_count<msl_shape<C>::size>());
}

inline bool any(bool x) { return x; }
inline bool all(bool x) { return x; }
template <class T, int N>
inline bool any(vec<T, N> x) {
  bool out = false;
  for (int i = 0; i < N; ++i) out = out || x[i];
  return out;
}
template <class T, int N>
inline bool all(vec<T, N> x) {
  bool out = true;
  for (int i = 0; i < N; ++i) out = out && x[i];
  return out;
}

// ----- Geometric

template <class T, int N>
inline T dot(vec<T, N> x, vec<T, N> y) {
  T sum = x[0] * y[0];
  for (int i = 1; i < N; ++i) sum += x[i] * y[i];
  return sum;
}
template <class T, int N>
inline T length_squared(vec<T, N> x) {
  return dot(x, x);
}
template <class T, int N>
inline T length(vec<T, N> x) {
  return sqrt(dot(x, x));
}
template <class T, int N>
inline T distance(vec<T, N> x, vec<T, N> y) {
  return length(x - y);
}
template <class T, int N>
inline vec<T, N> normalize(vec<T, N> x) {
  return x / length(x);
}

// ----- Integer

template <class T>
inline T popcount(T x) {
  return (T)__builtin_popcountll((unsigned long long)x & (~0ull >> (64 - 8 * sizeof(T))));
}
inline uint clz(uint x) { return x == 0 ? 32 : (uint)__builtin_clz(x); }
inline int clz(int x) { return (int)clz((uint)x); }
inline uint ctz(uint x) { return x == 0 ? 32 : (uint)__builtin_ctz(x); }
inline int ctz(int x) { return (int)ctz((uint)x); }
inline uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
inline uint mulhi(uint x, uint y) { return (uint)(((ulong)x * y) >> 32); }
inline int mulhi(int x, int y) { return (int)(((long)x * y) >> 32); }
template <class T>
inline T rotate(T x, T n) {
  constexpr unsigned bits = 8 * sizeof(T);
  return (T)((x << (n % bits)) | (x >> ((bits - n % bits) % bits)));
}
inline uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : (x << (32 - bits - offset)) >> (32 - bits);
}

namespace fast {
using namespace ::metal;
}
namespace precise {
using namespace ::metal;
}

}  // namespace metal

#endif
