// Every check on a problem and its memory, once, at the boundary.
#include "core/validation.h"

#include <array>
#include <cmath>

#include "core/layout.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

// Positions up to here leave room for q_start + L in 64 bits.
constexpr std::int64_t kMaxPosition = std::int64_t{1} << 62;

class Checker {
 public:
  explicit Checker(const char* call) : call_(call) {}

  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    fail_argument(call_, ": ", parts...);
  }

  void extent(const char* name, std::int64_t value, std::int64_t least,
              std::int64_t most = INT32_MAX) const {
    if (value >= least && value <= most) return;
    fail(name, ": ", value, ", takes ", least, " to ", most);
  }

  const char* call() const { return call_; }

 private:
  const char* call_;
};

void check_shape(const SdpaProblem& p, const DeviceLimits& limits, const Checker& check) {
  check.extent("batch", p.batch, 0);
  check.extent("n_heads", p.n_heads, 1);
  check.extent("n_kv_heads", p.n_kv_heads, 1);
  check.extent("seq_len", p.seq_len, 0);
  check.extent("kv_capacity", p.kv_capacity, 0);
  check.extent("head_dim", p.head_dim, 1, limits.max_head_dim);
  check.extent("value_dim", p.value_dim, 1, limits.max_head_dim);
  if (p.n_heads % p.n_kv_heads != 0) {
    check.fail("n_heads: ", p.n_heads, " is no multiple of n_kv_heads ", p.n_kv_heads);
  }
}

void check_lengths(const SdpaProblem& p, const Checker& check) {
  const auto one = [&](std::int64_t kv_len) {
    if (kv_len < 0 || kv_len > p.kv_capacity) {
      check.fail("kv_lengths: ", kv_len, ", takes 0 to the ", p.kv_capacity, " rows of k");
    }
  };
  if (p.kv_lengths.empty()) {
    one(p.kv_len);
    return;
  }
  if (static_cast<std::int64_t>(p.kv_lengths.size()) != p.batch) {
    check.fail("kv_lengths: ", p.kv_lengths.size(), " entries, but the batch has ", p.batch);
  }
  for (const std::int64_t kv_len : p.kv_lengths) one(kv_len);
}

void check_starts(const SdpaProblem& p, const Checker& check) {
  const auto one = [&](std::int64_t start) {
    if (start < -kMaxPosition || start > kMaxPosition) {
      check.fail("q_start: ", start, ", takes -2^62 to 2^62");
    }
  };
  if (p.q_start.has_value()) one(*p.q_start);
  if (p.q_starts.empty()) return;
  if (static_cast<std::int64_t>(p.q_starts.size()) != p.batch) {
    check.fail("q_start: ", p.q_starts.size(), " entries, but the batch has ", p.batch);
  }
  for (const std::int64_t start : p.q_starts) one(start);
}

