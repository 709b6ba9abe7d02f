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

/// A kernel that the problem names takes all it can, whatever suits it best.
bool takes_decode(const SdpaProblem& problem, const PlanTarget& target, std::int64_t rows) {
  if (problem.kernel.empty()) return decode_suits(problem, target, rows);
  return problem.kernel == "sdpa_decode";
}

/// Whether sequences have rows of their own number.
bool has_own_rows(const SdpaProblem& problem) {
  const auto& lengths = problem.query_lengths;
  return std::any_of(lengths.begin(), lengths.end(),
                     [&](std::int64_t length) { return length != lengths[0]; });
}

/// What a sequence of so many rows is attended by: 0 by sdpa_decode, else spans of so many keys.
std::int64_t way_of(const SdpaProblem& problem, const PlanTarget& target, std::int64_t rows) {
  return takes_decode(problem, target, rows) ? 0 : prefill_span_len(problem, rows);
}

std::vector<BatchPart> parts_of(const SdpaProblem& problem, const PlanTarget& target) {
  std::vector<BatchPart> parts;
  if (!has_own_rows(problem)) {
    if (rows_to_write(problem, 0) > 0) parts.emplace_back().rows_in_use = rows_in_use(problem, 0);
    return parts;
  }
  std::vector<std::int64_t> ways;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    if (rows_to_write(problem, b) == 0) continue;
    const std::int64_t rows = rows_in_use(problem, b);
    const std::int64_t way = way_of(problem, target, rows);
    const auto at =
        static_cast<std::size_t>(std::find(ways.begin(), ways.end(), way) - ways.begin());
    if (at == ways.size()) {
      ways.push_back(way);
      parts.push_back({{}, false, rows});
    }
    parts[at].sequences.push_back(b);
  }
  if (parts.size() == 1 && static_cast<std::int64_t>(parts[0].sequences.size()) == problem.batch) {
    parts[0].is_whole = true;
    parts[0].sequences.clear();
  }
  return parts;
}

/// The set without instructions that multiply pairs of bf16.
Isa without_pairs(Isa isa) {
  switch (isa) {
    case Isa::amx_emulated:
    case Isa::avx512_bf16:
    case Isa::avx512_amx:
      return Isa::avx512;
    case Isa::neon_bf16:
      return Isa::neon;
    default:
      return isa;
  }
}

/// Pairs want weights rounded to bf16. An output in f32, a state that will be merged, would show
/// that; one in bf16 rounds by as much itself.
Isa isa_of(const SdpaProblem& problem, Isa asked) {
  return problem.out_f32 && problem.dtype == DType::bf16 ? without_pairs(asked) : asked;
}

}  // namespace

const char* fast_kernel_name(Family family, DType dtype, Isa isa) {
  static const auto* const names = new std::array<IsaNames, kIsaCount>(make_names());
  return (*names)[static_cast<std::size_t>(isa)][index_of(family)][index_of(dtype)].c_str();
}

std::int64_t rows_to_write(const SdpaProblem& problem, std::int64_t b) {
  if (problem.has_packed_queries()) return rows_in_use(problem, b);
  return problem.seq_len * (problem.n_heads / problem.n_kv_heads);
}

std::int64_t rows_in_use(const SdpaProblem& problem, std::int64_t b) {
  return problem.sequence_query_len(b) * (problem.n_heads / problem.n_kv_heads);
}

double part_flops(const SdpaProblem& problem, const BatchPart& part) {
  double pairs = 0;
  if (part.is_whole) {
    pairs = visible_pairs(problem);
  } else {
    for (const std::int64_t b : part.sequences) pairs += visible_pairs(problem, b);
  }
  return 2.0 * pairs * static_cast<double>(problem.n_heads) *
         static_cast<double>(problem.head_dim + problem.value_dim);
}

double state_bytes(const SdpaProblem& problem, double states) {
  return static_cast<double>(problem.n_kv_heads) * states *
         static_cast<double>(state_slots(problem.value_dim)) * sizeof(float);
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

void bind_states(const SdpaProblem& problem, std::int64_t states, std::int64_t head_counters,
                 Plan& plan) {
  PlanStep& step = plan.steps.back();
  const auto counters =
      static_cast<std::uint64_t>(problem.batch * problem.n_kv_heads * head_counters);
  const auto bytes = static_cast<std::uint64_t>(state_bytes(problem, static_cast<double>(states)));
  // Steps of one plan run one after the other.
  plan.scratch_bytes[0] = std::max(plan.scratch_bytes[0], bytes);
  plan.scratch_bytes[1] = std::max(plan.scratch_bytes[1], counters * sizeof(std::uint32_t));
  step.bindings.push_back({SDPA_BUFFER_PARTIAL_O, PlanOperand::scratch0});
  step.bindings.push_back({kBufferSpansDone, PlanOperand::scratch1, true});
  step.writes.push_back({PlanOperand::scratch0, 0, bytes});
  step.writes.push_back({PlanOperand::scratch1, 0, counters * sizeof(std::uint32_t)});
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

bool plan_fast(const SdpaProblem& problem, const PlanTarget& asked, Plan& plan) {
  PlanTarget target = asked;
  target.isa = isa_of(problem, asked.isa);
  if (kernel_table(target.isa) == nullptr) return false;
  const std::string& forced = problem.kernel;
  if (!forced.empty() && forced != "sdpa_decode" && forced != "sdpa_prefill") return false;
  for (const BatchPart& part : parts_of(problem, target)) {
    if (takes_decode(problem, target, part.rows_in_use)) {
      plan_decode(problem, part, target, plan);
    } else {
      plan_prefill(problem, part, target, plan);
    }
  }
  return true;
}

}  // namespace metal_sdpa::cpu
