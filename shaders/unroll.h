// Loops whose arrays must stay in registers, and loops that hardly ever run, whose code is to be
// small.
#ifndef METAL_SDPA_UNROLL_H
#define METAL_SDPA_UNROLL_H

#define SDPA_UNROLL _Pragma("clang loop unroll(full)")
#define SDPA_ROLLED _Pragma("clang loop unroll(disable)")

#endif  // METAL_SDPA_UNROLL_H
