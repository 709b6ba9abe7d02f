// What the lint of check_shaders.py must find, each at its line.
#include <metal_stdlib>
#include <cmath>  // expect: standard header

using namespace metal;

float total = 0.0f;          // expect: mutable global
static int counts[4];        // expect: mutable global
constant float scale = 2.0f;

namespace inner {
device float* last;  // expect: mutable global
}

struct Shape {
  virtual float area() const;  // expect: virtual
};

inline float wide(float x) {
  double y = x;  // expect: double
  return float(y);
}

inline float applied(float x) {
  const auto twice = [](float v) { return v + v; };  // expect: lambda
  return twice(x);
}

inline int factorial(int n) {  // expect: recursion
  return n < 2 ? 1 : n * factorial(n - 1);
}

inline int odd(int n);
inline int even(int n) { return n == 0 ? 1 : odd(n - 1); }  // expect: recursion
inline int odd(int n) { return n == 0 ? 0 : even(n - 1); }  // expect: recursion

inline float chosen(float (*f)(float), float x) { return f(x); }  // expect: function pointer
inline float given(float (&f)(float), float x) { return f(x); }   // expect: function reference

inline void allocate() {
  int* x = new int[4];  // expect: new or delete
  delete[] x;           // expect: new or delete
}

inline void fail(int x) {
  if (x < 0) throw x;  // expect: exception
  if (x > 9) goto end;  // expect: goto
  thread_local int kept = 0;  // expect: thread_local
  asm("nop");  // expect: inline assembly
end:
  return;
}

inline int type_of(thread Shape* shape) {
  return dynamic_cast<thread Shape*>(shape) != nullptr;  // expect: run-time type
}

inline float root(float x) { return std::sqrt(x); }  // expect: standard library

inline int many(int n, ...) {  // expect: variadic function
  return n;
}

#define OUTPUT 31
kernel void outputs(device float* x [[buffer(30)]],
                    device float* y [[buffer(OUTPUT)]]) {  // expect: buffer index
  x[0] = y[0] * scale;
}
