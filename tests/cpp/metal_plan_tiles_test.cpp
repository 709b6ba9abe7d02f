// Metal plans as sets of tiles: each row and span once, the same ones in every batch and however
// the plan is cut, in dispatches of bounded time and memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "core/band.h"
#include "metal/plan.h"
#include "metal/work_estimate.h"
#include "shaders/sdpa_args.h"
#include "shaders/sdpa_params.h"
#include "shaders/sdpa_spans.h"
#include "shaders/sdpa_tiles.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

constexpr MetalFacts kM1{7};

bool is_merge(const PlanStep& step) { return std::string(step.kernel).rfind("sdpa_merge", 0) == 0; }
bool is_prefill(const PlanStep& step) {
  return std::string(step.kernel).rfind("sdpa_prefill", 0) == 0;
}
bool has_tiles(const PlanStep& step) {
  return is_prefill(step) || std::string(step.kernel).rfind("sdpa_decode", 0) == 0;
}

bool is_on(const PlanStep& step, std::uint32_t constant) {
  return std::any_of(step.constants.begin(), step.constants.end(),
                     [&](const FunctionConstant& c) { return c.index == constant; });
}

SdpaArgs args_of(const PlanStep& step) {
  SdpaArgs args{};
  REQUIRE(step.args.bytes.size() == sizeof(args));
  std::memcpy(&args, step.args.bytes.begin(), sizeof(args));
  return args;
}

/// What is worked on for each head; without a list as the shaders work it out.
std::vector<SdpaWorkItem> items_of(const PlanStep& step) {
  const SdpaArgs args = args_of(step);
  const bool has_list = is_on(step, SDPA_CONSTANT_WORK);
  std::vector<SdpaWorkItem> items(has_list ? step.threadgroups.y : step.threadgroups.x);
  if (has_list) {
    REQUIRE(step.sequences.index == SDPA_BUFFER_WORK);
    REQUIRE(step.sequences.bytes->size() == items.size() * sizeof(SdpaWorkItem));
    std::memcpy(items.data(), step.sequences.bytes->data(), step.sequences.bytes->size());
    return items;
  }
  for (sdpa_u32 x = 0; x < items.size(); ++x) {
    items[x] = {args.sequence, args.batch_begin + x, args.span_begin, args.span_len,
                args.n_spans,  x * args.n_spans,     args.seen_begin};
  }
  return items;
}

/// Packed rows begin..end of one KV head (or rows of one query head) over one span.
using Tile = std::tuple<sdpa_i64, sdpa_i64, sdpa_i64, sdpa_i64>;  // head, span, begin, end

/// How a step packs rows.
struct Packing {
  sdpa_i64 group = 1;
  sdpa_i64 rows = SDPA_TILE_Q;  ///< of one tile
  sdpa_i64 block = SDPA_TILE_Q;

  Packing(const SdpaProblem& problem, const PlanStep& step) {
    if (!has_tiles(step)) return;
    const int bytes = static_cast<int>(dtype_size(problem.dtype));
    const int dim = sdpa_tile_head_dim(static_cast<int>(problem.head_dim));
    group = problem.n_heads / problem.n_kv_heads;
    rows = sdpa_tile_rows(is_prefill(step), bytes, dim);
    block = rows * args_of(step).group_split;
  }
};

/// What the tiles of one sequence are, and what decides on their bits beside them.
struct SequencePlan {
  std::string kernel;
  sdpa_u32 span_len = 0, group_split = 0;
  bool shared = false, padded = false;
  std::vector<Tile> tiles;
  bool operator==(const SequencePlan&) const = default;
};

/// Whether one of rows first..last sees a key of a span.
bool sees_span(const SdpaWorkItem& item, const SdpaWindow& window, sdpa_i64 first, sdpa_i64 last,
               sdpa_i64 span) {
  const SdpaBand band = sdpa_band_of_rows(item.sequence, window, first, last);
  const sdpa_i64 begin = std::max<sdpa_i64>(band.begin, span * item.span_len);
  return begin < std::min<sdpa_i64>(band.end, (span + 1) * item.span_len);
}

