// Threadgroup memory seen through a device pointer.
#include <metal_stdlib>
using namespace metal;

// expect: type error cannot initialize a variable of type
kernel void leaks(device float* x [[buffer(0)]], threadgroup float* shared [[threadgroup(0)]]) {
  device float* y = shared;
  x[0] = y[0];
}
