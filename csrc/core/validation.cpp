// Every check on a problem and its memory, once, at the boundary.
#include "core/validation.h"

#include <algorithm>
#include <cmath>

#include "core/band.h"
#include "core/half.h"
#include "core/layout.h"
#include "core/operands.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

// Positions up to here leave room for q_start + L in 64 bits.
constexpr std::int64_t kMaxPosition = std::int64_t{1} << 62;
// Offsets and strides of keys up to here leave room for their sums with positions.
constexpr std::int64_t kMaxKeyPosition = std::int64_t{1} << 60;

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

bool is_attention_dtype(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

/// Calls check_one with one number for all sequences, or with each of the batch's.
template <typename CheckOne>
void for_sequences(const char* name, std::int64_t one, const std::vector<std::int64_t>& each,
                   const SdpaProblem& p, const Checker& check, const CheckOne& check_one) {
  if (each.empty()) {
    check_one(one);
    return;
  }
  if (static_cast<std::int64_t>(each.size()) != p.batch) {
    check.fail(name, ": ", each.size(), " entries, but the batch has ", p.batch);
  }
  for (const std::int64_t value : each) check_one(value);
}

void check_rows(const char* name, std::int64_t one, const std::vector<std::int64_t>& each,
                std::int64_t rows, const char* tensor, const SdpaProblem& p, const Checker& check) {
  for_sequences(name, one, each, p, check, [&](std::int64_t value) {
    if (value >= 0 && value <= rows) return;
    check.fail(name, ": ", value, ", takes 0 to the ", rows, " rows of ", tensor);
  });
}

void check_lengths(const SdpaProblem& p, const Checker& check) {
  check_rows("kv_lengths", p.kv_len, p.kv_lengths, p.kv_capacity, "k", p, check);
  check_rows("kv_starts", p.kv_start, p.kv_starts, p.kv_capacity, "k", p, check);
  check_rows("query_lengths", p.query_len.value_or(0), p.query_lengths, p.seq_len, "q", p, check);
  for_sequences("q_start", p.q_start.value_or(0), p.q_starts, p, check, [&](std::int64_t value) {
    if (value >= -kMaxPosition && value <= kMaxPosition) return;
    check.fail("q_start: ", value, ", takes -2^62 to 2^62");
  });
}

/// Rows of packed sequences: each its own, in order.
void check_packed_queries(const SdpaProblem& p, const Checker& check) {
  if (!p.has_packed_queries()) return;
  check.extent("q_total", p.q_total, 0);
  std::int64_t end = 0;
  std::int64_t b = 0;
  for_sequences("q_rows", 0, p.q_rows, p, check, [&](std::int64_t first) {
    const std::int64_t rows = p.sequence_query_len(b);
    if (first < end || first > p.q_total - rows) {
      check.fail("q_rows: ", first, " of sequence ", b, " with ", rows, " rows, takes ", end,
                 " to ", p.q_total - rows);
    }
    end = first + rows;
    ++b;
  });
}

void check_packed_keys(const SdpaProblem& p, const Checker& check) {
  if (!p.has_packed_keys()) return;
  if (p.pages.has_value()) check.fail("kv_rows: are given, and so are pages");
  check.extent("kv_total", p.kv_total, 0);
  std::int64_t b = 0;
  for_sequences("kv_rows", 0, p.kv_rows, p, check, [&](std::int64_t first) {
    const std::int64_t rows = p.sequence_kv_len(b);
    if (first < 0 || first > p.kv_total - rows) {
      check.fail("kv_rows: ", first, " of sequence ", b, " with ", rows, " rows, takes 0 to ",
                 p.kv_total - rows);
    }
    ++b;
  });
}

void check_pages(const SdpaProblem& p, const Checker& check) {
  if (!p.pages.has_value()) return;
  const PageTable& pages = *p.pages;
  if (pages.dtype != DType::i32 && pages.dtype != DType::i64) {
    fail(ErrorCode::unsupported_dtype, check.call(), ": block_table: dtype ",
         dtype_name(pages.dtype), ", takes i32 or i64");
  }
  check.extent("page_len", pages.page_len, 1);
  check.extent("n_pages", pages.n_pages, 0);
  check.extent("n_entries", pages.n_entries, 0);
  for_sequences("starts", 0, pages.starts, p, check, [&](std::int64_t first) {
    if (first < 0 || first > pages.n_entries) {
      check.fail("starts: ", first, ", takes 0 to the ", pages.n_entries, " entries");
    }
  });
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const std::int64_t first = pages.starts.empty() ? 0 : pages.starts[static_cast<std::size_t>(b)];
    const std::int64_t slots = (pages.n_entries - first) * pages.page_len;
    if (p.sequence_kv_len(b) > 0 && pages.n_pages == 0) {
      check.fail("kv_lengths: ", p.sequence_kv_len(b), " of sequence ", b,
                 ", but there are no pages");
    }
    if (p.sequence_kv_len(b) <= slots) continue;
    check.fail("kv_lengths: ", p.sequence_kv_len(b), " of sequence ", b, ", takes 0 to the ", slots,
               " slots of its pages");
  }
}