/// The tiles of each sequence that see a key of their span, in order.
std::map<sdpa_u32, SequencePlan> sequence_plans(const SdpaProblem& problem, const Plan& plan) {
  std::map<sdpa_u32, SequencePlan> plans;
  for (const PlanStep& step : plan.steps) {
    if (is_merge(step)) continue;
    const SdpaArgs args = args_of(step);
    const Packing packing(problem, step);
    const sdpa_i64 end = args.row_end * packing.group;
    const sdpa_i64 first = args.row_begin * packing.group;
    const sdpa_i64 blocks = (end - first + packing.block - 1) / packing.block;
    const bool has_list = is_on(step, SDPA_CONSTANT_WORK);
    const sdpa_i64 heads = has_list ? step.threadgroups.x : step.threadgroups.y;
    CHECK(heads * packing.group == args.head_end - args.head_begin);
    CHECK(step.threadgroups.z % blocks == 0);
    const sdpa_i64 spans = step.threadgroups.z / blocks;
    for (const SdpaWorkItem& item : items_of(step)) {
      SequencePlan& own = plans[item.batch_index];
      own.kernel = step.kernel;
      own.span_len = item.span_len;
      own.group_split = args.group_split;
      own.shared = is_on(step, SDPA_CONSTANT_SHARED);
      own.padded = is_on(step, SDPA_CONSTANT_PADDED);
      for (sdpa_i64 y = 0; y < heads; ++y) {
        for (sdpa_i64 span = item.span; span < item.span + spans; ++span) {
          for (sdpa_i64 row = first; row < end; row += packing.rows) {
            const sdpa_i64 row_end = std::min(row + packing.rows, end);
            if (!sees_span(item, args.window, row / packing.group, (row_end - 1) / packing.group,
                           span)) {
              continue;
            }
            own.tiles.emplace_back(args.head_begin + y * packing.group, span, row, row_end);
          }
        }
      }
    }
  }
  for (auto& [b, own] : plans) std::sort(own.tiles.begin(), own.tiles.end());
  return plans;
}

/// Whether the sorted tiles hold each row of sequence b with every span that it sees, once.
bool covers_once(const SdpaProblem& problem, sdpa_u32 b, const SequencePlan& own) {
  const bool packed = own.kernel.size() > 9;  // not sdpa, sdpa_f16, sdpa_bf16
  const sdpa_i64 group = packed ? problem.n_heads / problem.n_kv_heads : 1;
  const SdpaWindow window = window_of(problem);
  SdpaWorkItem item{};
  item.sequence = sequence_of(problem, b);
  item.span_len = own.span_len;
  std::map<std::pair<sdpa_i64, sdpa_i64>, std::vector<std::pair<sdpa_i64, sdpa_i64>>> of_span;
  for (const auto& [head, span, begin, end] : own.tiles)
    of_span[{head, span}].push_back({begin, end});
  const SdpaBand all = sdpa_band_of_rows(item.sequence, window, 0, problem.seq_len - 1);
  if (all.begin >= all.end) return own.tiles.empty();
  const sdpa_i64 first_span = all.begin / own.span_len;
  const sdpa_i64 last_span = (all.end - 1) / own.span_len;
  for (sdpa_i64 head = 0; head < problem.n_heads; head += group) {
    for (sdpa_i64 span = first_span; span <= last_span; ++span) {
      sdpa_i64 row = 0;  // packed rows before it are covered, or see nothing
      const auto covers_none = [&](sdpa_i64 begin, sdpa_i64 end) {
        return begin == end ||
               (begin < end && !sees_span(item, window, begin / group, (end - 1) / group, span));
      };
      for (const auto& [begin, end] : of_span[{head, span}]) {
        if (end <= begin || !covers_none(row, begin)) return false;
        row = end;
      }
      if (!covers_none(row, problem.seq_len * group)) return false;
    }
  }
  return true;
}

/// The sequences that a step works on.
std::set<sdpa_u32> sequences_of(const PlanStep& step) {
  std::set<sdpa_u32> sequences;
  for (const SdpaWorkItem& item : items_of(step)) sequences.insert(item.batch_index);
  return sequences;
}

