// Which kernel runs a problem, and what the straightforward one is like.
#include "metal/plan.h"

#include <string>

#include "core/plan_args.h"
#include "core/text.h"
#include "metal/plan_steps.h"
#include "metal/plan_tiles.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa {
namespace {

constexpr DTypeNames kRowKernels{"sdpa", "sdpa_f16", "sdpa_bf16"};

/// Query rows under one KV head that still are one tile of sdpa_decode.
constexpr std::int64_t kMaxDecodeRows = 8;
constexpr int kFirstTileFamily = 7;

/// Keys that a thread of the straightforward kernel goes through alone at most: its sums are
/// compensated, but each key waits for the one before.
constexpr std::int64_t kMaxRowSpan = 2048;

KernelFacts row_kernel(const SdpaProblem& problem) {
  KernelFacts kernel;
  kernel.kernel = kRowKernels.of(problem.dtype);
  kernel.constants.push_back({SDPA_CONSTANT_GENERAL, true});
  kernel.unit = {SDPA_TILE_Q, 1};
  kernel.block = kernel.threads = SDPA_TILE_Q;
  kernel.rate = kRowKernelRate;
  // Its heads do not share keys, grouped or not.
  kernel.spans = {sdpa_chunk_span_len(problem.seq_len), kMaxRowSpan,
                  max_spans(problem, kernel.unit), true};
  return kernel;
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
      return plan_steps(problem, facts, tile_kernel(problem, false));
    case Family::prefill:
      return plan_steps(problem, facts, tile_kernel(problem, true));
    case Family::rows:
      break;
  }
  return plan_steps(problem, facts, row_kernel(problem));
}

}  // namespace metal_sdpa
