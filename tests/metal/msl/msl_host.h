// Metal Shading Language on the host: what a translated shader includes.
#ifndef SOFTWARE_METAL_MSL_HOST_H
#define SOFTWARE_METAL_MSL_HOST_H

#define MSL_SPACES 0

#include "msl_atomic.h"
#include "msl_matrix.h"
#include "msl_simd.h"

namespace msl_host {

// ----- Arguments of kernels

template <class P>
struct Pointee;
template <class T>
struct Pointee<T*> {
  typedef T type;
  static constexpr bool is_reference = false;
  static T* from(void* address) { return static_cast<T*>(address); }
};
template <class T>
struct Pointee<T&> {
  typedef T type;
  static constexpr bool is_reference = true;
  static T& from(void* address) { return *static_cast<T*>(address); }
};

template <class T>
struct SizeOf {
  static constexpr unsigned size = sizeof(T), align = alignof(T);
};
template <>
struct SizeOf<void> {
  static constexpr unsigned size = 1, align = 1;
};
template <>
struct SizeOf<const void> : SizeOf<void> {};

template <class T>
struct IsConst {
  static constexpr bool value = false;
};
template <class T>
struct IsConst<const T> {
  static constexpr bool value = true;
};

template <class P>
constexpr Argument describe(ArgumentKind kind, unsigned index, const char* name,
                            const bool* enabled) {
  typedef typename Pointee<P>::type T;
  return {name,
          kind,
          index,
          SizeOf<T>::size,
          SizeOf<T>::align,
          Pointee<P>::is_reference,
          IsConst<T>::value,
          enabled};
}

template <unsigned kIndex>
struct BufferParameter {
  static_assert(kIndex < kMaxBindings, "a buffer index is at most 30");
  template <class P>
  static P get(const Thread& thread) {
    return Pointee<P>::from(thread.group->buffers[kIndex]);
  }
  template <class P>
  static bool describe(Argument& out, const char* name, const bool* enabled) {
    out = msl_host::describe<P>(ArgumentKind::buffer, kIndex, name, enabled);
    return true;
  }
};

template <unsigned kIndex>
struct ThreadgroupParameter {
  static_assert(kIndex < kMaxBindings, "a threadgroup index is at most 30");
  template <class P>
  static P get(const Thread& thread) {
    return Pointee<P>::from(thread.group->threadgroup_memory[kIndex]);
  }
  template <class P>
  static bool describe(Argument& out, const char* name, const bool* enabled) {
    out = msl_host::describe<P>(ArgumentKind::threadgroup, kIndex, name, enabled);
    return true;
  }
};

template <class P>
struct FromUint3 {
  typedef typename metal::msl_shape<P>::element element;
  static P convert(Uint3 v, metal::msl_count<1>) { return (P)v.x; }
  static P convert(Uint3 v, metal::msl_count<2>) { return P{(element)v.x, (element)v.y}; }
  static P convert(Uint3 v, metal::msl_count<3>) {
    return P{(element)v.x, (element)v.y, (element)v.z};
  }
};

template <Uint3 (*value)(const Thread&)>
struct ValueParameter {
  template <class P>
  static P get(const Thread& thread) {
    return FromUint3<P>::convert(value(thread), metal::msl_count<metal::msl_shape<P>::size>());
  }
  template <class P>
  static bool describe(Argument&, const char*, const bool*) {
    return false;
  }
};

#define MSL_VALUE(name, expression) \
  inline Uint3 name(const Thread& t) { return expression; }
MSL_VALUE(thread_position_in_grid, t.position_in_grid)
MSL_VALUE(thread_position_in_threadgroup, t.position_in_threadgroup)
MSL_VALUE(thread_index_in_threadgroup, (Uint3{t.index_in_threadgroup, 0, 0}))
MSL_VALUE(thread_index_in_simdgroup, (Uint3{t.lane, 0, 0}))
MSL_VALUE(simdgroup_index_in_threadgroup, (Uint3{t.simdgroup_index, 0, 0}))
MSL_VALUE(threadgroup_position_in_grid, t.group->position_in_grid)
MSL_VALUE(threads_per_threadgroup, t.group->threads)
MSL_VALUE(dispatch_threads_per_threadgroup, t.group->dispatched_threads)
MSL_VALUE(threadgroups_per_grid, t.group->groups_in_grid)
MSL_VALUE(threads_per_grid, t.group->threads_in_grid)
MSL_VALUE(grid_size, t.group->threads_in_grid)
MSL_VALUE(grid_origin, (Uint3{(void(t), 0u), 0, 0}))
MSL_VALUE(simdgroups_per_threadgroup, (Uint3{t.group->simdgroups, 0, 0}))
MSL_VALUE(dispatch_simdgroups_per_threadgroup, (Uint3{t.group->simdgroups, 0, 0}))
MSL_VALUE(threads_per_simdgroup, (Uint3{(void(t), kLanes), 0, 0}))
MSL_VALUE(thread_execution_width, (Uint3{(void(t), kLanes), 0, 0}))
#undef MSL_VALUE

// ----- Entries

template <class F, F f, class... Parameters>
struct KernelEntry;
template <class... P, void (*f)(P...), class... Parameters>
struct KernelEntry<void (*)(P...), f, Parameters...> {
  static_assert(sizeof...(P) == sizeof...(Parameters), "one description a parameter");
  static void run(const Thread& thread) { f(Parameters::template get<P>(thread)...); }

