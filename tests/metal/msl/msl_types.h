// Types of Metal Shading Language: scalars, vectors, constructors, as_type, limits, type traits.
//
// Vectors are Clang's ext_vector_type, which has MSL's swizzles and element-wise operators.
// MSL_SPACES is 1 where address spaces are real (the type-check) and 0 where they are not.
#ifndef SOFTWARE_METAL_MSL_TYPES_H
#define SOFTWARE_METAL_MSL_TYPES_H

typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef _Float16 half;
typedef __bf16 bfloat;

#define offsetof(type, member) __builtin_offsetof(type, member)
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_huge_valf()
#define HUGE_VALH ((half)__builtin_inff())
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX ((half)65504.0f)
#define HALF_MIN ((half)6.103515625e-05f)
#define MAXHALF HALF_MAX
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_SQRT2_F 1.41421356237309504880f

namespace metal {

template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

template <class T>
struct msl_shape {
  typedef T element;
  static constexpr int size = 1;
};
template <class T, int N>
struct msl_shape<T __attribute__((ext_vector_type(N)))> {
  typedef T element;
  static constexpr int size = N;
};

// ----- Constructors: the translator turns float4(a, b.xy, c) into msl_make<float4>(a, b.xy, c)

template <int N>
struct msl_count {};

template <class V, class A>
inline void msl_push(V& out, int& at, A value, msl_count<1>) {
  out[at++] = (typename msl_shape<V>::element)value;
}
template <class V, class A, int N>
inline void msl_push(V& out, int& at, A value, msl_count<N>) {
  for (int i = 0; i < N; ++i) out[at++] = (typename msl_shape<V>::element)value[i];
}
template <class V>
inline void msl_push_all(V&, int&) {}
template <class V, class A, class... Rest>
inline void msl_push_all(V& out, int& at, A value, Rest... rest) {
  msl_push(out, at, value, msl_count<msl_shape<A>::size>());
  msl_push_all(out, at, rest...);
}

template <class... A>
struct msl_total {
  static constexpr int value = 0;
};
template <class A, class... Rest>
struct msl_total<A, Rest...> {
  static constexpr int value = msl_shape<A>::size + msl_total<Rest...>::value;
};

template <class V>
inline V msl_make() {
  return V(0);
}
template <class V, class A>
inline V msl_make_one(A value, msl_count<1>) {
  return V((typename msl_shape<V>::element)value);
}
template <class V, class A, int N>
inline V msl_make_one(A value, msl_count<N>) {
  static_assert(N == msl_shape<V>::size, "a vector converts to one of as many elements");
  return __builtin_convertvector(value, V);
}
template <class V, class A>
inline V msl_make(A value) {
  return msl_make_one<V>(value, msl_count<msl_shape<A>::size>());
}
template <class V, class A, class B, class... Rest>
inline V msl_make(A a, B b, Rest... rest) {
  static_assert(msl_total<A, B, Rest...>::value == msl_shape<V>::size,
                "as many values as the vector has elements");
  V out = V(0);
  int at = 0;
  msl_push_all(out, at, a, b, rest...);
  return out;
}

}  // namespace metal
using metal::msl_make;

#define MSL_VECTORS(name, type)                                                                  \
  typedef type name##2 __attribute__((ext_vector_type(2)));                                      \
  typedef type name##3 __attribute__((ext_vector_type(3)));                                      \
  typedef type name##4 __attribute__((ext_vector_type(4)));                                      \
  typedef type packed_##name##2 __attribute__((ext_vector_type(2), aligned(__alignof__(type)))); \
  typedef type packed_##name##4 __attribute__((ext_vector_type(4), aligned(__alignof__(type)))); \
  namespace metal {                                                                              \
  using ::name##2;                                                                               \
  using ::name##3;                                                                               \
  using ::name##4;                                                                               \
  using ::packed_##name##2;                                                                      \
  using ::packed_##name##4;                                                                      \
  }
