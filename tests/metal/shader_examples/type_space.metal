// A device pointer where one of the thread's own is taken.
#include <metal_stdlib>
using namespace metal;

inline float first(thread const float* x) { return x[0]; }

// expect: type error no matching function for call to 'first'
kernel void copies(device const float* x [[buffer(0)]], device float* y [[buffer(1)]]) {
  y[0] = first(x);
}
