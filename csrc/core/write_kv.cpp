// A write into a cache: its checks, and one dispatch.
#include "metal_sdpa/write_kv.h"

#include <algorithm>
#include <array>
#include <vector>

#include "core/direct_bindings.h"
#include "core/encoder_state.h"
#include "core/layout.h"
#include "core/registry.h"
#include "core/text.h"
#include "shaders/write_kv_args.h"

namespace metal_sdpa {
namespace {

constexpr const char* kCall = "write_kv";

struct WriteOperand {
  const char* name;
  const Buffer* buffer;
  TensorView view;
  DType dtype;
  bool is_output = false;
  AddressRange range{0, 0};
};

void check_number(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return;
  fail_argument(kCall, ": ", name, ": ", value, ", takes ", least, " to ", most);
}

void check_problem(const WriteKvProblem& p, const DeviceLimits& limits) {
  if (p.dtype != DType::f32 && p.dtype != DType::f16 && p.dtype != DType::bf16) {
    fail(ErrorCode::unsupported_dtype, kCall, ": dtype ", dtype_name(p.dtype),
         ", takes f32, f16 or bf16");
  }
  check_number("tokens", p.tokens, 0, INT32_MAX);
  check_number("heads", p.heads, 1, INT32_MAX);
  check_number("head_dim", p.head_dim, 1, limits.max_head_dim);
  check_number("value_dim", p.value_dim, 1, limits.max_head_dim);
  check_number("page_size", p.page_size, 1, INT32_MAX);
  check_number("n_pages", p.n_pages, 1, INT32_MAX / p.page_size);
}

TensorView token_view(const WriteKvProblem& p, const TokenLayout& layout, std::int64_t width) {
  return {1,
          p.heads,
          p.tokens,
          width,
          {layout.offset, 0, layout.head_stride, layout.token_stride},
          static_cast<std::int64_t>(dtype_size(p.dtype))};
}

TensorView page_view(const WriteKvProblem& p, const PageLayout& layout, std::int64_t width) {
  return {p.n_pages,
          p.heads,
          p.page_size,
          width,
          {layout.offset, layout.page_stride, layout.head_stride, layout.slot_stride},
          static_cast<std::int64_t>(dtype_size(p.dtype))};
}

void check_operand(WriteOperand& operand, const Backend& backend) {
  if (has_no_element(operand.view)) return;
  const Buffer& buffer = *operand.buffer;
  if (!buffer.valid()) fail_argument(kCall, ": ", operand.name, ": the buffer is empty");
  if (buffer.storage()->backend != &backend) {
    fail_argument(kCall, ": ", operand.name, ": the buffer belongs to another device than ",
                  device_kind_name(backend.kind()));
  }
  if (buffer.dtype() != operand.dtype) {
    fail(ErrorCode::unsupported_dtype, kCall, ": ", operand.name, ": dtype ",
         dtype_name(buffer.dtype()), ", takes ", dtype_name(operand.dtype));
  }
  std::int64_t first = 0;
  std::int64_t last = 0;
  if (!element_extent(operand.view, first, last)) {
    fail_argument(kCall, ": ", operand.name, ": its strides reach further than 64 bits count");
  }
  const std::int64_t size = operand.view.element_size;
  const std::int64_t elements = static_cast<std::int64_t>(buffer.byte_len()) / size;
  if (first < 0 || last >= elements) {
    fail_argument(kCall, ": ", operand.name, ": elements ", first, " to ", last,
                  " are touched, but the buffer has ", elements);
  }
  operand.range = {buffer.address() + static_cast<std::uint64_t>(first * size),
                   buffer.address() + static_cast<std::uint64_t>((last + 1) * size)};
}

bool overlap(const WriteOperand& a, const WriteOperand& b) {
  if (a.range.end <= b.range.begin || b.range.end <= a.range.begin) return false;
  return views_overlap(a.view, a.buffer->address(), b.view, b.buffer->address());
}

template <std::size_t kCount>
void check_outputs(const std::array<WriteOperand, kCount>& operands) {
  for (std::size_t i = 0; i < kCount; ++i) {
    const WriteOperand& output = operands[i];
    if (!output.is_output) continue;
    if (output.buffer->read_only()) {
      fail_argument(kCall, ": ", output.name, ": the buffer is read-only");
    }
    if (overlaps_itself(output.view)) {
      fail_argument(kCall, ": ", output.name, ": its strides make elements overlap each other");
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (!overlap(output, operands[j])) continue;
      fail_argument(kCall, ": ", output.name, ": overlaps ", operands[j].name);
    }
  }
}

/// Slots out of range, or the same one twice: which of the two tokens would stay is open.
void check_slots(const WriteKvProblem& p, const Buffer& slots) {
  const auto* begin = static_cast<const std::int32_t*>(slots.data());
  if (begin == nullptr) return;  // not the host's to read
  const std::int64_t n_slots = p.n_pages * p.page_size;
  std::vector<std::int32_t> used;
  used.reserve(static_cast<std::size_t>(p.tokens));
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const std::int32_t slot = begin[t];
    if (slot < -1 || slot >= n_slots) {
      fail_argument(kCall, ": slots: ", slot, " of token ", t, ", takes -1 to ", n_slots - 1);
    }
    if (slot >= 0) used.push_back(slot);
  }
  std::sort(used.begin(), used.end());
  const auto twice = std::adjacent_find(used.begin(), used.end());
  if (twice != used.end()) fail_argument(kCall, ": slots: ", *twice, " is there twice");
}

WriteKvStrides strides_of(const WriteKvProblem& p, const TokenLayout& tokens,
                          const PageLayout& pages) {
  const auto used = [](std::int64_t count, std::int64_t stride) { return count > 1 ? stride : 0; };
  return {tokens.offset,
          used(p.tokens, tokens.token_stride),
          used(p.heads, tokens.head_stride),
          pages.offset,
          used(p.n_pages, pages.page_stride),
          used(p.page_size, pages.slot_stride),
          used(p.heads, pages.head_stride)};
}

WriteKvArgs args_of(const WriteKvProblem& p) {
  WriteKvArgs args{};
  args.k = strides_of(p, p.k_new, p.k_cache);
  args.v = strides_of(p, p.v_new, p.v_cache);
  args.page_size = p.page_size;
  args.n_slots = p.n_pages * p.page_size;
  args.tokens = static_cast<sdpa_u32>(p.tokens);
  args.heads = static_cast<sdpa_u32>(p.heads);
  args.head_dim = static_cast<sdpa_u32>(p.head_dim);
  args.value_dim = static_cast<sdpa_u32>(p.value_dim);
  return args;
}

using WriteOperands = std::array<WriteOperand, 5>;

WriteOperands checked_operands(const WriteKvProblem& p, const WriteKvOperands& x,
                               const Backend& backend) {
  const TensorView slots{1, 1, p.tokens, 1, {0, 0, 0, 1}, 4};
  WriteOperands operands{
      WriteOperand{"k_new", &x.k_new, token_view(p, p.k_new, p.head_dim), p.dtype},
      WriteOperand{"v_new", &x.v_new, token_view(p, p.v_new, p.value_dim), p.dtype},
      WriteOperand{"slots", &x.slots, slots, DType::i32},
      WriteOperand{"k_cache", &x.k_cache, page_view(p, p.k_cache, p.head_dim), p.dtype, true},
      WriteOperand{"v_cache", &x.v_cache, page_view(p, p.v_cache, p.value_dim), p.dtype, true}};
  for (WriteOperand& operand : operands) check_operand(operand, backend);
  check_outputs(operands);
  return operands;
}

DispatchRecord record_of(const KernelRegistry& registry, const WriteKvProblem& p,
                         const WriteKvOperands& x, const WriteOperands& operands) {
  DispatchRecord record;
  record.kind = OpKind::other;
  Dispatch& dispatch = record.dispatch;
  dispatch.pipeline =
      plan_pipeline(registry, p.dtype == DType::f32 ? "write_kv_32" : "write_kv_16", {});
  dispatch.bindings = {memory_binding(SDPA_WRITE_KV_BUFFER_NEW_K, x.k_new),
                       memory_binding(SDPA_WRITE_KV_BUFFER_NEW_V, x.v_new),
                       memory_binding(SDPA_WRITE_KV_BUFFER_K_CACHE, x.k_cache),
                       memory_binding(SDPA_WRITE_KV_BUFFER_V_CACHE, x.v_cache),
                       memory_binding(SDPA_WRITE_KV_BUFFER_SLOTS, x.slots),
                       args_binding(SDPA_WRITE_KV_BUFFER_ARGS, args_of(p))};
  dispatch.threadgroups = {static_cast<std::uint32_t>(p.tokens),
                           static_cast<std::uint32_t>(p.heads), 1};
  dispatch.threadgroup_size = {SDPA_WRITE_KV_THREADS, 1, 1};
  // A copy is as much work as so many multiply-adds an element, by the memory that it waits for.
  constexpr double kFlopsPerElement = 4;
  dispatch.flops = kFlopsPerElement * static_cast<double>(p.head_dim + p.value_dim) *
                   static_cast<double>(dispatch.threadgroups.count());
  record.access.declared = true;
  for (const WriteOperand& operand : operands) {
    (operand.is_output ? record.access.writes : record.access.reads).push_back(operand.range);
  }
  return record;
}

}  // namespace

