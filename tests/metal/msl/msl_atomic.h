// Atomics. Threads of a dispatch run one at a time on the host, so plain accesses are atomic.
#ifndef SOFTWARE_METAL_MSL_ATOMIC_H
#define SOFTWARE_METAL_MSL_ATOMIC_H

#include "msl_types.h"

namespace metal {

enum memory_order { memory_order_relaxed = 0 };

template <class T>
struct atomic {
  T value;
};

#define MSL_ATOMIC_FETCH(name, expression)                                                       \
  template <class T, class V>                                                                    \
  inline T atomic_fetch_##name##_explicit(volatile atomic<T>* object, V operand, memory_order) { \
    T old = object->value, by = (T)operand;                                                      \
    object->value = (T)(expression);                                                             \
    return old;                                                                                  \
  }
MSL_ATOMIC_FETCH(add, old + by)
MSL_ATOMIC_FETCH(sub, old - by)
MSL_ATOMIC_FETCH(and, old& by)
MSL_ATOMIC_FETCH(or, old | by)
MSL_ATOMIC_FETCH(xor, old ^ by)
MSL_ATOMIC_FETCH(max, old < by ? by : old)
MSL_ATOMIC_FETCH(min, by < old ? by : old)
#undef MSL_ATOMIC_FETCH

template <class T>
inline T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  return object->value;
}
template <class T, class V>
inline void atomic_store_explicit(volatile atomic<T>* object, V value, memory_order) {
  object->value = (T)value;
}
template <class T, class V>
inline T atomic_exchange_explicit(volatile atomic<T>* object, V value, memory_order) {
  T old = object->value;
  object->value = (T)value;
  return old;
}
template <class T, class V>
inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected, V value,
                                                  memory_order, memory_order) {
  T old = object->value;
  bool same = old == *expected;
  if (same) object->value = (T)value;
  *expected = old;
  return same;
}

typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

}  // namespace metal

using metal::atomic_bool;
using metal::atomic_int;
using metal::atomic_uint;

#endif