void check_window(const SdpaProblem& p, const Checker& check) {
  const auto side = [&](const char* name, std::int64_t value) {
    if (value < Visibility::kUnlimited) {
      check.fail("window: ", name, " ", value, ", takes 0 or more, or -1 for unlimited");
    }
  };
  side("left", p.window_left);
  side("right", p.window_right);
  if (p.key_offset == 0 && p.key_stride == 1) return;
  if (p.key_offset < -kMaxKeyPosition || p.key_offset > kMaxKeyPosition) {
    check.fail("key_offset: ", p.key_offset, ", takes -2^60 to 2^60");
  }
  if (p.key_stride < 1 ||
      p.key_stride > kMaxKeyPosition / std::max<std::int64_t>(p.kv_capacity, 1)) {
    check.fail("key_stride: ", p.key_stride, ", takes 1 to 2^60 / ", p.kv_capacity, " keys");
  }
  if (!p.q_start.has_value() && p.q_starts.empty()) {
    check.fail("q_start: is not given, and has to be with key_offset or key_stride");
  }
}

void check_scores(const SdpaProblem& p, const Checker& check) {
  if (!std::isfinite(p.scale)) check.fail("scale: ", p.scale, ", takes a finite number");
  if (!(p.softcap >= 0 && std::isfinite(p.softcap))) {
    check.fail("softcap: ", p.softcap, ", takes a finite number above 0, or 0 for none");
  }
  if (p.mask.has_value() && p.mask->dtype != DType::u8 && !is_attention_dtype(p.mask->dtype)) {
    fail(ErrorCode::unsupported_dtype, check.call(), ": mask: dtype ", dtype_name(p.mask->dtype),
         ", takes u8 (boolean), f32, f16 or bf16");
  }
  if (p.alibi_slopes.has_value() && p.alibi_slopes->dtype != DType::f32) {
    fail(ErrorCode::unsupported_dtype, check.call(), ": alibi_slopes: dtype ",
         dtype_name(p.alibi_slopes->dtype), ", takes f32");
  }
  if (!p.sinks.has_value()) return;
  if (p.sinks->dtype != DType::f32 && p.sinks->dtype != p.dtype) {
    fail(ErrorCode::unsupported_dtype, check.call(), ": sinks: dtype ", dtype_name(p.sinks->dtype),
         ", takes f32 or q's dtype");
  }
  if (p.sinks->batch_stride != 0) {
    check.fail("sinks: batch_stride: ", p.sinks->batch_stride, ", takes 0");
  }
}

struct NamedOperand {
  const char* name;
  const Buffer* buffer;
  TensorView view;
  bool is_output = false;
  std::uint64_t begin = 0;  ///< addresses of the bytes that the view spans, by check_extent
  std::uint64_t end = 0;
};

using NamedOperands = InlineVector<NamedOperand, kOperands>;

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

/// An operand whose buffer fits the problem.
NamedOperand named_operand(const SdpaProblem& p, const OperandInfo& info, const Buffer& buffer,
                           const Backend& backend, const Checker& check) {
  NamedOperand operand;
  operand.name = info.name;
  operand.buffer = &buffer;
  operand.view = info.view(p);
  operand.is_output = info.is_output;
  check_buffer(operand, info.dtype(p), info.dtype_reason, backend, check);
  check_extent(operand, check);
  return operand;
}

/// Spans that lie apart need no look at their rows.
bool operands_overlap(const NamedOperand& a, const NamedOperand& b) {
  if (a.end <= b.begin || b.end <= a.begin) return false;
  return views_overlap(a.view, a.buffer->address(), b.view, b.buffer->address());
}

