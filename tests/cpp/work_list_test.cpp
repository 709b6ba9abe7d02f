// Uneven batches: which items there are, how threads share them, and that bits never show it.
#include "cpu/fast/work_list.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"
#include "shaders/sdpa_args.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

struct Item {
  std::int64_t b, kv_h, row_begin, n_rows, span_begin, n_spans;
};

/// Sequences of these lengths, 2 KV heads of 4 query heads each.
SdpaProblem batch_of(const char* kernel, std::int64_t rows, std::vector<std::int64_t> lengths) {
  SdpaProblem p;
  p.kernel = kernel;
  p.dtype = DType::f16;
  p.n_heads = 8;
  p.n_kv_heads = 2;
  p.head_dim = p.value_dim = 128;
  p.seq_len = rows;
  p.causal = true;
  p.batch = static_cast<std::int64_t>(lengths.size());
  p.kv_capacity = *std::max_element(lengths.begin(), lengths.end());
  p.kv_lengths = std::move(lengths);
  p.set_packed_layouts();
  return p;
}

std::vector<std::int64_t> one_long(std::int64_t keys, std::size_t at, std::size_t batch,
                                   std::int64_t others) {
  std::vector<std::int64_t> lengths(batch, others);
  lengths[at] = keys;
  return lengths;
}

/// The plan of a problem as a reader of its tables sees it.
class Planned {
 public:
  Planned(const SdpaProblem& problem, int threads)
      : problem_(problem), plan_(plan_sdpa(device_of("baseline", threads), problem)) {
    std::memcpy(&args_, step().args.bytes.begin(), sizeof(args_));
  }

  const PlanStep& step() const { return plan_.steps.front(); }
  std::uint64_t group_count() const { return step().threadgroups.count(); }
  std::int64_t rows() const { return problem_.seq_len * problem_.n_heads / problem_.n_kv_heads; }

  std::int64_t visible(std::int64_t b, std::int64_t row) const {
    const std::int64_t position =
        problem_.sequence_q_start(b) + row * problem_.n_kv_heads / problem_.n_heads;
    const std::int64_t keys = problem_.sequence_kv_len(b);
    return problem_.causal ? std::clamp<std::int64_t>(position + 1, 0, keys) : keys;
  }

  /// The items of each threadgroup.
  std::vector<std::vector<Item>> groups() const {
    return step().work.bytes == nullptr ? grid_groups() : listed_groups();
  }