bool is_attention_dtype(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

struct NamedOperand {
  const char* name;
  const Buffer* buffer;
  TensorView view;
  std::uint64_t begin = 0;  ///< addresses of the bytes that the view spans, by check_extent
  std::uint64_t end = 0;
};

TensorView view_of(const SdpaProblem& p, std::int64_t heads, std::int64_t rows, std::int64_t width,
                   const TensorLayout& layout) {
  return {p.batch, heads, rows, width, layout, static_cast<std::int64_t>(dtype_size(p.dtype))};
}

TensorView lse_view(const SdpaProblem& p) {
  TensorLayout packed{0, p.n_heads * p.seq_len, p.seq_len, 1};
  return {p.batch, p.n_heads, p.seq_len, 1, packed, 4};
}

void check_buffer(const NamedOperand& operand, DType wanted, const char* wanted_of,
                  const Backend& backend, const Checker& check) {
  const Buffer& buffer = *operand.buffer;
  if (!buffer.valid()) {
    // There is no Buffer of no bytes, so that an operand without elements needs none.
    if (has_no_element(operand.view)) return;
    check.fail(operand.name, ": the buffer is empty");
  }
  if (buffer.storage()->backend != &backend) {
    check.fail(operand.name, ": the buffer belongs to another device than ",
               device_kind_name(backend.kind()));
  }
  if (buffer.dtype() == wanted) return;
  fail(ErrorCode::unsupported_dtype, check.call(), ": ", operand.name, ": dtype ",
       dtype_name(buffer.dtype()), ", but ", wanted_of, dtype_name(wanted));
}

void check_extent(NamedOperand& operand, const Checker& check) {
  std::int64_t first = 0;
  std::int64_t last = 0;
  if (!element_extent(operand.view, first, last)) {
    if (has_no_element(operand.view)) return;
    check.fail(operand.name, ": its strides reach further than 64 bits count");
  }
  const std::int64_t elements =
      static_cast<std::int64_t>(operand.buffer->byte_len()) / operand.view.element_size;
  if (first < 0 || last >= elements) {
    if (has_no_element(operand.view)) return;
    check.fail(operand.name, ": elements ", first, " to ", last,
               " are touched, but the buffer has ", elements);
  }
  const auto size = static_cast<std::uint64_t>(operand.view.element_size);
  operand.begin = operand.buffer->address() + static_cast<std::uint64_t>(first) * size;
  operand.end = operand.buffer->address() + static_cast<std::uint64_t>(last + 1) * size;
}

/// Spans that lie apart need no look at their rows.
bool operands_overlap(const NamedOperand& a, const NamedOperand& b) {
  if (a.end <= b.begin || b.end <= a.begin) return false;
  return views_overlap(a.view, a.buffer->address(), b.view, b.buffer->address());
}

void check_output(const NamedOperand& output, const std::array<NamedOperand, 3>& inputs,
                  const Checker& check) {
  if (output.buffer->read_only()) check.fail(output.name, ": the buffer is read-only");
  if (overlaps_itself(output.view)) {
    check.fail(output.name, ": its strides make elements overlap each other");
  }
  for (const NamedOperand& input : inputs) {
    if (operands_overlap(output, input)) {
      check.fail(output.name, ": overlaps ", input.name);
    }
  }
}

}  // namespace

void validate_problem(const SdpaProblem& problem, const DeviceLimits& limits, const char* call) {
  const Checker check(call);
  if (!is_attention_dtype(problem.dtype)) {
    fail(ErrorCode::unsupported_dtype, call, ": q: dtype ", dtype_name(problem.dtype),
         ", takes f32, f16 or bf16");
  }
  check_shape(problem, limits, check);
  check_lengths(problem, check);
  check_starts(problem, check);
  if (!std::isfinite(problem.scale)) {
    check.fail("scale: ", problem.scale, ", takes a finite number");
  }
}

void validate_operands(const SdpaProblem& p, const SdpaOperands& operands, const Backend& backend,
                       const char* call) {
  const Checker check(call);
  std::array<NamedOperand, 3> inputs{
      NamedOperand{"q", &operands.q, view_of(p, p.n_heads, p.seq_len, p.head_dim, p.q)},
      NamedOperand{"k", &operands.k, view_of(p, p.n_kv_heads, p.kv_capacity, p.head_dim, p.k)},
      NamedOperand{"v", &operands.v, view_of(p, p.n_kv_heads, p.kv_capacity, p.value_dim, p.v)}};
  NamedOperand out{"output", &operands.out, view_of(p, p.n_heads, p.seq_len, p.value_dim, p.out)};
  for (NamedOperand& input : inputs) {
    check_buffer(input, p.dtype, "q has ", backend, check);
    check_extent(input, check);
  }
  check_buffer(out, p.dtype, "q has ", backend, check);
  check_extent(out, check);
  check_output(out, inputs, check);
  if (!p.return_lse) return;
  NamedOperand lse{"lse", &operands.lse, lse_view(p)};
  check_buffer(lse, DType::f32, "it takes ", backend, check);
  check_extent(lse, check);
  check_output(lse, inputs, check);
  if (operands_overlap(lse, out)) check.fail("lse: overlaps output");
}

}  // namespace metal_sdpa