void check_output(const NamedOperand& output, const NamedOperands& operands, const Checker& check) {
  if (output.buffer->read_only()) check.fail(output.name, ": the buffer is read-only");
  if (overlaps_itself(output.view)) {
    check.fail(output.name, ": its strides make elements overlap each other");
  }
  for (const NamedOperand& other : operands) {
    if (other.is_output && &other >= &output) continue;  // a later one looks at this one
    if (operands_overlap(output, other)) check.fail(output.name, ": overlaps ", other.name);
  }
}

float element(const Buffer& buffer, std::int64_t index) {
  if (buffer.dtype() == DType::f32) return static_cast<const float*>(buffer.data())[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(buffer.data())[index];
  return buffer.dtype() == DType::f16 ? float_from_f16(bits) : float_from_bf16(bits);
}

std::int64_t entry_of(const Buffer& table, std::int64_t index) {
  if (table.dtype() == DType::i64) return static_cast<const std::int64_t*>(table.data())[index];
  return static_cast<const std::int32_t*>(table.data())[index];
}

/// Entries of pages that any row of their sequence sees.
void check_entries(const SdpaProblem& p, const Buffer& table, const Checker& check) {
  if (!p.pages.has_value() || !p.pages->check_entries) return;
  const PageTable& pages = *p.pages;
  if (table.valid() && table.data() == nullptr) return;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const SdpaBand band = visible_band(p, b);
    if (band.begin >= band.end) continue;
    const std::int64_t first = first_entry(pages, b);
    for (std::int64_t i = band.begin / pages.page_len; i <= (band.end - 1) / pages.page_len; ++i) {
      const std::int64_t page = entry_of(table, first + i * pages.entry_stride);
      if (page >= 0 && page < pages.n_pages) continue;
      check.fail("block_table: page ", page, " of sequence ", b, ", entry ", i, ", takes 0 to ",
                 pages.n_pages - 1);
    }
  }
}

/// Numbers a head are few: each is looked at.
void check_numbers(const char* name, const Buffer& buffer, const HeadLayout& layout,
                   const SdpaProblem& p, bool (*is_fine)(float), const char* taken,
                   const Checker& check) {
  if (buffer.data() == nullptr) return;  // not the host's to read
  const std::int64_t batches =
      layout.batch_stride == 0 ? std::min<std::int64_t>(p.batch, 1) : p.batch;
  for (std::int64_t b = 0; b < batches; ++b) {
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      const float value =
          element(buffer, layout.offset + b * layout.batch_stride + h * layout.head_stride);
      if (!is_fine(value)) check.fail(name, ": ", value, " of head ", h, ", takes ", taken);
    }
  }
}

void check_head_numbers(const SdpaProblem& p, const SdpaOperands& operands, const Checker& check) {
  if (p.sinks.has_value()) {
    check_numbers(
        "sinks", operands.sinks, *p.sinks, p,
        [](float sink) { return std::isfinite(sink) || sink < 0; }, "finite numbers and -inf",
        check);
  }
  if (p.alibi_slopes.has_value()) {
    check_numbers(
        "alibi_slopes", operands.alibi_slopes, *p.alibi_slopes, p,
        [](float slope) { return std::isfinite(slope); }, "finite numbers", check);
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
  check_packed_queries(problem, check);
  check_packed_keys(problem, check);
  check_pages(problem, check);
  check_window(problem, check);
  check_scores(problem, check);
}

void validate_operands(const SdpaProblem& p, const SdpaOperands& operands, const Backend& backend,
                       const char* call, bool look_at_entries) {
  const Checker check(call);
  NamedOperands used;
  for (const OperandInfo& info : operand_table()) {
    if (!info.is_used(p)) continue;
    used.emplace_back() = named_operand(p, info, operands.*info.buffer, backend, check);
  }
  for (const NamedOperand& operand : used) {
    if (operand.is_output) check_output(operand, used, check);
  }
  check_head_numbers(p, operands, check);
  if (look_at_entries) check_entries(p, operands.block_table, check);
}

void validate_table(const SdpaProblem& problem, const Buffer& block_table, const Backend& backend,
                    const char* call) {
  const Checker check(call);
  const OperandInfo& info = operand_info(PlanOperand::block_table);
  if (!info.is_used(problem)) check.fail(info.name, ": is given, but the problem has no pages");
  named_operand(problem, info, block_table, backend, check);
  check_entries(problem, block_table, check);
}

}  // namespace metal_sdpa
