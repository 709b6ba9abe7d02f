// Functions of metal_simdgroup and barriers, on the host: the lanes of a simdgroup meet.
#ifndef SOFTWARE_METAL_MSL_SIMD_H
#define SOFTWARE_METAL_MSL_SIMD_H

#include "../device/shader_abi.hpp"
#include "msl_math.h"

namespace msl_host {

static Thread* current;
static const Runtime* runtime;

constexpr unsigned kOperandBytes = 48;  // behind it, a lane's index for shuffles
constexpr unsigned kLaneOffset = 56;

template <class T>
inline T load(const Slot& slot) {
  T value;
  __builtin_memcpy(&value, slot.bytes, sizeof(T));
  return value;
}
template <class T>
inline void store(Slot& slot, T value) {
  static_assert(sizeof(T) <= kOperandBytes, "an operand of a simdgroup function fits its slot");
  __builtin_memcpy(slot.bytes, &value, sizeof(T));
}
inline bool is_active(const Simdgroup& simdgroup, unsigned lane) {
  return lane < kLanes && (simdgroup.active >> lane & 1) != 0;
}

/// Brings `value` to a meeting of the active lanes and takes home what the resolver left.
template <class Result, class T>
inline Result exchange(const char* name, unsigned site, Resolver resolve, T value) {
  Thread* self = current;
  store(self->simdgroup->in[self->lane], value);
  runtime->meet(Meeting::lanes, name, site, resolve);
  return load<Result>(self->simdgroup->out[self->lane]);
}

/// The same, with a lane number beside the value.
template <class T>
inline T exchange_with(const char* name, unsigned site, Resolver resolve, T value, unsigned lane) {
  Thread* self = current;
  Slot& slot = self->simdgroup->in[self->lane];
  store(slot, value);
  __builtin_memcpy(slot.bytes + kLaneOffset, &lane, sizeof(lane));
  runtime->meet(Meeting::lanes, name, site, resolve);
  return load<T>(self->simdgroup->out[self->lane]);
}

/// Gives every lane the value of the lane that it named; bits of a NaN where that one is inactive.
inline void resolve_shuffle(Simdgroup& simdgroup) {
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!is_active(simdgroup, i)) continue;
    unsigned from;
    __builtin_memcpy(&from, simdgroup.in[i].bytes + kLaneOffset, sizeof(from));
    if (is_active(simdgroup, from)) {
      simdgroup.out[i] = simdgroup.in[from];
    } else {
      __builtin_memset(simdgroup.out[i].bytes, 0xff, sizeof(Slot));
    }
  }
}

/// Combines the values of the active lanes in pairs, lane i with i + 16, then + 8 and so on.
template <class T, class Combine>
inline void resolve_reduction(Simdgroup& simdgroup) {
  T values[kLanes];
  unsigned active = simdgroup.active;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (active >> i & 1) values[i] = load<T>(simdgroup.in[i]);
  }
  for (unsigned half_width = kLanes / 2; half_width > 0; half_width /= 2) {
    for (unsigned i = 0; i < half_width; ++i) {
      bool low = active >> i & 1, high = active >> (i + half_width) & 1;
      if (low && high) values[i] = Combine::combine(values[i], values[i + half_width]);
      if (!low && high) values[i] = values[i + half_width];
      if (high) active |= 1u << i;
    }
  }
  for (unsigned i = 0; i < kLanes; ++i) {
    if (is_active(simdgroup, i)) store(simdgroup.out[i], values[0]);
  }
}

template <class T, class Combine, bool kInclusive>
inline void resolve_prefix(Simdgroup& simdgroup) {
  T sum = Combine::template identity<T>();
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!is_active(simdgroup, i)) continue;
    T with_own = Combine::combine(sum, load<T>(simdgroup.in[i]));
    store(simdgroup.out[i], kInclusive ? with_own : sum);
    sum = with_own;
  }
}

inline void resolve_ballot(Simdgroup& simdgroup) {
  unsigned long mask = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (is_active(simdgroup, i) && load<bool>(simdgroup.in[i])) mask |= 1ul << i;
  }
  for (unsigned i = 0; i < kLanes; ++i) store(simdgroup.out[i], mask);
}

inline void resolve_active(Simdgroup& simdgroup) {
  for (unsigned i = 0; i < kLanes; ++i) store(simdgroup.out[i], (unsigned long)simdgroup.active);
}

inline void resolve_first(Simdgroup& simdgroup) {
  Slot first = simdgroup.in[__builtin_ctz(simdgroup.active)];
  for (unsigned i = 0; i < kLanes; ++i) simdgroup.out[i] = first;
}

#define MSL_COMBINE(name, expression, neutral) \
  struct name {                                \
    template <class T>                         \
    static T combine(T a, T b) {               \
      return expression;                       \
    }                                          \
    template <class T>                         \
    static T identity() {                      \
      return neutral;                          \
    }                                          \
  };
MSL_COMBINE(Sum, (T)(a + b), T(0))
MSL_COMBINE(Product, (T)(a * b), T(1))
MSL_COMBINE(Max, metal::max(a, b), T(0))
MSL_COMBINE(Min, metal::min(a, b), T(0))
MSL_COMBINE(And, (T)(a & b), T(~0))
MSL_COMBINE(Or, (T)(a | b), T(0))
MSL_COMBINE(Xor, (T)(a ^ b), T(0))
#undef MSL_COMBINE