/// The box of sequence b of a step, from what the kernel is told.
WorkBox box_of(const PlanStep& step, sdpa_u32 b) {
  const SdpaArgs args = args_of(step);
  WorkBox box{b, b + 1, args.head_begin, args.head_end, args.row_begin, args.row_end};
  if (args.span_end - args.span_begin < args.n_spans) {
    CHECK(sequences_of(step).size() == 1);
    box.key_begin = static_cast<std::int64_t>(args.span_begin) * args.span_len;
    if (args.span_end < args.seen_begin + args.n_spans) {
      box.key_end = static_cast<std::int64_t>(args.span_end) * args.span_len;
    }
  }
  return box;
}

/// Where the states of a sequence begin, and how its keys are cut.
// first_span, n_spans, span_len, seen_begin
using StatePlace = std::tuple<sdpa_u32, sdpa_u32, sdpa_u32, sdpa_u32>;

/// Checks that the states of a step have places of their own, and returns the places.
std::map<sdpa_u32, StatePlace> state_places(const PlanStep& step) {
  std::map<sdpa_u32, StatePlace> places;
  sdpa_u32 sum = 0;
  for (const SdpaWorkItem& item : items_of(step)) {
    const StatePlace place{item.first_span, item.n_spans, item.span_len, item.seen_begin};
    const auto [at, is_new] = places.emplace(item.batch_index, place);
    CHECK(at->second == place);
    if (is_new) sum += item.n_spans;
  }
  std::set<sdpa_u32> taken;
  for (const auto& [b, place] : places) {
    for (sdpa_u32 s = 0; s < std::get<1>(place); ++s) taken.insert(std::get<0>(place) + s);
  }
  CHECK(taken.size() == sum);
  CHECK(*taken.rbegin() + 1 == sum);
  return places;
}

/// Every row is written once, by a kernel alone or by the merge after the parts of its keys, which
/// finds the states where they were left.
void check_outputs(const SdpaProblem& problem, const Plan& plan, const MetalFacts& facts) {
  double written = 0;
  std::uint64_t scratch[2] = {0, 0};
  std::map<sdpa_u32, StatePlace> left;
  WorkBox left_by;
  for (const PlanStep& step : plan.steps) {
    const std::set<sdpa_u32> sequences = sequences_of(step);
    const WorkBox box = box_of(step, *sequences.begin());
    CHECK(box.head_end <= problem.n_heads);
    if (is_on(step, SDPA_CONSTANT_PARTIAL)) {
      const auto places = state_places(step);
      CHECK((left.empty() || (left == places && same_rows(box, left_by))));
      left = places;
      left_by = box;
      std::uint64_t spans = 0;
      for (const auto& [b, place] : places) {
        CHECK(std::get<1>(place) > 1);
        spans += std::get<1>(place);
      }
      const std::uint64_t states = spans * static_cast<std::uint64_t>(box.heads() * box.rows());
      const std::uint64_t bytes[2] = {states * static_cast<std::uint64_t>(problem.value_dim) * 4,
                                      states * 8};
      for (std::size_t i = 0; i < 2; ++i) {
        CHECK(step.writes[i].length == bytes[i]);
        scratch[i] = std::max(scratch[i], bytes[i]);
      }
      CHECK(static_cast<double>(bytes[0] + bytes[1]) <= facts.max_state_bytes);
      continue;
    }
    if (is_merge(step)) {
      CHECK(same_rows(box, left_by));
      CHECK(state_places(step) == left);
      left.clear();
    }
    written +=
        static_cast<double>(static_cast<std::int64_t>(sequences.size()) * box.heads() * box.rows());
  }
  CHECK(left.empty());
  CHECK(written == static_cast<double>(problem.batch * problem.n_heads * problem.seq_len));
  CHECK(plan.scratch_bytes[0] == scratch[0]);
  CHECK(plan.scratch_bytes[1] == scratch[1]);
}

