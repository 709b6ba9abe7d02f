// The states of one KV head's rows and spans in scratch memory (span_states.h has the layout).
#pragma once

#include "cpu/fast/launch_view.h"
#include "cpu/fast/prefill_totals.h"
#include "cpu/fast/span_states.h"
#include "cpu/fast/work_items.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

class SpanMemory {
 public:
  /// Without memory where the launch has none bound.
  SpanMemory(const NativeLaunch& launch, const SdpaSequence& sequence, sdpa_i64 b, sdpa_i64 kv_h) {
    const SdpaArgs& args = args_of(launch);
    n_rows_ = rows_to_write(args, sequence);
    slots_ = state_slots(args.value_dim);
    states_ = static_cast<float*>(launch.bindings[SDPA_BUFFER_PARTIAL_O].data);
    done_ = static_cast<std::uint32_t*>(launch.bindings[kBufferSpansDone].data);
    if (states_ == nullptr) return;
    sdpa_i64 n_states = args.n_spans * n_rows_;  // of one KV head
    sdpa_i64 before = b * n_states;
    if (const WorkHeader* work = work_header(launch)) {
      const std::uint64_t* states_before = work_states(work) + b;
      before = static_cast<sdpa_i64>(states_before[0]);
      n_states = static_cast<sdpa_i64>(states_before[1]) - before;
    }
    states_ += (before * args.n_kv_heads + kv_h * n_states) * slots_;
  }

  /// Takes memory for one span of each row instead.
  void place(float* memory) { states_ = memory; }

  /// Slots of row `row` of the KV head, for span `span`, counted from the first
  /// that any row of the sequence sees.
  float* slots_of(sdpa_i64 span, sdpa_i64 row) const {
    return states_ + (span * n_rows_ + row) * slots_;
  }

  void keep(sdpa_i64 span, sdpa_i64 row, const RowState& state, int width) const {
    float* slots = slots_of(span, row);
    slots[kStateMaximum] = state.reference;
    slots[kStateSum] = state.sum;
    for (int d = 0; d < width; d += kLanes) {
      store(slots + kStateNumerators + d, load(state.numerators + d));
    }
  }

  RowState state(sdpa_i64 span, sdpa_i64 row) const {
    const float* slots = slots_of(span, row);
    return {slots[kStateMaximum], slots[kStateSum], slots + kStateNumerators};
  }

  /// The states of a row for `spans` merged in span order, in the memory of `total`.
  RowState merge(sdpa_i64 row, const SpanRange& spans, RowTotal total) const {
    total.reset();
    for (sdpa_i64 span = spans.begin; span < spans.end; ++span) total.merge(state(span, row));
    return total.state();
  }

  /// Counts `n_done` spans whose states are in memory, by counter `counter` of the launch. True for
  /// one caller alone: whoever completes `n_spans`, who may then read the states of all.
  bool is_last(sdpa_i64 counter, sdpa_i64 n_done, sdpa_i64 n_spans) const {
    const auto added = static_cast<std::uint32_t>(n_done);
    return __atomic_add_fetch(done_ + counter, added, __ATOMIC_ACQ_REL) ==
           static_cast<std::uint32_t>(n_spans);
  }

 private:
  float* states_;
  std::uint32_t* done_;
  sdpa_i64 n_rows_;
  sdpa_i64 slots_;
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
