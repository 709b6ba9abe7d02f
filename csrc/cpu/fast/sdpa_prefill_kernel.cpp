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
#include "cpu/fast/kernel_tables.h"
#include "cpu/fast/prefill_item.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {
namespace {

/// Threadgroups (items of args.group_split rows, n_kv_heads, batch). Items of one KV head follow
/// each other, because they share its keys in the caches; late rows, which see the most keys of a
/// causal problem, come first, so that short items fill the end of the queue.
template <typename T>
void prefill(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const SdpaArgs& args = args_of(launch);
  const std::uint64_t n_rows = std::uint64_t{args.seq_len} * (args.n_heads / args.n_kv_heads);
  const GridSize& grid = launch.threadgroups;
  for (std::uint64_t group = work.begin; group < work.end; ++group) {
    const std::uint64_t index = grid.x - 1 - group % grid.x;
    const std::uint64_t begin = index * args.group_split;
    const std::uint64_t end = smaller<std::uint64_t>(begin + args.group_split, n_rows);
    PrefillItem<T> item(launch, static_cast<sdpa_i64>(group / grid.x / grid.y),
                        static_cast<sdpa_i64>(group / grid.x % grid.y),
                        static_cast<sdpa_i64>(begin), static_cast<int>(end - begin));
    if (!item.run(stop)) return;
  }
}

}  // namespace

extern const FamilyKernels kPrefill;
const FamilyKernels kPrefill{prefill<float>, prefill<F16>, prefill<BF16>};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