inline void* threadgroup_array(unsigned id, unsigned bytes) {
  return runtime->threadgroup_array(id, bytes);
}

}  // namespace msl_host

namespace metal {

// The place of the call, so that a report can name it.
#define MSL_SITE unsigned line = __builtin_LINE(), unsigned column = __builtin_COLUMN()
#define MSL_HERE ::msl_host::site_of(line, column)

inline void threadgroup_barrier(mem_flags, MSL_SITE) {
  ::msl_host::runtime->meet(::msl_host::Meeting::threadgroup_barrier, "threadgroup_barrier",
                            MSL_HERE, nullptr);
}
inline void simdgroup_barrier(mem_flags, MSL_SITE) {
  ::msl_host::runtime->meet(::msl_host::Meeting::simdgroup_barrier, "simdgroup_barrier", MSL_HERE,
                            nullptr);
}

#define MSL_REDUCTION(name, combine)                                                               \
  template <class T>                                                                               \
  inline T name(T value, MSL_SITE) {                                                               \
    return ::msl_host::exchange<T>(#name, MSL_HERE,                                                \
                                   &::msl_host::resolve_reduction<T, ::msl_host::combine>, value); \
  }
MSL_REDUCTION(simd_sum, Sum)
MSL_REDUCTION(simd_product, Product)
MSL_REDUCTION(simd_max, Max)
MSL_REDUCTION(simd_min, Min)
MSL_REDUCTION(simd_and, And)
MSL_REDUCTION(simd_or, Or)
MSL_REDUCTION(simd_xor, Xor)
#undef MSL_REDUCTION

#define MSL_PREFIX(name, combine, inclusive)                                                     \
  template <class T>                                                                             \
  inline T name(T value, MSL_SITE) {                                                             \
    return ::msl_host::exchange<T>(                                                              \
        #name, MSL_HERE, &::msl_host::resolve_prefix<T, ::msl_host::combine, inclusive>, value); \
  }
MSL_PREFIX(simd_prefix_inclusive_sum, Sum, true)
MSL_PREFIX(simd_prefix_exclusive_sum, Sum, false)
MSL_PREFIX(simd_prefix_inclusive_product, Product, true)
MSL_PREFIX(simd_prefix_exclusive_product, Product, false)
#undef MSL_PREFIX

#define MSL_SHUFFLE(name, argument, from)                                                  \
  template <class T>                                                                       \
  inline T name(T value, ushort argument, MSL_SITE) {                                      \
    unsigned own = ::msl_host::current->lane;                                              \
    (void)own;                                                                             \
    return ::msl_host::exchange_with(#name, MSL_HERE, &::msl_host::resolve_shuffle, value, \
                                     (unsigned)(from));                                    \
  }
MSL_SHUFFLE(simd_shuffle, lane, lane)
MSL_SHUFFLE(simd_broadcast, lane, lane)
MSL_SHUFFLE(simd_shuffle_xor, mask, own ^ mask)
// Past the edge a lane keeps a value of its own on Apple GPUs; Metal leaves it undefined.
MSL_SHUFFLE(simd_shuffle_down, delta, own + delta)
MSL_SHUFFLE(simd_shuffle_up, delta, own - delta)
MSL_SHUFFLE(simd_shuffle_rotate_down, delta, (own + delta) % 32)
MSL_SHUFFLE(simd_shuffle_rotate_up, delta, (own - delta) % 32)
MSL_SHUFFLE(quad_shuffle, lane, (own & ~3u) | (lane & 3u))
MSL_SHUFFLE(quad_broadcast, lane, (own & ~3u) | (lane & 3u))
MSL_SHUFFLE(quad_shuffle_xor, mask, (own & ~3u) | ((own ^ mask) & 3u))
#undef MSL_SHUFFLE

template <class T>
inline T simd_broadcast_first(T value, MSL_SITE) {
  return ::msl_host::exchange<T>("simd_broadcast_first", MSL_HERE, &::msl_host::resolve_first,
                                 value);
}

class simd_vote {
 public:
  typedef ulong vote_t;
  simd_vote(vote_t mask = 0) : mask_(mask) {}
  explicit operator vote_t() const { return mask_; }
  bool all() const { return mask_ == 0xfffffffful; }
  bool any() const { return mask_ != 0; }

 private:
  vote_t mask_;
};

inline simd_vote simd_ballot(bool value, MSL_SITE) {
  return simd_vote(
      ::msl_host::exchange<ulong>("simd_ballot", MSL_HERE, &::msl_host::resolve_ballot, value));
}
inline simd_vote simd_active_threads_mask(MSL_SITE) {
  return simd_vote(::msl_host::exchange<ulong>("simd_active_threads_mask", MSL_HERE,
                                               &::msl_host::resolve_active, true));
}
inline bool simd_any(bool value, MSL_SITE) {
  return ::msl_host::exchange<ulong>("simd_any", MSL_HERE, &::msl_host::resolve_ballot, value) != 0;
}
inline bool simd_all(bool value, MSL_SITE) {
  return ::msl_host::exchange<ulong>("simd_all", MSL_HERE, &::msl_host::resolve_ballot, !value) ==
         0;
}
inline bool simd_is_first(MSL_SITE) {
  ulong active =
      ::msl_host::exchange<ulong>("simd_is_first", MSL_HERE, &::msl_host::resolve_active, true);
  return (unsigned)__builtin_ctzl(active) == ::msl_host::current->lane;
}

}  // namespace metal

#endif
