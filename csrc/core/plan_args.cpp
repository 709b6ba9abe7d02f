// Argument blocks, bindings and ranges of plan steps.
#include "core/plan_args.h"

#include <algorithm>
#include <cstring>

#include "core/layout.h"

namespace metal_sdpa {
namespace {

/// A stride that no second index uses may be any number: kernels, which also look ahead of the rows
/// they read, get 0 for it.
SdpaStrides strides_of(const SdpaProblem& problem, std::int64_t heads, std::int64_t rows,
                       const TensorLayout& layout) {
  return {problem.batch > 1 ? layout.batch_stride : 0, heads > 1 ? layout.head_stride : 0,
          rows > 1 ? layout.row_stride : 0};
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& items) {
  std::vector<std::byte> bytes(items.size() * sizeof(T));
  std::memcpy(bytes.data(), items.data(), bytes.size());
  return bytes;
}

std::vector<SdpaSequence> sequences_of(const SdpaProblem& problem) {
  std::vector<SdpaSequence> sequences;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    sequences.push_back({problem.sequence_q_start(b), problem.sequence_kv_len(b)});
  }
  return sequences;
}

/// Bytes that a view touches, as a range of its operand. The problem has been validated.
PlanRange range_of(const SdpaProblem& problem, PlanOperand operand, std::int64_t heads,
                   std::int64_t rows, std::int64_t width, const TensorLayout& layout) {
  const std::int64_t size = static_cast<std::int64_t>(dtype_size(problem.dtype));
  const TensorView view{problem.batch, heads, rows, width, layout, size};
  std::int64_t first = 0;
  std::int64_t last = 0;
  if (rows == 0) return {operand, 0, 0};  // k and v of no keys
  if (!element_extent(view, first, last)) return {operand, 0, 0};
  return {operand, static_cast<std::uint64_t>(first * size),
          static_cast<std::uint64_t>((last - first + 1) * size)};
}

}  // namespace

const char* DTypeNames::of(DType dtype) const {
  if (dtype == DType::f16) return f16;
  if (dtype == DType::bf16) return bf16;
  return f32;
}

std::int64_t longest_kv_len(const SdpaProblem& problem) {
  if (problem.kv_lengths.empty()) return problem.kv_len;
  return *std::max_element(problem.kv_lengths.begin(), problem.kv_lengths.end());
}

double visible_pairs(const SdpaProblem& problem, std::int64_t b) {
  const double kv_len = static_cast<double>(problem.sequence_kv_len(b));
  const double rows = static_cast<double>(problem.seq_len);
  if (!problem.causal) return rows * kv_len;
  const double first = static_cast<double>(problem.sequence_q_start(b)) + 1;  // keys of query 0
  const double empty = std::clamp(-first, 0.0, rows);
  const double full = std::clamp(first + rows - kv_len, 0.0, rows - empty);
  const double partial = rows - empty - full;
  return full * kv_len + partial * (first + empty) + partial * (partial - 1) / 2;
}

std::int64_t visible_keys(const SdpaProblem& problem, std::int64_t b) {
  const std::int64_t keys = problem.sequence_kv_len(b);
  if (!problem.causal) return keys;
  return std::clamp<std::int64_t>(problem.sequence_q_start(b) + problem.seq_len, 0, keys);
}

double visible_pairs(const SdpaProblem& problem) {
  double pairs = 0;
  if (!problem.per_sequence())
    return visible_pairs(problem, 0) * static_cast<double>(problem.batch);
  for (std::int64_t b = 0; b < problem.batch; ++b) pairs += visible_pairs(problem, b);
  return pairs;
}

SdpaArgs sdpa_args(const SdpaProblem& problem, std::uint32_t span_len) {
  SdpaArgs args{};
  args.q_stride = strides_of(problem, problem.n_heads, problem.seq_len, problem.q);
  args.k_stride = strides_of(problem, problem.n_kv_heads, problem.kv_capacity, problem.k);
  args.v_stride = strides_of(problem, problem.n_kv_heads, problem.kv_capacity, problem.v);
  args.out_stride = strides_of(problem, problem.n_heads, problem.seq_len, problem.out);
  args.q_offset = problem.q.offset;
  args.k_offset = problem.k.offset;
  args.v_offset = problem.v.offset;
  args.out_offset = problem.out.offset;
  args.q_start = problem.sequence_q_start(0);
  args.kv_len = problem.sequence_kv_len(0);
  args.batch = static_cast<sdpa_u32>(problem.batch);
  args.n_heads = static_cast<sdpa_u32>(problem.n_heads);
  args.n_kv_heads = static_cast<sdpa_u32>(problem.n_kv_heads);
  args.seq_len = static_cast<sdpa_u32>(problem.seq_len);
  args.head_dim = static_cast<sdpa_u32>(problem.head_dim);
  args.value_dim = static_cast<sdpa_u32>(problem.value_dim);
  args.scale = problem.scale;
  args.causal = problem.causal ? 1 : 0;
  args.span_len = span_len;
  args.n_spans = static_cast<sdpa_u32>((longest_kv_len(problem) + span_len - 1) / span_len);
  args.row_end = args.seq_len;
  args.head_end = args.n_heads;
  args.span_end = args.n_spans;
  return args;
}

void bind_sdpa_args(const SdpaProblem& problem, const SdpaArgs& args, PlanStep& step) {
  step.args.index = SDPA_BUFFER_ARGS;
  step.args.bytes.assign(reinterpret_cast<const std::byte*>(&args), sizeof(args));
  if (!problem.per_sequence()) return;
  step.sequences.index = SDPA_BUFFER_SEQUENCES;
  step.sequences.bytes =
      std::make_shared<const std::vector<std::byte>>(bytes_of(sequences_of(problem)));
  step.constants.push_back({SDPA_CONSTANT_SEQUENCES, true});
}

void bind_sdpa_outputs(const SdpaProblem& problem, PlanStep& step) {
  step.bindings.push_back({SDPA_BUFFER_OUT, PlanOperand::out});
  step.writes.push_back(range_of(problem, PlanOperand::out, problem.n_heads, problem.seq_len,
                                 problem.value_dim, problem.out));
  if (!problem.return_lse) return;
  step.bindings.push_back({SDPA_BUFFER_LSE, PlanOperand::lse});
  step.constants.push_back({SDPA_CONSTANT_LSE, true});
  const auto rows = static_cast<std::uint64_t>(problem.batch * problem.n_heads * problem.seq_len);
  step.writes.push_back({PlanOperand::lse, 0, rows * sizeof(float)});
}

void bind_sdpa_inputs(const SdpaProblem& problem, PlanStep& step) {
  step.bindings.push_back({SDPA_BUFFER_Q, PlanOperand::q});
  step.bindings.push_back({SDPA_BUFFER_K, PlanOperand::k});
  step.bindings.push_back({SDPA_BUFFER_V, PlanOperand::v});
  step.reads.push_back(range_of(problem, PlanOperand::q, problem.n_heads, problem.seq_len,
                                problem.head_dim, problem.q));
  step.reads.push_back(range_of(problem, PlanOperand::k, problem.n_kv_heads, problem.kv_capacity,
                                problem.head_dim, problem.k));
  step.reads.push_back(range_of(problem, PlanOperand::v, problem.n_kv_heads, problem.kv_capacity,
                                problem.value_dim, problem.v));
}

void bind_sdpa_operands(const SdpaProblem& problem, PlanStep& step) {
  bind_sdpa_inputs(problem, step);
  bind_sdpa_outputs(problem, step);
}

}  // namespace metal_sdpa