KernelRate rate_of(const PlanStep& step) {
  if (!has_tiles(step)) return kRowKernelRate;
  return is_prefill(step) ? kPrefillKernelRate : kDecodeKernelRate;
}

/// Spans as the step's own sequences have them, for work_seconds.
SdpaSpanRule rule_of(const PlanStep& step) {
  sdpa_i64 longest = 1;
  for (const SdpaWorkItem& item : items_of(step)) {
    longest = std::max<sdpa_i64>(longest, item.span_len);
  }
  return {longest, longest, sdpa_i64{1} << 40, true};
}

class Random {
 public:
  explicit Random(unsigned seed) : rng_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng_);
  }
  std::int64_t pick(std::initializer_list<std::int64_t> items) {
    return items.begin()[between(0, static_cast<std::int64_t>(items.size()) - 1)];
  }

 private:
  std::mt19937 rng_;
};

SdpaProblem random_plan_problem(Random& random) {
  SdpaProblem problem;
  problem.dtype = static_cast<DType>(random.between(0, 2));
  problem.batch = random.pick({1, 2, 3, 4, 6, 10});
  problem.n_kv_heads = random.pick({1, 2, 3, 4, 8});
  problem.n_heads = problem.n_kv_heads * random.pick({1, 2, 3, 4, 5, 6, 7, 8, 12, 71});
  problem.seq_len = random.pick({1, 2, 3, 9, 17, 64, 65, 70, 128, 129, 300, 1024, 1025, 2100});
  problem.head_dim = random.pick({8, 20, 64, 80, 128, 256, 576});
  problem.value_dim = random.between(1, 8) == 1 ? 32 : problem.head_dim;
  problem.causal = random.between(0, 1) == 1;
  problem.return_lse = random.between(0, 1) == 1;
  problem.kv_capacity = random.pick({1, 100, 129, 2048, 2049, 5000, 8192, 40000, 300000, 2000000});
  problem.kv_len = random.between(problem.kv_capacity / 2, problem.kv_capacity);
  if (random.between(0, 1) == 1) {
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      const bool is_short = random.between(0, 2) == 0;
      problem.kv_lengths.push_back(random.between(0, is_short ? 50 : problem.kv_capacity) %
                                   (problem.kv_capacity + 1));
    }
  }
  if (random.between(0, 2) == 0) problem.window_left = random.pick({0, 1, 100, 3000, 100000});
  if (random.between(0, 3) == 0) problem.window_right = random.pick({0, 1, 100, 3000});
  if (random.between(0, 3) == 0) {
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      problem.kv_starts.push_back(random.between(0, problem.kv_capacity));
    }
  }
  if (random.between(0, 3) == 0) problem.query_len = random.between(0, problem.seq_len);
  if (random.between(0, 3) == 0) {
    problem.key_stride = random.pick({1, 2, 7});
    problem.q_start = random.between(-10, problem.key_stride * problem.kv_capacity);
  }
  problem.set_packed_layouts();
  return problem;
}

/// Tiles that the problem has, about: tests expand them all.
double tile_count(const SdpaProblem& problem) {
  const double spans = 1 + static_cast<double>(problem.kv_capacity) / 256;
  return static_cast<double>(problem.batch * problem.n_heads * problem.seq_len) * spans / 8;
}

/// Sequence b of a batch alone.
SdpaProblem alone(const SdpaProblem& batch, std::int64_t b) {
  SdpaProblem one = batch;
  one.batch = 1;
  one.kv_len = batch.sequence_kv_len(b);
  one.q_start = batch.sequence_q_start(b);
  one.kv_start = batch.sequence_kv_start(b);
  one.query_len = batch.sequence_query_len(b);
  one.kv_lengths.clear();
  one.q_starts.clear();
  one.kv_starts.clear();
  one.query_lengths.clear();
  return one;
}