  /// Whether each row and each span that its sequence sees is in one item, no item and no
  /// threadgroup empty. A sequence that sees nothing has items for its rows all the same.
  bool covers_each_once() const {
    std::vector<std::vector<int>> seen;  // of each sequence [kv_h][row][span]
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      seen.emplace_back(static_cast<std::size_t>(problem_.n_kv_heads * rows() * spans_of(b)));
    }
    bool none_empty = true;
    for (const auto& group : groups()) {
      none_empty = none_empty && !group.empty();
      for (const Item& item : group) {
        const std::int64_t spans = spans_of(item.b);
        none_empty = none_empty && item.n_rows > 0 && item.span_begin < spans;
        for (std::int64_t row = item.row_begin; row < item.row_begin + item.n_rows; ++row) {
          const std::int64_t first = (item.kv_h * rows() + row) * spans;
          const std::int64_t end = std::min(item.span_begin + item.n_spans, spans);
          for (std::int64_t span = item.span_begin; span < end; ++span) {
            ++seen[static_cast<std::size_t>(item.b)][static_cast<std::size_t>(first + span)];
          }
        }
      }
    }
    const auto all_once = [](const std::vector<int>& counts) {
      return std::all_of(counts.begin(), counts.end(), [](int count) { return count == 1; });
    };
    return none_empty && std::all_of(seen.begin(), seen.end(), all_once);
  }

  /// Products of a row and a key, and what packing and beginning cost.
  double cost(const Item& item) const {
    double pairs = 0;
    for (std::int64_t row = item.row_begin; row < item.row_begin + item.n_rows; ++row) {
      pairs += static_cast<double>(keys_of(item, row));
    }
    const auto keys = static_cast<double>(keys_of(item, item.row_begin + item.n_rows - 1));
    return pairs + 16 * keys + 16 * static_cast<double>(item.n_rows);
  }

  /// When the last of `threads` threads is done, each taking the next threadgroup (of an even
  /// batch: the next chunk of them) as soon as it is free.
  double makespan(int threads) const {
    const std::vector<std::vector<Item>> all = groups();
    std::vector<double> free_at(static_cast<std::size_t>(threads), 0);
    for (std::uint64_t begin = 0; begin < all.size();) {
      const std::uint64_t shares =
          step().work.bytes != nullptr ? all.size() : 3 * static_cast<std::uint64_t>(threads);
      const std::uint64_t end = begin + std::max<std::uint64_t>(1, (all.size() - begin) / shares);
      double& thread = *std::min_element(free_at.begin(), free_at.end());
      for (; begin < end; ++begin) {
        for (const Item& item : all[begin]) thread += cost(item);
      }
    }
    return *std::max_element(free_at.begin(), free_at.end());
  }

  /// The same for threads that know each item's cost and take the dearest one that is left.
  double best_makespan(int threads) const {
    std::vector<double> costs;
    for (const auto& group : groups()) {
      for (const Item& item : group) costs.push_back(cost(item));
    }
    std::sort(costs.rbegin(), costs.rend());
    std::vector<double> free_at(static_cast<std::size_t>(threads), 0);
    for (const double c : costs) *std::min_element(free_at.begin(), free_at.end()) += c;
    return *std::max_element(free_at.begin(), free_at.end());
  }

  double total_cost() const {
    double total = 0;
    for (const auto& group : groups()) {
      for (const Item& item : group) total += cost(item);
    }
    return total;
  }

 private:
  std::int64_t spans_of(std::int64_t b) const {
    const std::int64_t spans = (visible(b, rows() - 1) + args_.span_len - 1) / args_.span_len;
    return std::max<std::int64_t>(spans, 1);
  }
  std::int64_t keys_of(const Item& item, std::int64_t row) const {
    const std::int64_t begin = item.span_begin * args_.span_len;
    const std::int64_t end = begin + item.n_spans * args_.span_len;
    return std::max<std::int64_t>(std::min(visible(item.b, row), end) - begin, 0);
  }

  /// What the grid of sdpa_decode, or of a sdpa_prefill that cuts no spans, means.
  std::vector<std::vector<Item>> grid_groups() const {
    const GridSize& grid = step().threadgroups;
    const std::int64_t set_rows = problem_.kernel == "sdpa_decode" ? rows() : args_.group_split;
    const std::int64_t sets = (rows() + set_rows - 1) / set_rows;
    const std::int64_t parts = grid.x / sets;
    const std::int64_t part_spans = (args_.n_spans + parts - 1) / parts;
    std::vector<std::vector<Item>> all;
    for (std::uint64_t group = 0; group < grid.count(); ++group) {
      const auto index = static_cast<std::int64_t>(group % grid.x);
      const auto head = static_cast<std::int64_t>(group / grid.x);
      const std::int64_t row = (sets - 1 - index % sets) * set_rows;
      all.push_back({{head / grid.y, head % grid.y, row, std::min(set_rows, rows() - row),
                      index / sets * part_spans, part_spans}});
    }
    return all;
  }

  std::vector<std::vector<Item>> listed_groups() const {
    const std::byte* at = step().work.bytes->data();
    cpu::WorkHeader header;
    std::memcpy(&header, at, sizeof(header));
    std::vector<cpu::WorkRun> runs(header.n_runs);
    std::memcpy(runs.data(), at + sizeof(header), runs.size() * sizeof(cpu::WorkRun));
    std::vector<std::uint64_t> firsts(header.n_groups + 1);
    std::memcpy(firsts.data(), at + sizeof(header) + runs.size() * sizeof(cpu::WorkRun),
                firsts.size() * sizeof(std::uint64_t));
    std::vector<Item> items;
    for (const cpu::WorkRun& run : runs) {
      REQUIRE(run.first_item == items.size());
      append_items(run, items);
    }
    REQUIRE(firsts.front() == 0);
    REQUIRE(firsts.back() == items.size());
    std::vector<std::vector<Item>> all;
    for (std::size_t group = 0; group < header.n_groups; ++group) {
      all.emplace_back(items.begin() + static_cast<std::ptrdiff_t>(firsts[group]),
                       items.begin() + static_cast<std::ptrdiff_t>(firsts[group + 1]));
    }
    return all;
  }

  void append_items(const cpu::WorkRun& run, std::vector<Item>& items) const {
    for (std::int64_t kv_h = 0; kv_h < problem_.n_kv_heads; ++kv_h) {
      for (std::int64_t part = 0; part < run.n_parts; ++part) {
        for (std::int64_t set = run.n_sets - 1; set >= 0; --set) {
          const std::int64_t row = set * run.set_rows;
          items.push_back({run.sequence, kv_h, row,
                           std::min<std::int64_t>(run.set_rows, rows() - row),
                           part * run.part_spans, run.part_spans});
        }
      }
    }
  }

  SdpaProblem problem_;
  Plan plan_;
  SdpaArgs args_;
};

