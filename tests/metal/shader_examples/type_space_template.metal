// The same in a template, which is wrong only once it is instantiated.
#include <metal_stdlib>
using namespace metal;

inline void bump(thread float& x) { x += 1.0f; }

// expect: type error no matching function for call to 'bump'
template <typename T>
kernel void bumps(device T* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  bump(x[i]);
}
template [[host_name("bumps_f32")]] kernel void bumps<float>(device float*, uint);