/// All that holds of every plan.
void check_plan(const SdpaProblem& problem, const MetalFacts& facts) {
  const Plan plan = plan_metal_sdpa(problem, facts);
  INFO(std::string(dtype_name(problem.dtype)), " B ", problem.batch, " Hq ", problem.n_heads,
       " Hkv ", problem.n_kv_heads, " L ", problem.seq_len, " S ", problem.kv_capacity, " D ",
       problem.head_dim, ": ", plan.steps.size(), " steps, ", std::string(plan.steps[0].kernel));
  check_outputs(problem, plan, facts);
  const auto plans = sequence_plans(problem, plan);
  REQUIRE(plans.size() == static_cast<std::size_t>(problem.batch));
  for (const auto& [b, own] : plans) {
    CHECK(covers_once(problem, b, own));
    const SdpaProblem one = alone(problem, b);
    CHECK(own == sequence_plans(one, plan_metal_sdpa(one, kM1)).at(0));
  }
}

}  // namespace

TEST_CASE("metal plan: a sequence has the same tiles in every batch, and however it is cut") {
  Random random(1);
  int cut = 0, merged = 0;
  for (int i = 0; i < 400;) {
    const SdpaProblem problem = random_plan_problem(random);
    if (tile_count(problem) > 200000) continue;
    ++i;
    MetalFacts facts;
    facts.apple_family = 7;
    check_plan(problem, facts);
    // As cut as it can be for this many pieces.
    const double flops = work_flops(problem, whole_work(problem));
    facts.max_dispatch_seconds = flops / 1e11 / static_cast<double>(random.between(1, 40));
    check_plan(problem, facts);
    const Plan plan = plan_metal_sdpa(problem, facts);
    cut += plan.steps.size() > 2 ? 1 : 0;
    merged += plan.scratch_bytes[0] > 0 ? 1 : 0;
  }
  CHECK(cut > 100);
  CHECK(merged > 100);
}

TEST_CASE("metal plan: cuts of groups that do not divide a tile are at its edges") {
  struct Case {
    std::int64_t heads, kv_heads, head_dim, seq_len, batch;
  };
  const Case cases[] = {{28, 4, 128, 2100, 4}, {40, 8, 64, 2100, 6}, {12, 2, 128, 3000, 6}};
  for (const Case& c : cases) {
    for (const DType dtype : {DType::f32, DType::f16}) {
      SdpaProblem problem;
      problem.dtype = dtype;
      problem.batch = c.batch;
      problem.n_heads = c.heads;
      problem.n_kv_heads = c.kv_heads;
      problem.seq_len = problem.kv_capacity = problem.kv_len = c.seq_len;
      problem.head_dim = problem.value_dim = c.head_dim;
      problem.causal = true;
      problem.set_packed_layouts();
      for (const double seconds : {0.5, 0.05, 1e-3}) {
        MetalFacts facts;
        facts.apple_family = 7;
        facts.max_dispatch_seconds = seconds;
        check_plan(problem, facts);
      }
    }
  }
}

TEST_CASE("metal plan: no dispatch is estimated above half a second or leaves more than 64 MB") {
  Random random(2);
  MetalFacts facts;
  facts.apple_family = 7;
  for (int i = 0; i < 300; ++i) {
    SdpaProblem problem = random_plan_problem(random);
    if (random.between(0, 3) == 0) problem.kernel = "sdpa";
    const double flops = work_flops(problem, whole_work(problem));
    if (flops > 1e14) continue;  // thousands of steps
    const Plan plan = plan_metal_sdpa(problem, facts);
    INFO(std::string(plan.steps[0].kernel), " B ", problem.batch, " Hq ", problem.n_heads, " Hkv ",
         problem.n_kv_heads, " L ", problem.seq_len, " S ", problem.kv_capacity, " D ",
         problem.head_dim, ": ", plan.steps.size(), " steps");
    CHECK(plan.scratch_bytes[0] + plan.scratch_bytes[1] <= 64 << 20);
    double sum = 0;
    for (const PlanStep& step : plan.steps) {
      if (is_merge(step)) continue;
      double step_flops = 0, seconds = 0, thread_seconds = 0;
      KernelRate alone = rate_of(step);
      alone.flops_per_second = alone.padded_flops_per_second = 1e300;
      for (const sdpa_u32 b : sequences_of(step)) {
        const WorkBox box = box_of(step, b);
        step_flops += work_flops(problem, box);
        seconds += work_seconds(problem, rule_of(step), box, rate_of(step));
        thread_seconds += work_seconds(problem, rule_of(step), box, alone);
      }
      CHECK(step.flops == doctest::Approx(step_flops));
      // Threads of different sequences do not wait for each other.
      CHECK((seconds <= 0.5 * (1 + 1e-9) || seconds - thread_seconds <= 0.5));
      sum += step.flops;
    }
    CHECK(sum == doctest::Approx(flops));
  }
}

