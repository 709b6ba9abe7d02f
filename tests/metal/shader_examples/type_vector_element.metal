// A vector's element by reference.
#include <metal_stdlib>
using namespace metal;

inline void bump(thread float& x) { x += 1.0f; }

// expect: type error non-const reference cannot bind to vector element
kernel void bumps(device float* x [[buffer(0)]]) {
  float2 pair = float2(x[0], x[1]);
  bump(pair.x);
  x[0] = pair.x;
}
