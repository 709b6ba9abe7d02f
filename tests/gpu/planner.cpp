// The library's own Metal planner behind a C name, as JSON: what the harness launches is what the
// library would dispatch.
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "metal/plan.h"
#include "metal/plan_tiles.h"
#include "metal_sdpa/error.h"

namespace {

using namespace metal_sdpa;

struct Layout {
  std::int64_t offset, batch, head, row;
};

/// A mask (dtype -1: none), or numbers of heads, which have no row and key.
struct ScoreLayout {
  std::int64_t dtype, offset, batch, head, row, key;
};

/// harness.py has the same fields.
struct GpuProblem {
  std::int64_t dtype, batch, n_heads, n_kv_heads, seq_len, kv_capacity, head_dim, value_dim;
  std::int64_t causal, return_lse, kv_len, q_start, span_len;
  std::int64_t window_left, window_right, kv_start, query_len, key_offset, key_stride, out_f32;
  std::int64_t q_total, kv_total;             // 0: not packed
  std::int64_t page_len, n_pages, n_entries;  // of a table [batch, n_entries]; 0: no pages
  std::int64_t table_is_i64;
  Layout q, k, v, out;
  ScoreLayout mask, sinks, alibi_slopes;
  double scale, softcap;
  const char* kernel;
  const std::int64_t* kv_lengths;  // [batch] each, or nullptr
  const std::int64_t* q_starts;
  const std::int64_t* kv_starts;
  const std::int64_t* query_lengths;
  const std::int64_t* q_rows;
  const std::int64_t* kv_rows;
};

TensorLayout layout_of(const Layout& layout) {
  return {layout.offset, layout.batch, layout.head, layout.row};
}

HeadLayout head_layout_of(const ScoreLayout& layout) {
  return {static_cast<DType>(layout.dtype), layout.offset, layout.batch, layout.head};
}

void set_features(const GpuProblem& p, SdpaProblem& problem) {
  problem.window_left = p.window_left;
  problem.window_right = p.window_right;
  problem.kv_start = p.kv_start;
  if (p.query_len < p.seq_len) problem.query_len = p.query_len;
  problem.key_offset = p.key_offset;
  problem.key_stride = p.key_stride;
  problem.out_f32 = p.out_f32 != 0;
  problem.softcap = static_cast<float>(p.softcap);
  if (p.mask.dtype >= 0) {
    problem.mask = MaskLayout{static_cast<DType>(p.mask.dtype),
                              p.mask.offset,
                              p.mask.batch,
                              p.mask.head,
                              p.mask.row,
                              p.mask.key};
  }
  if (p.sinks.dtype >= 0) problem.sinks = head_layout_of(p.sinks);
  if (p.alibi_slopes.dtype >= 0) problem.alibi_slopes = head_layout_of(p.alibi_slopes);
}

void set_pages(const GpuProblem& p, SdpaProblem& problem) {
  if (p.page_len == 0) return;
  PageTable pages;
  pages.dtype = p.table_is_i64 != 0 ? DType::i64 : DType::i32;
  pages.page_len = p.page_len;
  pages.n_pages = p.n_pages;
  pages.sequence_stride = pages.n_entries = p.n_entries;
  problem.pages = pages;
}

SdpaProblem problem_of(const GpuProblem& p) {
  SdpaProblem problem;
  problem.dtype = static_cast<DType>(p.dtype);
  problem.batch = p.batch;
  problem.n_heads = p.n_heads;
  problem.n_kv_heads = p.n_kv_heads;
  problem.seq_len = p.seq_len;
  problem.kv_capacity = p.kv_capacity;
  problem.head_dim = p.head_dim;
  problem.value_dim = p.value_dim;
  problem.q = layout_of(p.q);
  problem.k = layout_of(p.k);
  problem.v = layout_of(p.v);
  problem.out = layout_of(p.out);
  problem.scale = static_cast<float>(p.scale);
  problem.causal = p.causal != 0;
  problem.return_lse = p.return_lse != 0;
  problem.kv_len = p.kv_len;
  problem.q_start = p.q_start;
  problem.kernel = p.kernel;
  const auto assign = [&](const std::int64_t* numbers, std::vector<std::int64_t>& target) {
    if (numbers != nullptr) target.assign(numbers, numbers + p.batch);
  };
  assign(p.kv_lengths, problem.kv_lengths);
  assign(p.q_starts, problem.q_starts);
  assign(p.kv_starts, problem.kv_starts);
  assign(p.query_lengths, problem.query_lengths);
  assign(p.q_rows, problem.q_rows);
  assign(p.kv_rows, problem.kv_rows);
  problem.q_total = p.q_total;
  problem.kv_total = p.kv_total;
  set_pages(p, problem);
  set_features(p, problem);
  return problem;
}

/// span_len: 0, or spans of so many keys, so that small problems have many.
Plan plan_of(const SdpaProblem& problem, std::int64_t span_len) {
  MetalFacts facts;
  facts.apple_family = 7;
  facts.max_dispatch_seconds = 100;  // by the rate of a GPU some 30 times slower than this one
  const bool prefill = problem.kernel == "sdpa_prefill";
  if (span_len == 0 || (!prefill && problem.kernel != "sdpa_decode")) {
    return plan_metal_sdpa(problem, facts);
  }
  KernelFacts kernel = tile_kernel(problem, problem.seq_len, prefill);
  kernel.spans.span_len = span_len;
  return plan_steps(problem, facts, kernel);
}

template <typename Bytes>
std::string hex(const Bytes& bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    text += kDigits[static_cast<unsigned>(byte) >> 4];
    text += kDigits[static_cast<unsigned>(byte) & 15];
  }
  return text;
}

void write_step(std::ostream& json, const PlanStep& step) {
  json << R"({"kernel":")" << step.kernel << R"(","constants":[)";
  const char* comma = "";
  for (const FunctionConstant& constant : step.constants) {
    json << comma << constant.index;
    comma = ",";
  }
  // Memory of the harness starts on 16 bytes.
  if (step.aligned_constant >= 0) json << comma << step.aligned_constant;
  const GridSize& grid = step.threadgroups;
  const bool has_memory = !step.threadgroup_memory.empty();
  json << R"(],"grid":[)" << grid.x << ',' << grid.y << ',' << grid.z << R"(],"threads":)"
       << step.threadgroup_size.count() << R"(,"shared":)"
       << (has_memory ? step.threadgroup_memory[0].byte_len : 0) << R"(,"args":")"
       << hex(step.args.bytes) << R"(","work":")"
       << (step.sequences.bytes == nullptr ? "" : hex(*step.sequences.bytes)) << R"("})";
}

}  // namespace

/// The plan, or {"error": text}; valid until the thread's next call.
extern "C" const char* plan_json(const GpuProblem* p) {
  thread_local std::string text;
  std::ostringstream json;
  try {
    const Plan plan = plan_of(problem_of(*p), p->span_len);
    json << R"({"scratch":[)" << plan.scratch_bytes[0] << ',' << plan.scratch_bytes[1]
         << R"(],"steps":[)";
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      if (i > 0) json << ',';
      write_step(json, plan.steps[i]);
    }
    json << "]}";
  } catch (const Error& error) {
    json.str(std::string(R"({"error":")") + error.what() + "\"}");
  }
  text = json.str();
  return text.c_str();
}