TEST_CASE("metal plan: one row over a long cache is cut over keys in the straightforward kernel") {
  SdpaProblem problem;
  problem.n_heads = problem.n_kv_heads = 1;
  problem.kv_capacity = problem.kv_len = 1 << 20;
  problem.head_dim = 576;
  problem.value_dim = 512;
  problem.set_packed_layouts();
  const Plan plan = plan_metal_sdpa(problem, {});
  CHECK(std::string(plan.steps[0].kernel) == "sdpa");
  CHECK(std::string(plan.steps[plan.steps.size() - 1].kernel) == "sdpa_merge");
  CHECK(args_of(plan.steps[0]).span_len <= 2048);
  // A dispatch may hold only some of the spans, and the merge comes after all of them.
  MetalFacts facts;
  facts.max_dispatch_seconds = 0.25;
  const Plan cut = plan_metal_sdpa(problem, facts);
  CHECK(cut.steps.size() > 2);
  check_plan(problem, facts);
}

TEST_CASE("metal plan: 16-bit sums restart, at every number of queries and length of the cache") {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    // Additions that cost a quarter of a unit of the type: u / 4 over 2^-24.
    const sdpa_i64 most = dtype == DType::f16 ? 2048 : 16384;
    for (const std::int64_t group : {1, 4, 7}) {
      for (const std::int64_t seq_len : {1, 2, 5, 64, 65, 70, 300, 1024, 1025, 9000}) {
        for (const std::int64_t head_dim : {64, 128, 256}) {
          for (std::int64_t kv_len = 1000; kv_len < 2'000'000; kv_len *= 3) {
            SdpaProblem problem;
            problem.dtype = dtype;
            problem.n_kv_heads = 1;
            problem.n_heads = group;
            problem.seq_len = seq_len;
            problem.kv_capacity = problem.kv_len = kv_len;
            problem.head_dim = problem.value_dim = head_dim;
            problem.set_packed_layouts();
            const PlanStep step = plan_metal_sdpa(problem, kM1).steps[0];
            const SdpaArgs args = args_of(step);
            const int bytes = static_cast<int>(dtype_size(dtype));
            const int dim = static_cast<int>(head_dim);
            const bool prefill = is_prefill(step);
            // Teams that share rows take a span's keys by turns, and slices of them do not.
            const sdpa_i64 sharing =
                sdpa_tile_slices(prefill, bytes, dim) == 1
                    ? sdpa_tile_teams(prefill, bytes, dim) / static_cast<int>(args.group_split)
                    : 1;
            // attention_tile.h: prefill adds a tile at a time, decode goes on with the sum.
            const sdpa_i64 tile = sdpa_tile_keys(prefill, bytes, dim);
            const sdpa_i64 keys = std::min<sdpa_i64>(args.span_len, kv_len) / sharing;
            const sdpa_i64 additions = prefill ? keys / tile + tile : keys;
            CAPTURE(std::string(step.kernel));
            CAPTURE(seq_len);
            CAPTURE(kv_len);
            CHECK(additions <= most);
          }
        }
      }
    }
  }
}

