// sdpa_decode, compiled once for each instruction set. A work item is one span of one KV head's
// keys with all query rows that read them, so that every byte of K and V comes from memory once.
//
//   scores = scale * Q K^T;  weights = softmax(scores) over the span;  numerators = weights V
//   the state of the span goes to scratch memory
//   the item that comes last merges the states of its KV head in span order:
//     output = numerators / sum
#include "cpu/fast/decode_item.h"
#include "cpu/fast/kernel_tables.h"
#include "cpu/fast/work_items.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {
namespace {

/// Threadgroups (n_spans, n_kv_heads, batch), or those of a work list.
template <typename T>
void decode(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const WorkRun even{};
  WorkItems items(launch, work, even);
  for (std::uint64_t i = items.begin(); i < items.end(); ++i) {
    if (stop.stop_requested()) return;
    const ItemPlace place = items.place(i);
    DecodeItem<T> item(launch, place.b, place.kv_h, place.index);
    item.run(stop);
  }
}

}  // namespace

extern const FamilyKernels kDecode;
const FamilyKernels kDecode{decode<float>, decode<F16>, decode<BF16>};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
