// Ways of a problem through the public API.
#include "runs.h"

#include "report.h"

namespace metal_sdpa::fuzz {
namespace {

void encode_case(const FuzzCase& c, const Device& device, const SdpaOperands& x) {
  const KernelRegistry registry(device);
  CommandEncoder encoder = device.command_encoder();
  encode_sdpa(encoder, registry, device, x, c.problem);
  if (c.way == Way::encoded) {
    encoder.commit_and_wait();
    return;
  }
  encode_sdpa(encoder, registry, device, x, c.problem);
  encoder.commit();
  encoder.wait_until_completed();
}

void replay_case(const FuzzCase& c, const Device& device, const SdpaOperands& x) {
  const bool is_updated = c.way == Way::updated && c.problem.kv_lengths.empty();
  SdpaProblem recorded = c.problem;
  if (is_updated) recorded.kv_len = c.recorded_kv_len;
  const KernelRegistry registry(device);
  CommandEncoder encoder = device.command_encoder();
  encoder.begin_capture();
  encode_sdpa(encoder, registry, device, x, recorded);
  if (c.seed % 2 == 0) encoder.memory_barrier();
  Graph graph = encoder.end_capture();
  if (c.way == Way::captured) return;
  if (is_updated && c.seed % 3 != 0) graph.update(0, c.problem.kv_len);
  if (is_updated && c.seed % 3 == 0) graph.update(0, static_cast<const Visibility&>(c.problem));
  graph.reorder();
  graph.replay(encoder);
  graph.replay(encoder);
  encoder.commit_and_wait();
}

void run_way(const FuzzCase& c, const Device& device, const SdpaOperands& x) {
  switch (c.way) {
    case Way::direct:
      return sdpa(device, x, c.problem);
    case Way::encoded:
    case Way::committed:
      return encode_case(c, device, x);
    case Way::replayed:
    case Way::updated:
    case Way::captured:
      return replay_case(c, device, x);
  }
}

void poison_unused_keys(const FuzzCase& c, MemoryBlock& block, const TensorLayout& layout,
                        std::int64_t width) {
  const SdpaProblem& p = c.problem;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_kv_heads; ++h) {
      for (std::int64_t j = 0; j < p.kv_capacity; ++j) {
        if (j >= p.sequence_kv_start(b) && j < p.sequence_kv_len(b)) continue;
        for (std::int64_t d = 0; d < width; ++d) {
          block.set_nan(layout.offset + (p.batch > 1 ? b * layout.batch_stride : 0) +
                        (p.n_kv_heads > 1 ? h * layout.head_stride : 0) +
                        (p.kv_capacity > 1 ? j * layout.row_stride : 0) + d);
        }
      }
    }
  }
}

/// A third of a boolean mask's elements are False, some of an additive one's -inf.
void hide_some_keys(MemoryBlock& mask, std::mt19937& rng) {
  const bool is_boolean = mask.element_size() == 1;
  if (!is_boolean) mask.fill(Values::normal, rng);
  for (std::int64_t i = 0; i < mask.elements(); ++i) {
    const auto draw = rng();
    if (is_boolean) mask.set_byte(i, draw % 3 == 0 ? 0 : static_cast<std::uint8_t>(draw | 1));
    if (!is_boolean && draw % 5 == 0) mask.set_hidden(i);
  }
}

/// With a broadcast axis an unused slot may be another's used one.
bool has_broadcast(const TensorLayout& layout) {
  return layout.batch_stride == 0 || layout.head_stride == 0 || layout.row_stride == 0;
}

}  // namespace

CaseMemory::CaseMemory(const FuzzCase& c)
    : q(c.blocks[0], c.dtype),
      k(c.blocks[1], c.dtype),
      v(c.blocks[2], c.dtype),
      out(c.blocks[3], c.problem.out_f32 ? DType::f32 : c.dtype),
      lse(c.blocks[4], DType::f32),
      mask(c.blocks[5], c.problem.mask.value_or(MaskLayout{}).dtype),
      sinks(c.blocks[6], c.problem.sinks.value_or(HeadLayout{}).dtype),
      slopes(c.blocks[7], DType::f32) {}

SdpaOperands CaseMemory::operands(const Device& device, bool with_lse) const {
  return {q.buffer(device),
          k.buffer(device),
          v.buffer(device),
          out.buffer(device),
          with_lse ? lse.buffer(device) : Buffer(),
          mask.buffer(device),
          sinks.buffer(device),
          slopes.buffer(device)};
}

void CaseMemory::clear_results() {
  out.fill_pattern();
  lse.fill_pattern();
}

void fill_inputs(const FuzzCase& c, CaseMemory& memory) {
  std::mt19937 rng(c.seed);
  memory.q.fill(c.values, rng);
  memory.k.fill(c.values, rng);
  memory.v.fill(c.v_values, rng);
  memory.sinks.fill(Values::normal, rng);
  memory.slopes.fill(Values::normal, rng);
  hide_some_keys(memory.mask, rng);
  if (c.is_hostile) return;
  const SdpaProblem& p = c.problem;
  if (!has_broadcast(p.k)) poison_unused_keys(c, memory.k, p.k, p.head_dim);
  if (!has_broadcast(p.v)) poison_unused_keys(c, memory.v, p.v, p.value_dim);
}

std::string run_case(const FuzzCase& c, const Device& device, const SdpaOperands& operands) {
  try {
    run_way(c, device, operands);
  } catch (const Error& error) {
    const std::string text = error.what();
    const bool is_late =
        error.code() == ErrorCode::command_buffer || error.code() == ErrorCode::interrupted;
    if (is_late) fail_case("refused when it ran, not before: " + text);
    if (text.find(": ") == std::string::npos) fail_case("the error names nothing: " + text);
    return text;
  }
  return {};
}

}  // namespace metal_sdpa::fuzz
