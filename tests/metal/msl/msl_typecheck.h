// Metal Shading Language for the type-check: address spaces are real, functions have no bodies to
// speak of. C++14.
#ifndef SOFTWARE_METAL_MSL_TYPECHECK_H
#define SOFTWARE_METAL_MSL_TYPECHECK_H

#define MSL_SPACES 1
#include "msl_math.h"

#define kernel
#define thread
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2))) const
#define threadgroup __attribute__((address_space(3)))
#define is_function_constant_defined(x) (sizeof(x) != 0)

namespace metal {

// ----- Simdgroup functions

void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define MSL_LANES(name) \
  template <class T>    \
  T name(T value);
MSL_LANES(simd_sum)
MSL_LANES(simd_product)
MSL_LANES(simd_max)
MSL_LANES(simd_min)
MSL_LANES(simd_and)
MSL_LANES(simd_or)
MSL_LANES(simd_xor)
MSL_LANES(simd_prefix_inclusive_sum)
MSL_LANES(simd_prefix_exclusive_sum)
MSL_LANES(simd_prefix_inclusive_product)
MSL_LANES(simd_prefix_exclusive_product)
MSL_LANES(simd_broadcast_first)
#undef MSL_LANES
#define MSL_LANES(name) \
  template <class T>    \
  T name(T value, ushort lane);
MSL_LANES(simd_shuffle)
MSL_LANES(simd_broadcast)
MSL_LANES(simd_shuffle_xor)
MSL_LANES(simd_shuffle_down)
MSL_LANES(simd_shuffle_up)
MSL_LANES(simd_shuffle_rotate_down)
MSL_LANES(simd_shuffle_rotate_up)
MSL_LANES(quad_shuffle)
MSL_LANES(quad_broadcast)
MSL_LANES(quad_shuffle_xor)
#undef MSL_LANES

struct simd_vote {
  typedef ulong vote_t;
  explicit operator vote_t() const;
  bool all() const;
  bool any() const;
};
simd_vote simd_ballot(bool value);
simd_vote simd_active_threads_mask();
bool simd_any(bool value);
bool simd_all(bool value);
bool simd_is_first();

// ----- simdgroup_matrix

template <class T, int Cols, int Rows>
struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "simdgroup matrices are 8 x 8");
  typedef vec<T, 2> storage_type;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal);
  storage_type& thread_elements();
  const storage_type& thread_elements() const;
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Cols, int Rows, class V>
simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(V value);
template <class T, int Cols, int Rows, class V>
simdgroup_matrix<T, Cols, Rows> make_diagonal_simdgroup_matrix(V value);

#define MSL_MATRIX_MEMORY(space)                                                              \
  template <class T>                                                                          \
  void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, const space T* source,               \
                      ulong elements_per_row = 8, ulong2 origin = 0, bool transpose = false); \
  template <class T>                                                                          \
  void simdgroup_store(simdgroup_matrix<T, 8, 8> matrix, space T* destination,                \
                       ulong elements_per_row = 8, ulong2 origin = 0, bool transpose = false);
MSL_MATRIX_MEMORY(device)
MSL_MATRIX_MEMORY(threadgroup)
#undef MSL_MATRIX_MEMORY

template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                   simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c);
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                        simdgroup_matrix<B, 8, 8> b);

// ----- Atomics

enum memory_order { memory_order_relaxed = 0 };
template <class T>
struct atomic {
  T value;
};
#define MSL_ATOMICS(space)                                                                  \
  template <class T, class V>                                                               \
  T atomic_fetch_add_explicit(volatile space atomic<T>* object, V operand, memory_order);   \
  template <class T, class V>                                                               \
  T atomic_fetch_sub_explicit(volatile space atomic<T>* object, V operand, memory_order);   \
  template <class T, class V>                                                               \
  T atomic_fetch_and_explicit(volatile space atomic<T>* object, V operand, memory_order);   \
  template <class T, class V>                                                               \
  T atomic_fetch_or_explicit(volatile space atomic<T>* object, V operand, memory_order);    \
  template <class T, class V>                                                               \
  T atomic_fetch_xor_explicit(volatile space atomic<T>* object, V operand, memory_order);   \
  template <class T, class V>                                                               \
  T atomic_fetch_max_explicit(volatile space atomic<T>* object, V operand, memory_order);   \
  template <class T, class V>                                                               \
  T atomic_fetch_min_explicit(volatile space atomic<T>* object, V operand, memory_order);   \
  template <class T>                                                                        \
  T atomic_load_explicit(const volatile space atomic<T>* object, memory_order);             \
  template <class T, class V>                                                               \
  void atomic_store_explicit(volatile space atomic<T>* object, V value, memory_order);      \
  template <class T, class V>                                                               \
  T atomic_exchange_explicit(volatile space atomic<T>* object, V value, memory_order);      \
  template <class T, class V>                                                               \
  bool atomic_compare_exchange_weak_explicit(volatile space atomic<T>* object, T* expected, \
                                             V value, memory_order, memory_order);
MSL_ATOMICS(device)
MSL_ATOMICS(threadgroup)
#undef MSL_ATOMICS
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

}  // namespace metal
using metal::atomic_bool;
using metal::atomic_int;
using metal::atomic_uint;

#endif
