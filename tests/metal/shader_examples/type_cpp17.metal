// C++17: MSL before Metal 4 is C++14.
#include <metal_stdlib>
using namespace metal;

// expect: type error C++17 extension
kernel void branches(device float* x [[buffer(0)]]) {
  if constexpr (sizeof(float) == 4) x[0] = 1.0f;
}