void WriteKvProblem::set_packed_layouts() {
  const auto new_rows = [this](std::int64_t width) {
    return TokenLayout{0, saturated_product(heads, width), width};
  };
  const auto pages = [this](std::int64_t width) {
    const std::int64_t slot = saturated_product(heads, width);
    return PageLayout{0, saturated_product(page_size, slot), slot, width};
  };
  k_new = new_rows(head_dim);
  v_new = new_rows(value_dim);
  k_cache = pages(head_dim);
  v_cache = pages(value_dim);
}

void encode_write_kv(CommandEncoder& encoder, const KernelRegistry& registry, const Device& device,
                     const WriteKvOperands& operands, const WriteKvProblem& problem) {
  EncoderState& state = encoder.state();
  state.require_encoding(kCall);
  if (!(state.device == device)) fail_argument(kCall, ": encoder: is of another device");
  if (!(registry.device() == device)) fail_argument(kCall, ": registry: is of another device");
  check_problem(problem, device.limits());
  const WriteOperands checked = checked_operands(problem, operands, *device.backend());
  if (problem.tokens == 0) return;
  if (problem.check_slots) check_slots(problem, operands.slots);
  state.record(record_of(registry, problem, operands, checked));
}

void write_kv(const Device& device, const WriteKvOperands& operands,
              const WriteKvProblem& problem) {
  CommandEncoder encoder(device);
  encode_write_kv(encoder, default_registry(device), device, operands, problem);
  encoder.commit_and_wait();
}

}  // namespace metal_sdpa
