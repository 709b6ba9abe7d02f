// Which kernel runs a problem, and what the straightforward one is like.
#include "metal/plan.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

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

KernelFacts row_kernel(const SdpaProblem& problem, std::int64_t rows) {
  KernelFacts kernel;
  kernel.kernel = kRowKernels.of(problem.dtype);
  kernel.constants.push_back({SDPA_CONSTANT_GENERAL, true});
  kernel.unit = {SDPA_TILE_Q, 1};
  kernel.block = kernel.threads = SDPA_TILE_Q;
  kernel.rate = kRowKernelRate;
  // Its heads do not share keys, grouped or not.
  kernel.spans = {sdpa_chunk_span_len(rows), kMaxRowSpan, max_spans(problem, kernel.unit), true};
  return kernel;
}

enum class Family { rows, decode, prefill };

/// The one table of choices, for sequences with `rows` query rows in use:
///
///   head dims that tiles_take      rows * Hq / Hkv    every dtype and GPU family
///   no                             any                sdpa
///   yes                            0 to 8             sdpa_decode
///   yes                            9 and more         sdpa_prefill
///
/// Tiles need 32-lane simdgroups and 8x8 matrices: Apple family 7 (M1) and later. A device that
/// reports no such family (a virtual machine's) runs the straightforward kernel unless told.
Family choose_family(const SdpaProblem& problem, std::int64_t rows, const MetalFacts& facts) {
  const std::string& forced = problem.kernel;
  if (forced == "sdpa") return Family::rows;
  const bool tiles = tiles_take(problem);
  const bool few_rows = rows * (problem.n_heads / problem.n_kv_heads) <= kMaxDecodeRows;
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

KernelFacts kernel_for(const SdpaProblem& problem, std::int64_t rows, const MetalFacts& facts) {
  switch (choose_family(problem, rows, facts)) {
    case Family::decode:
      return tile_kernel(problem, rows, false);
    case Family::prefill:
      return tile_kernel(problem, rows, true);
    case Family::rows:
      break;
  }
  return row_kernel(problem, rows);
}

/// Whether both treat a row's keys alike: as the same kernel, in the same spans and by the same
/// number of teams.
bool is_same_way(const KernelFacts& a, const KernelFacts& b) {
  return std::strcmp(a.kernel, b.kernel) == 0 && a.spans.span_len == b.spans.span_len &&
         a.group_split == b.group_split;
}

/// The sequences that one kernel takes.
struct BatchPart {
  KernelFacts kernel;
  std::vector<std::int64_t> sequences;
};

/// Sequences by the kernel that their own rows in use ask for, so that no bit of one depends on the
/// others; those without a row to write are left out.
std::vector<BatchPart> parts_of(const SdpaProblem& problem, const MetalFacts& facts) {
  std::vector<BatchPart> parts;
  std::size_t at = 0;
  std::int64_t last_rows = -1;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t rows = problem.sequence_query_len(b);
    if (rows == 0 && problem.has_packed_queries()) continue;
    if (rows != last_rows) {
      const KernelFacts kernel = kernel_for(problem, rows, facts);
      const auto is_same = [&](const BatchPart& part) { return is_same_way(part.kernel, kernel); };
      at = static_cast<std::size_t>(std::find_if(parts.begin(), parts.end(), is_same) -
                                    parts.begin());
      if (at == parts.size()) parts.push_back({kernel, {}});
      last_rows = rows;
    }
    parts[at].sequences.push_back(b);
  }
  return parts;
}

}  // namespace

Plan plan_metal_sdpa(const SdpaProblem& problem, const MetalFacts& facts) {
  if (problem.query_lengths.empty() && !problem.has_packed_queries()) {
    return plan_steps(problem, facts, kernel_for(problem, problem.sequence_query_len(0), facts));
  }
  Plan plan;
  for (const BatchPart& part : parts_of(problem, facts)) {
    add_steps(problem, part.sequences, facts, part.kernel, plan);
  }
  return plan;
}

}  // namespace metal_sdpa
