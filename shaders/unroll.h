// Loops whose arrays must stay in registers.
#ifndef METAL_SDPA_UNROLL_H
#define METAL_SDPA_UNROLL_H

#define SDPA_UNROLL _Pragma("clang loop unroll(full)")

#endif  // METAL_SDPA_UNROLL_H