std::vector<std::int64_t> random_lengths(std::mt19937& rng) {
  std::vector<std::int64_t> lengths(1 + rng() % 40);
  const std::int64_t longest = std::int64_t{1} << (4 + rng() % 12);
  for (std::int64_t& keys : lengths) {
    keys = rng() % 4 == 0 ? static_cast<std::int64_t>(rng()) % longest + 1
                          : static_cast<std::int64_t>(rng() % 70);
  }
  lengths.front() = longest;
  std::shuffle(lengths.begin(), lengths.end(), rng);
  return lengths;
}

}  // namespace

TEST_CASE("each row and span of an uneven batch is in one item, and no item is empty") {
  std::mt19937 rng(31);
  for (int round = 0; round < 40; ++round) {
    const bool decode = round % 2 == 0;
    const std::int64_t rows = 1 + static_cast<std::int64_t>(rng() % (decode ? 3 : 60));
    SdpaProblem p = batch_of(decode ? "sdpa_decode" : "sdpa_prefill", rows, random_lengths(rng));
    p.causal = rng() % 3 > 0;
    for (const int threads : {1, 2, 16, 64}) {
      const Planned plan(p, threads);
      INFO("round ", round, " threads ", threads);
      CHECK(plan.covers_each_once());
    }
  }
}

TEST_CASE("one long sequence beside short ones keeps all threads busy, wherever it stands") {
  struct Batch {
    const char* kernel;
    std::int64_t rows, keys, others;
    std::size_t batch;
  };
  const std::vector<Batch> batches{
      {"sdpa_decode", 1, 32768, 16, 64},   {"sdpa_decode", 1, 8192, 16, 64},
      {"sdpa_decode", 1, 32768, 16, 16},   {"sdpa_decode", 1, 32768, 16, 1000},
      {"sdpa_prefill", 64, 2048, 64, 16},  {"sdpa_prefill", 64, 8192, 64, 64},
      {"sdpa_prefill", 512, 8192, 16, 16}, {"sdpa_prefill", 16, 32768, 16, 500},
  };
  for (const Batch& batch : batches) {
    for (const std::size_t at : {std::size_t{0}, batch.batch / 2, batch.batch - 1}) {
      for (const int threads : {2, 4, 16}) {
        const auto lengths = one_long(batch.keys, at, batch.batch, batch.others);
        const Planned plan(batch_of(batch.kernel, batch.rows, lengths), threads);
        const Planned alone(batch_of(batch.kernel, batch.rows, {batch.keys}), threads);
        const double others = (plan.total_cost() - alone.total_cost()) / threads;
        INFO(batch.kernel, " L ", batch.rows, " 1 x ", batch.keys, " at ", at, " + ",
             batch.batch - 1, " x ", batch.others, " on ", threads, " threads");
        CHECK(plan.makespan(threads) <= 1.5 * (alone.makespan(threads) + std::max(others, 0.0)));
        CHECK(plan.makespan(threads) <= 1.2 * plan.best_makespan(threads));
      }
    }
  }
}

