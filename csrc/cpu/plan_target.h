// What a plan of the CPU device is made for.
#pragma once

#include "cpu/isa.h"

namespace metal_sdpa::cpu {

struct PlanTarget {
  Isa isa = Isa::baseline;
  int threads = 1;  ///< decides how work is cut into items, never a bit of the result
};

}  // namespace metal_sdpa::cpu