MSL_VECTORS(char, signed char)
MSL_VECTORS(uchar, unsigned char)
MSL_VECTORS(short, short)
MSL_VECTORS(ushort, unsigned short)
MSL_VECTORS(int, int)
MSL_VECTORS(uint, unsigned int)
MSL_VECTORS(long, long)
MSL_VECTORS(ulong, unsigned long)
MSL_VECTORS(half, _Float16)
MSL_VECTORS(bfloat, __bf16)
MSL_VECTORS(float, float)
#undef MSL_VECTORS
typedef bool bool2 __attribute__((ext_vector_type(2)));
typedef bool bool3 __attribute__((ext_vector_type(3)));
typedef bool bool4 __attribute__((ext_vector_type(4)));

namespace metal {
using ::bfloat;
using ::half;
using ::size_t;
using ::uchar;
using ::uint;
using ::ulong;
using ::ushort;
}  // namespace metal

// ----- as_type

template <class To, class From>
inline To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To out;
  __builtin_memcpy(&out, &value, sizeof(To));
  return out;
}

// ----- Literals: 1.0h

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wuser-defined-literals"
constexpr half operator""h(long double value) { return (half)value; }
#pragma clang diagnostic pop

namespace metal {

// ----- Limits

template <class T>
struct numeric_limits;

#define MSL_FLOAT_LIMITS(type, largest, smallest, step, n_digits)                      \
  template <>                                                                          \
  struct numeric_limits<type> {                                                        \
    static constexpr bool is_specialized = true, is_signed = true, is_integer = false; \
    static constexpr int digits = n_digits;                                            \
    static constexpr type max() { return (type)(largest); }                            \
    static constexpr type lowest() { return (type)(-(largest)); }                      \
    static constexpr type min() { return (type)(smallest); }                           \
    static constexpr type epsilon() { return (type)(step); }                           \
    static constexpr type infinity() { return (type)__builtin_inff(); }                \
    static constexpr type quiet_NaN() { return (type)__builtin_nanf(""); }             \
  };
MSL_FLOAT_LIMITS(float, 3.402823466e+38f, 1.175494351e-38f, 1.192092896e-07f, 24)
MSL_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-05f, 9.765625e-04f, 11)
MSL_FLOAT_LIMITS(bfloat, 3.38953139e+38f, 1.175494351e-38f, 7.8125e-03f, 8)
#undef MSL_FLOAT_LIMITS

#define MSL_INTEGER_LIMITS(type, smallest, largest)                 \
  template <>                                                       \
  struct numeric_limits<type> {                                     \
    static constexpr bool is_specialized = true, is_integer = true; \
    static constexpr bool is_signed = (type)(-1) < (type)0;         \
    static constexpr type max() { return largest; }                 \
    static constexpr type min() { return smallest; }                \
    static constexpr type lowest() { return smallest; }             \
  };
MSL_INTEGER_LIMITS(signed char, -128, 127)
MSL_INTEGER_LIMITS(unsigned char, 0, 255)
MSL_INTEGER_LIMITS(short, -32768, 32767)
MSL_INTEGER_LIMITS(unsigned short, 0, 65535)
MSL_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647)
MSL_INTEGER_LIMITS(unsigned int, 0, 4294967295u)
MSL_INTEGER_LIMITS(long, -9223372036854775807l - 1, 9223372036854775807l)
MSL_INTEGER_LIMITS(unsigned long, 0, 18446744073709551615ul)
#undef MSL_INTEGER_LIMITS

// ----- Type traits

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  typedef T value_type;
  constexpr operator T() const { return v; }
};
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;

template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool B, class T, class F>
struct conditional {
  typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;

template <class T>
struct remove_reference {
  typedef T type;
};
template <class T>
struct remove_reference<T&> {
  typedef T type;
};
template <class T>
struct remove_const {
  typedef T type;
};
template <class T>
struct remove_const<const T> {
  typedef T type;
};

template <class T>
struct is_integral : integral_constant<bool, __is_integral(T)> {};
template <class T>
struct is_floating_point
    : integral_constant<bool, is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>> {};
template <class T>
constexpr bool is_integral_v = is_integral<T>::value;
template <class T>
constexpr bool is_floating_point_v = is_floating_point<T>::value;

enum class mem_flags : unsigned {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
};
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((unsigned)a | (unsigned)b);
}

}  // namespace metal

#endif