TEST_CASE("random batches are shared out evenly") {
  std::mt19937 rng(32);
  for (int round = 0; round < 40; ++round) {
    const bool decode = round % 2 == 0;
    SdpaProblem p =
        batch_of(decode ? "sdpa_decode" : "sdpa_prefill", decode ? 1 : 64, random_lengths(rng));
    for (const int threads : {2, 16}) {
      const Planned plan(p, threads);
      INFO("round ", round, " threads ", threads);
      CHECK(plan.makespan(threads) <= 1.2 * plan.best_makespan(threads));
    }
  }
}

TEST_CASE("items that cost most come first") {
  const Planned plan(batch_of("sdpa_decode", 1, {16, 700, 16, 300, 5000}), 4);
  std::vector<std::int64_t> order;
  for (const auto& group : plan.groups()) {
    for (const Item& item : group) {
      if (order.empty() || order.back() != item.b) order.push_back(item.b);
    }
  }
  CHECK(order == std::vector<std::int64_t>{4, 1, 3, 0, 2});
}

TEST_CASE("keys that no row sees are no items, in even batches too") {
  SdpaProblem p = batch_of("sdpa_decode", 1, {32768, 32768});
  p.q_start = 0;
  CHECK(Planned(p, 2).group_count() == 4);
  p.q_start = 513;  // 514 keys, two spans
  CHECK(Planned(p, 2).group_count() == 8);
  p.q_start = -7;
  CHECK(Planned(p, 2).group_count() == 4);
}

TEST_CASE("batches of equal sequences have no list") {
  CHECK(Planned(batch_of("sdpa_decode", 1, {900, 900, 900}), 4).step().work.bytes == nullptr);
  CHECK(Planned(batch_of("sdpa_prefill", 9, {900, 900, 900}), 4).step().work.bytes == nullptr);
  CHECK(Planned(batch_of("sdpa_decode", 1, {900, 901, 900}), 4).step().work.bytes != nullptr);
  SdpaProblem starts = batch_of("sdpa_prefill", 9, {900, 900});
  starts.q_starts = {0, 891};
  CHECK(Planned(starts, 4).step().work.bytes != nullptr);
  starts.causal = false;
  CHECK(Planned(starts, 4).step().work.bytes == nullptr);
}

TEST_CASE("states of an uneven batch take room for the spans that there are") {
  const Plan plan =
      plan_sdpa(device_of("baseline", 2), batch_of("sdpa_decode", 1, one_long(32768, 3, 64, 16)));
  // Spans of 512 keys: 64 of the long one, 1 of each other; states of 4 rows a KV head.
  CHECK(plan.scratch_bytes[0] == std::uint64_t{64 + 63} * 2 * 4 * (128 + 16) * sizeof(float));
}

TEST_CASE("the states that a list counts are those that memory is taken for") {
  // Those of sequences that one item has as a whole take none.
  for (const std::vector<std::int64_t>& lengths :
       {one_long(32768, 3, 64, 16), one_long(9000, 0, 3, 700), one_long(9000, 2, 3, 1)}) {
    for (const std::int64_t rows : {1, 9, 40}) {
      for (const char* kernel : {"sdpa_decode", "sdpa_prefill"}) {
        const SdpaProblem problem = batch_of(kernel, rows, lengths);
        const Plan plan = plan_sdpa(device_of("baseline", 4), problem);
        const std::vector<std::byte>& list = *plan.steps.front().work.bytes;
        std::uint64_t states = 0;  // the list's last number
        std::memcpy(&states, list.data() + list.size() - sizeof(states), sizeof(states));
        CAPTURE(kernel);
        CAPTURE(rows);
        CHECK(plan.scratch_bytes[0] == states * 2 * (128 + 16) * sizeof(float));
      }
    }
  }
}