TEST_CASE("metal plan: a list of work holds the spans that there are, the longest sequence first") {
  SdpaProblem problem;
  problem.dtype = DType::f16;
  problem.batch = 64;
  problem.n_heads = 32;
  problem.n_kv_heads = 8;
  problem.kv_capacity = 32768;
  problem.head_dim = problem.value_dim = 128;
  problem.kv_lengths.assign(64, 16);
  problem.kv_lengths[40] = 32768;
  problem.kv_lengths[7] = problem.kv_lengths[9] = 32768;
  problem.kv_lengths[50] = 100;
  problem.set_packed_layouts();
  const Plan plan = plan_metal_sdpa(problem, kM1);
  REQUIRE(plan.steps.size() == 3);
  // Sequences of several spans, those of one, and the merge of the first.
  const std::vector<SdpaWorkItem> items = items_of(plan.steps[0]);
  const std::size_t spans = items[0].n_spans;
  CHECK(spans > 1);
  CHECK(items.size() == 3 * spans);
  for (std::size_t i = 0; i < 3 * spans; ++i) {
    CHECK(items[i].batch_index == (i < spans ? 7 : i < 2 * spans ? 9 : 40));
    CHECK(items[i].span == i % spans);
  }
  CHECK(items_of(plan.steps[1]).size() == 61);
  CHECK(items_of(plan.steps[1])[0].batch_index == 50);
  CHECK(items_of(plan.steps[2]).size() == 3);
  // States of the spans that there are, not of the longest sequence's for all.
  CHECK(plan.scratch_bytes[0] == items.size() * 32 * 128 * 4);
}

TEST_CASE("metal plan: spans that no row sees are not planned") {
  SdpaProblem problem;
  problem.dtype = DType::f16;
  problem.n_heads = 8;
  problem.n_kv_heads = 2;
  problem.seq_len = 1;
  problem.kv_len = problem.kv_capacity = 100000;
  problem.head_dim = problem.value_dim = 64;
  problem.causal = true;
  problem.set_packed_layouts();
  const Plan plain = plan_metal_sdpa(problem, kM1);
  const sdpa_u32 span_len = args_of(plain.steps[0]).span_len;
  problem.window_left = 1000;
  const Plan plan = plan_metal_sdpa(problem, kM1);
  const SdpaArgs args = args_of(plan.steps[0]);
  CHECK(args.span_len == span_len);
  CHECK(args.seen_begin == (100000 - 1001) / span_len);
  CHECK(args.n_spans == 99999 / span_len + 1 - args.seen_begin);
  CHECK(args.span_begin == args.seen_begin);
  CHECK(plan.steps[0].threadgroups.z == args.n_spans);
  CHECK(plan.scratch_bytes[0] == (args.n_spans > 1 ? args.n_spans * 8 * 64 * 4 : 0));

  // One span: no merge. None: rows are written all the same.
  problem.window_left = 3;
  CHECK(plan_metal_sdpa(problem, kM1).steps.size() == 1);
  problem.kv_start = problem.kv_len;
  const Plan empty = plan_metal_sdpa(problem, kM1);
  REQUIRE(empty.steps.size() == 1);
  CHECK(empty.steps[0].threadgroups.z == 1);
  CHECK(empty.scratch_bytes[0] == 0);

  // Rows of a prefill see two spans each, all together every one of them.
  problem.kv_start = 0;
  problem.seq_len = 20000;
  problem.kv_len = problem.kv_capacity = 20000;
  problem.window_left = 1000;
  problem.set_packed_layouts();
  CHECK(args_of(plan_metal_sdpa(problem, kM1).steps[0]).seen_begin == 0);
}

TEST_CASE("metal plan: keys that stand apart take the kernels that divide") {
  SdpaProblem problem;
  problem.kv_len = problem.kv_capacity = 9000;
  problem.head_dim = problem.value_dim = 64;
  problem.causal = true;
  problem.q_start = 30000;
  problem.key_stride = 3;
  problem.set_packed_layouts();
  for (const PlanStep& step : plan_metal_sdpa(problem, kM1).steps) {
    CHECK(is_on(step, SDPA_CONSTANT_WINDOW));
  }
  problem.key_stride = 1;
  for (const PlanStep& step : plan_metal_sdpa(problem, kM1).steps) {
    CHECK(!is_on(step, SDPA_CONSTANT_WINDOW));
  }
}

}  // namespace metal_sdpa::test
