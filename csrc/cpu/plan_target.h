// What a plan of the CPU device is made for.
#pragma once

#include "cpu/isa.h"

namespace metal_sdpa::cpu {

/// Waking a worker pays from about 20 us of work; one thread does some 2e4 multiply-adds in 1 us.
constexpr double kFlopsPerThread = 1e6;

struct PlanTarget {
  Isa isa = Isa::baseline;
  int threads = 1;  ///< decides how work is cut into items, never a bit of the result
};

}  // namespace metal_sdpa::cpu
