// sdpa_prefill, compiled once for each instruction set. A work item is some query rows of one KV
// head: row r of the head's L * group is query r / group of its head r % group, so that rows that
// see the same keys stand together, and every key that is packed serves the whole group.
//
//   for every span of keys:
//     for every block of the span:
//       pack its keys and values
//       for every tile of rows:  scores = scale * Q K^T;  weights = softmax;  numerators += weights
//       V
//     merge the span's states into the totals
//   output = numerators / sum
//
// Where few rows see many keys the spans are shared out, too: then states go to scratch memory, and
// the item that comes last merges them, in the same order.
#include "cpu/fast/kernel_tables.h"
#include "cpu/fast/prefill_item.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {
namespace {

/// Item `index` of KV head `head` of the launch. All sets of rows take a part of the spans before
/// the next part's turn, because they share its keys in the caches; late rows, which see the most
/// keys of a causal problem, come first, so that short items fill the end of the queue.
PrefillShare share_of(const NativeLaunch& launch, sdpa_i64 head, sdpa_i64 index) {
  const SdpaArgs& args = args_of(launch);
  const sdpa_i64 n_rows = sdpa_i64{args.seq_len} * (args.n_heads / args.n_kv_heads);
  const sdpa_i64 set_rows = args.group_split;
  const sdpa_i64 n_sets = (n_rows + set_rows - 1) / set_rows;
  const sdpa_i64 n_parts = launch.threadgroups.x / n_sets;
  const sdpa_i64 n_spans = (args.n_spans + n_parts - 1) / n_parts;
  const sdpa_i64 set = n_sets - 1 - index % n_sets;
  PrefillShare share;
  share.row_begin = set * set_rows;
  share.n_rows = static_cast<int>(smaller(set_rows, n_rows - share.row_begin));
  share.span_begin = index / n_sets * n_spans;
  share.n_spans = larger<sdpa_i64>(n_spans, 1);
  share.counter = head * n_sets + set;
  return share;
}

/// Threadgroups (sets of args.group_split rows times parts of the spans, n_kv_heads, batch).
template <typename T>
void prefill(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const GridSize& grid = launch.threadgroups;
  for (std::uint64_t group = work.begin; group < work.end; ++group) {
    const auto head = static_cast<sdpa_i64>(group / grid.x);
    PrefillItem<T> item(launch, head / grid.y, head % grid.y,
                        share_of(launch, head, static_cast<sdpa_i64>(group % grid.x)));
    if (!item.run(stop)) return;
  }
}

}  // namespace

extern const FamilyKernels kPrefill;
#if defined(METAL_SDPA_HAS_AMX)
const FamilyKernels kPrefill{nullptr, nullptr, prefill<BF16>};  // the others are those of avx512
#else
const FamilyKernels kPrefill{prefill<float>, prefill<F16>, prefill<BF16>};
#endif

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