TEST_CASE("sequences of an uneven batch have the bits that they have alone") {
  struct Shape {
    const char* kernel;
    std::int64_t rows;
    std::vector<std::int64_t> lengths, starts;
  };
  const std::vector<Shape> shapes{
      {"sdpa_decode", 1, {1100, 0, 1, 512, 513, 16, 17}, {}},
      {"sdpa_decode", 3, {5, 1100, 1025, 1024}, {2, -4, 1022, 2000}},
      {"sdpa_prefill", 5, {1100, 0, 1, 512, 513, 16, 17}, {}},
      {"sdpa_prefill", 70, {1100, 40, 1010, 0}, {1000, -30, 940, 0}},
      // Several whose states lie in memory, cut into sets of rows of different numbers.
      {"sdpa_prefill", 70, {4200, 2100, 1100}, {}},
  };
  for (const std::string& isa : isas()) {
    for (const DType dtype : kDTypes) {
      for (const Shape& shape : shapes) {
        std::mt19937 rng(33);
        SdpaProblem p = batch_of(shape.kernel, shape.rows, shape.lengths);
        p.dtype = dtype;
        p.head_dim = 24;
        p.value_dim = 17;
        p.scale = 0.2f;
        p.return_lse = true;
        p.q_starts = shape.starts;
        p.set_packed_layouts();
        const Device one = device_of(isa);
        const SdpaOperands x = random_operands(rng, one, p);
        fill_bytes(x.out, 0xff);
        fill_bytes(x.lse, 0xff);
        sdpa(one, x, p);
        const auto want = bytes_of(x.out);
        const auto want_lse = bytes_of(x.lse);
        for (const int threads : {2, 3, 16, 64}) {
          fill_bytes(x.out, 0xff);
          fill_bytes(x.lse, 0xff);
          sdpa(device_of(isa, threads), x, p);
          INFO(isa, " ", name_of(dtype), " ", shape.kernel, " ", threads, " threads");
          CHECK(bytes_of(x.out) == want);
          CHECK(bytes_of(x.lse) == want_lse);
        }
        fill_bytes(x.out, 0xff);
        fill_bytes(x.lse, 0xff);
        for (std::int64_t b = 0; b < p.batch; ++b) {
          SdpaProblem single = p;
          single.batch = 1;
          single.kv_len = p.sequence_kv_len(b);
          single.q_start = p.sequence_q_start(b);
          single.kv_lengths.clear();
          single.q_starts.clear();
          const auto part = [&](const Buffer& of) {
            const std::size_t n = of.element_count() / static_cast<std::size_t>(p.batch);
            const std::size_t size = dtype_size(of.dtype());
            return of.slice_view(static_cast<std::size_t>(b) * n * size, n);
          };
          sdpa(device_of(isa, 2), {part(x.q), part(x.k), part(x.v), part(x.out), part(x.lse)},
               single);
        }
        INFO(isa, " ", name_of(dtype), " ", shape.kernel, " one by one");
        CHECK(bytes_of(x.out) == want);
        CHECK(bytes_of(x.lse) == want_lse);
      }
    }
  }
}

TEST_CASE("an uneven batch that was recorded replays at every length with the bits of a call") {
  for (const char* kernel : {"sdpa_decode", "sdpa_prefill"}) {
    const Device device = device_of("baseline", 3);
    const KernelRegistry registry(device);
    std::mt19937 rng(34);
    SdpaProblem p = batch_of(kernel, 2, {1300, 3, 600, 1, 0, 1029});
    p.head_dim = p.value_dim = 8;
    p.kv_capacity = 1600;
    p.return_lse = true;
    p.set_packed_layouts();
    SdpaProblem full = p;  // so that no slot up to the capacity is poisoned
    full.kv_lengths.clear();
    full.kv_len = p.kv_capacity;
    const SdpaOperands x = random_operands(rng, device, full);
    const auto bits_of_call = [&](const SdpaProblem& problem) {
      fill_bytes(x.out, 0xff);
      sdpa(device, x, problem);
      return bytes_of(x.out);
    };
    CommandEncoder recorder(device);
    recorder.begin_capture();
    encode_sdpa(recorder, registry, device, x, p);
    Graph graph = recorder.end_capture();
    const auto replayed = [&] {
      fill_bytes(x.out, 0xff);
      CommandEncoder encoder(device);
      graph.replay(encoder);
      encoder.commit_and_wait();
      return bytes_of(x.out);
    };
    INFO(kernel);
    CHECK(replayed() == bits_of_call(p));
    for (const std::int64_t keys : {1, 2, 511, 512, 513, 1024, 1025, 1599, 1600, 3}) {
      graph.update(0, keys);
      full.kv_len = keys;
      INFO(keys, " keys");
      CHECK(replayed() == bits_of_call(full));
    }
  }
}
