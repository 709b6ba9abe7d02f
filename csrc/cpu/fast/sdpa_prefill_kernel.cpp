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

/// How every sequence is cut where there is no work list: threadgroups (sets of args.group_split
/// rows times parts of the spans, n_kv_heads, batch).
WorkRun even_run(const NativeLaunch& launch) {
  const SdpaArgs& args = args_of(launch);
  WorkRun run{};
  if (work_header(launch) != nullptr) return run;
  const sdpa_i64 n_rows = rows_to_write(args, sequence_of(launch, 0));
  run.set_rows = args.group_split;
  run.n_sets = static_cast<sdpa_u32>((n_rows + run.set_rows - 1) / run.set_rows);
  run.head_counters = run.n_sets;
  run.n_parts = launch.threadgroups.x / run.n_sets;
  run.part_spans = larger<sdpa_u32>((args.n_spans + run.n_parts - 1) / run.n_parts, 1);
  return run;
}

/// All sets of rows take a part of the spans before the next part's turn, because they share its
/// keys in the caches; late rows, which see the most keys of a causal problem, come first, so that
/// short items fill the end of the queue.
PrefillShare share_of(const NativeLaunch& launch, const WorkRun& run, const ItemPlace& place) {
  const SdpaArgs& args = args_of(launch);
  const sdpa_i64 n_rows = rows_to_write(args, sequence_of(launch, place.b));
  const sdpa_i64 set = run.n_sets - 1 - place.index % run.n_sets;
  PrefillShare share;
  share.row_begin = set * run.set_rows;
  share.n_rows = static_cast<int>(smaller<sdpa_i64>(run.set_rows, n_rows - share.row_begin));
  share.span_begin = place.index / run.n_sets * run.part_spans;
  share.n_spans = run.part_spans;
  share.counter = (place.b * args.n_kv_heads + place.kv_h) * run.head_counters + set;
  return share;
}

template <typename T>
void prefill(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const WorkRun even = even_run(launch);
  WorkItems items(launch, work, even);
  for (std::uint64_t i = items.begin(); i < items.end(); ++i) {
    const ItemPlace place = items.place(i);
    PrefillItem<T> item(launch, place.b, place.kv_h, share_of(launch, items.run(), place));
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
