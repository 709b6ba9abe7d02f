// A store to the constant address space.
#include <metal_stdlib>
using namespace metal;

// expect: type error read-only
kernel void stores(constant float* x [[buffer(0)]]) {
  x[0] = 1.0f;
}
