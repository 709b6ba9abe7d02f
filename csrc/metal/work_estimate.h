// How much arithmetic a part of a problem is, for cutting long plans.
#pragma once

#include <cstdint>
#include <vector>

#include "metal_sdpa/sdpa.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa {

/// A part of a problem: some sequences, some query heads, some rows.
struct WorkBox {
  std::int64_t batch_begin = 0, batch_end = 0;
  std::int64_t head_begin = 0, head_end = 0;
  std::int64_t row_begin = 0, row_end = 0;
};

/// All of the problem.
WorkBox whole_work(const SdpaProblem& problem);

/// Floating-point operations of the box; 2 for a multiply-add, over the D products of a score and
/// the Dv products of its value.
double work_flops(const SdpaProblem& problem, const WorkBox& box);

/// Makes the rest of the argument block that of the box.
void put_work(const WorkBox& box, SdpaArgs& args);

/// What a kernel cannot cut: rows of one tile, and query heads that it takes together.
struct WorkUnit {
  std::int64_t rows = 1;
  std::int64_t heads = 1;
};

/// Boxes of at most `max_flops` that make up the problem, where they can be cut so far: between
/// tiles of rows first, then between sequences, then between heads.
std::vector<WorkBox> cut_work(const SdpaProblem& problem, const WorkUnit& unit, double max_flops);

}  // namespace metal_sdpa