  struct Table {
    Argument items[sizeof...(P) + 1];
    unsigned count = 0;
    Table(const char* const* names, const bool* const* enabled) {
      unsigned i = 0;
      bool dummy[] = {false, add<P, Parameters>(names, enabled, i)...};
      (void)dummy;
    }

   private:
    template <class Parameter, class Description>
    bool add(const char* const* names, const bool* const* enabled, unsigned& i) {
      if (Description::template describe<Parameter>(items[count], names[i], enabled[i])) ++count;
      ++i;
      return true;
    }
  };
};

template <class T>
struct ConstantTypeOf {
  static constexpr ConstantType value = ConstantType::other;
};
#define MSL_CONSTANT_TYPE(type, name)                         \
  template <>                                                 \
  struct ConstantTypeOf<type> {                               \
    static constexpr ConstantType value = ConstantType::name; \
  };
MSL_CONSTANT_TYPE(bool, boolean)
MSL_CONSTANT_TYPE(signed char, i8)
MSL_CONSTANT_TYPE(char, i8)
MSL_CONSTANT_TYPE(unsigned char, u8)
MSL_CONSTANT_TYPE(short, i16)
MSL_CONSTANT_TYPE(unsigned short, u16)
MSL_CONSTANT_TYPE(int, i32)
MSL_CONSTANT_TYPE(unsigned int, u32)
MSL_CONSTANT_TYPE(long, i64)
MSL_CONSTANT_TYPE(unsigned long, u64)
MSL_CONSTANT_TYPE(half, f16)
MSL_CONSTANT_TYPE(float, f32)
#undef MSL_CONSTANT_TYPE

}  // namespace msl_host

// Rounds to nearest even; a NaN stays one (quiet). Clang calls it where the CPU has no such
// instruction; those that have one flush subnormals, so it is used everywhere.
extern "C" __attribute__((visibility("hidden"))) inline __bf16 __truncsfbf2(float value) {
  unsigned bits;
  __builtin_memcpy(&bits, &value, 4);
  bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  unsigned rounded = is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  unsigned short upper = (unsigned short)rounded;
  __bf16 out;
  __builtin_memcpy(&out, &upper, 2);
  return out;
}
// Emits the function although only the code generator calls it.
__attribute__((used)) static __bf16 (*const msl_keep_truncsfbf2)(float) = &__truncsfbf2;

#define is_function_constant_defined(name) msl_defined_##name

// Address spaces mean nothing on the host.
#define kernel
#define device
#define constant const
#define thread
#define threadgroup
#define ray_data
#define object_data

#endif
