// What no check may find fault with, though parts of it look like what is forbidden.
#include <metal_simdgroup>
#include <metal_stdlib>

using namespace metal;

// A double, a virtual thing, a new one, throw, goto: words in a comment.
constant float kTable[2] = {1.0f, 2.0f};
constant bool flag [[function_constant(0)]];
constant bool derived = is_function_constant_defined(flag) ? flag : false;

constexpr int tile_size(int n) { return n < 8 ? 8 : n; }

struct Sizes {
  uint rows;
  uint columns[2];
};

struct Pair {
  float2 both;
  float sum() const { return both.x + both.y; }
};

template <typename T>
inline T newer(T x, thread float& doubled) {
  doubled = float(x) * 2.0f;
  return x;
}

inline float member_of(thread const Pair& pair, int index) {
  float parts[2] = {pair.both.x, pair.both.y};
  return parts[index % 2];
}

template <typename T>
kernel void scaled(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                   constant Sizes& constant_sizes [[buffer(2)]],
                   device const Sizes* more [[buffer(30)]],
                   threadgroup float* shared [[threadgroup(0)]],
                   uint i [[thread_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]]) {
  const Sizes sizes = constant_sizes;  // a copy from another address space
  Sizes other = sizes;
  if (derived) other = more[i];
  Pair pair;
  pair.both = float2(x[i], kTable[i % 2]);
  shared[lane] = simd_sum(pair.sum());
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float doubled;
  y[i] = newer(T(shared[31 - lane] + float(other.rows)), doubled);
  y[i] += T(doubled + member_of(pair, int(i)) + float(tile_size(int(sizes.columns[0]))));
}

template [[host_name("scaled_f32")]] kernel void scaled<float>(device const float*, device float*,
                                                               constant Sizes&, device const Sizes*,
                                                               threadgroup float*, uint, uint);
template [[host_name("scaled_f16")]] kernel void scaled<half>(device const half*, device half*,
                                                              constant Sizes&, device const Sizes*,
                                                              threadgroup float*, uint, uint);

// Overloads that call each other downwards do not recur; the host's part is not Metal's.
inline void add_to(thread float& sum, float x) { sum += x; }
inline void add_to(thread float2& sum, float2 x) {
  float first = sum.x, second = sum.y;
  add_to(first, x.x);
  add_to(second, x.y);
  sum = float2(first, second);
}
#ifdef __METAL_VERSION__
typedef uint shared_u32;
#else
#include <cstdint>
typedef std::uint32_t shared_u32;
#endif
