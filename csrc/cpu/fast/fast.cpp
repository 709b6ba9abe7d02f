// Registers the kernels of every instruction set that this machine runs, and asks the families.
#include "cpu/fast/fast.h"

#include <algorithm>
#include <array>
#include <string>

#include "core/plan_args.h"
#include "cpu/fast/families.h"
#include "cpu/fast/kernel_tables.h"
#include "cpu/fast/span_states.h"

namespace metal_sdpa::cpu {
namespace {

constexpr std::array<Family, 2> kFamilies{Family::prefill, Family::decode};
constexpr std::array<DType, 3> kDTypes{DType::f32, DType::f16, DType::bf16};
constexpr std::array<DTypeNames, 2> kNames{
    {{"sdpa_prefill", "sdpa_prefill_f16", "sdpa_prefill_bf16"},
     {"sdpa_decode", "sdpa_decode_f16", "sdpa_decode_bf16"}}};

std::size_t index_of(Family family) { return static_cast<std::size_t>(family); }

std::size_t index_of(DType dtype) {
  if (dtype == DType::f16) return 1;
  return dtype == DType::bf16 ? 2 : 0;
}

/// Names of one instruction set: families, then element types.
using IsaNames = std::array<std::array<std::string, kDTypes.size()>, kFamilies.size()>;
constexpr std::size_t kIsaCount = static_cast<std::size_t>(Isa::neon_bf16) + 1;

std::array<IsaNames, kIsaCount> make_names() {
  std::array<IsaNames, kIsaCount> names;
  for (std::size_t isa = 0; isa < kIsaCount; ++isa) {
    const char* suffix = isa_name(static_cast<Isa>(isa));
    for (const Family family : kFamilies) {
      for (const DType dtype : kDTypes) {
        std::string& name = names[isa][index_of(family)][index_of(dtype)];
        name = kNames[index_of(family)].of(dtype);
        name += ".";
        name += suffix;
      }
    }
  }
  return names;
}

NativeKernel kernel_of(const KernelTable& table, Family family, DType dtype) {
  const FamilyKernels& kernels = family == Family::prefill ? *table.prefill : *table.decode;
  if (dtype == DType::f16) return kernels.f16;
  return dtype == DType::bf16 ? kernels.bf16 : kernels.f32;
}

}  // namespace

const char* fast_kernel_name(Family family, DType dtype, Isa isa) {
  static const auto* const names = new std::array<IsaNames, kIsaCount>(make_names());
  return (*names)[static_cast<std::size_t>(isa)][index_of(family)][index_of(dtype)].c_str();
}

std::int64_t rows_per_kv_head(const SdpaProblem& problem) {
  return problem.seq_len * (problem.n_heads / problem.n_kv_heads);
}

double state_bytes(const SdpaProblem& problem, double spans) {
  const double rows =
      static_cast<double>(problem.n_kv_heads) * static_cast<double>(rows_per_kv_head(problem));
  return rows * spans * static_cast<double>(state_slots(problem.value_dim)) * sizeof(float);
}

std::int64_t rows_in_use(const SdpaProblem& problem) {
  const std::int64_t group = problem.n_heads / problem.n_kv_heads;
  if (problem.query_lengths.empty()) return problem.query_len.value_or(problem.seq_len) * group;
  const auto& lengths = problem.query_lengths;
  return *std::max_element(lengths.begin(), lengths.end()) * group;
}

std::int64_t keys_in_reach(const SdpaProblem& problem, std::int64_t b) {
  const SdpaBand band = visible_band(problem, b);
  return band.end - band.begin;
}

std::int64_t visible_spans(const SdpaProblem& problem, std::int64_t b, std::int64_t span_len) {
  const SdpaBand band = visible_band(problem, b);
  if (band.begin >= band.end) return 0;
  if (band.end <= span_len) return 1;  // a division is a part of a tiny call
  return (band.end + span_len - 1) / span_len - band.begin / span_len;
}

void bind_states(const SdpaProblem& problem, std::int64_t spans, std::int64_t head_counters,
                 Plan& plan) {
  PlanStep& step = plan.steps.back();
  const auto counters =
      static_cast<std::uint64_t>(problem.batch * problem.n_kv_heads * head_counters);
  plan.scratch_bytes[0] =
      static_cast<std::uint64_t>(state_bytes(problem, static_cast<double>(spans)));
  plan.scratch_bytes[1] = counters * sizeof(std::uint32_t);
  step.bindings.push_back({SDPA_BUFFER_PARTIAL_O, PlanOperand::scratch0});
  step.bindings.push_back({kBufferSpansDone, PlanOperand::scratch1, true});
  step.writes.push_back({PlanOperand::scratch0, 0, plan.scratch_bytes[0]});
  step.writes.push_back({PlanOperand::scratch1, 0, plan.scratch_bytes[1]});
}

void register_fast(const std::function<void(const char*, NativeKernel)>& add) {
  for (const Isa isa : supported_isas()) {
    const KernelTable* table = kernel_table(isa);
    if (table == nullptr) continue;
    for (const Family family : kFamilies) {
      for (const DType dtype : kDTypes) {
        const NativeKernel kernel = kernel_of(*table, family, dtype);
        if (kernel != nullptr) add(fast_kernel_name(family, dtype, isa), kernel);
      }
    }
  }
}

bool plan_fast(const SdpaProblem& problem, const PlanTarget& target, Plan& plan) {
  if (kernel_table(target.isa) == nullptr) return false;
  const std::string& forced = problem.kernel;
  const bool decode = forced.empty() || forced == "sdpa_decode";
  const bool prefill = forced.empty() || forced == "sdpa_prefill";
  return (decode && plan_decode(problem, target, plan)) ||
         (prefill && plan_prefill(problem, target, plan));
}

}  // namespace metal_sdpa::cpu
