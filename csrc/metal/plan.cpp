// Which kernel runs a problem, and its plan where that is the straightforward one.
#include "metal/plan.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/plan_args.h"
#include "core/text.h"
#include "metal/plan_tiles.h"
#include "metal/work_estimate.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa {
namespace {

constexpr DTypeNames kRowKernels{"sdpa", "sdpa_f16", "sdpa_bf16"};

/// What the straightforward kernel is sure to reach on the smallest GPU (7-core M1), used only to
/// cut dispatches: one percent of the f32 peak, which it reached on the GPU it was measured on.
constexpr double kRowFlopsPerSecond = 2e10;

/// Query rows under one KV head that still are one tile of sdpa_decode.
constexpr std::int64_t kMaxDecodeRows = 8;
constexpr int kFirstTileFamily = 7;

/// The straightforward kernel keeps one state a row, with compensated sums.
std::uint32_t span_of_rows(const SdpaProblem& problem) {
  return static_cast<std::uint32_t>(std::max<std::int64_t>(longest_kv_len(problem), 1));
}

PlanStep row_step(const SdpaProblem& problem, const WorkBox& box) {
  PlanStep step;
  step.kernel = kRowKernels.of(problem.dtype);
  step.constants.push_back({SDPA_CONSTANT_GENERAL, true});
  SdpaArgs args = sdpa_args(problem, span_of_rows(problem));
  put_work(box, args);
  step.threadgroups = {
      static_cast<std::uint32_t>(box.batch_end - box.batch_begin),
      static_cast<std::uint32_t>(box.head_end - box.head_begin),
      static_cast<std::uint32_t>((box.row_end - box.row_begin + SDPA_TILE_Q - 1) / SDPA_TILE_Q)};
  step.threadgroup_size = {SDPA_TILE_Q, 1, 1};
  step.flops = work_flops(problem, box);
  // The ranges are those of the whole problem: cut plans get a barrier between their dispatches,
  // which each last long enough for that not to matter.
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  return step;
}

Plan plan_rows(const SdpaProblem& problem, const MetalFacts& facts) {
  Plan plan;
  plan.span_len = span_of_rows(problem);
  const double max_flops = kRowFlopsPerSecond * facts.max_dispatch_seconds;
  for (const WorkBox& box : cut_work(problem, {SDPA_TILE_Q, 1}, max_flops)) {
    plan.steps.push_back(row_step(problem, box));
  }
  return plan;
}

enum class Family { rows, decode, prefill };

/// The one table of choices:
///
///   head dims that tiles_take      L * Hq / Hkv    every dtype and GPU family
///   no                             any             sdpa
///   yes                            1 to 8          sdpa_decode
///   yes                            9 and more      sdpa_prefill
///
/// Tiles need 32-lane simdgroups and 8x8 matrices: Apple family 7 (M1) and later. A device that
/// reports no such family (a virtual machine's) runs the straightforward kernel unless told.
Family choose_family(const SdpaProblem& problem, const MetalFacts& facts) {
  const std::string& forced = problem.kernel;
  if (forced == "sdpa") return Family::rows;
  const bool tiles = tiles_take(problem);
  const bool few_rows = problem.seq_len * (problem.n_heads / problem.n_kv_heads) <= kMaxDecodeRows;
  if (forced.empty()) {
    const bool able = facts.apple_family >= kFirstTileFamily;
    if (!tiles || !able) return Family::rows;
    return few_rows ? Family::decode : Family::prefill;
  }
  if (tiles && forced == "sdpa_decode") return Family::decode;
  if (tiles && forced == "sdpa_prefill") return Family::prefill;
  fail_argument("plan_sdpa: kernel: \"", forced,
                "\" does not take this problem on the metal device");
}

}  // namespace

Plan plan_metal_sdpa(const SdpaProblem& problem, const MetalFacts& facts) {
  switch (choose_family(problem, facts)) {
    case Family::decode:
      return plan_tiles(problem, facts, false);
    case Family::prefill:
      return plan_tiles(problem, facts, true);
    case Family::rows:
      break;
  }
  return plan_rows(problem, facts);
}

}  // namespace metal_sdpa
