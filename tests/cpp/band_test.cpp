// Which keys a row sees, and how many pairs there are, against a look at every position.
#include "core/band.h"

#include <cmath>

#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

/// A problem of one sequence whose window, lengths and positions are small enough to look at each.
SdpaProblem random_problem(std::mt19937& rng, bool may_shard) {
  const auto pick = [&rng](int low, int high) {
    return static_cast<std::int64_t>(std::uniform_int_distribution<int>(low, high)(rng));
  };
  SdpaProblem p;
  p.seq_len = pick(1, 9);
  p.kv_capacity = pick(0, 14);
  p.kv_len = pick(0, static_cast<int>(p.kv_capacity));
  if (pick(0, 1) == 1) p.kv_start = pick(0, static_cast<int>(p.kv_capacity));
  if (pick(0, 1) == 1) p.query_len = pick(0, static_cast<int>(p.seq_len));
  p.causal = pick(0, 2) == 0;
  if (pick(0, 1) == 1) p.window_left = pick(0, 8);
  if (pick(0, 2) == 0) p.window_right = pick(0, 8);
  if (pick(0, 1) == 1) p.q_start = pick(-12, 25);
  if (may_shard && pick(0, 1) == 1) {
    p.key_offset = pick(-6, 20);
    p.key_stride = pick(1, 5);
    if (!p.q_start.has_value()) p.q_start = pick(-12, 40);
  }
  return p;
}

bool sees(const SdpaProblem& p, std::int64_t i, std::int64_t j) {
  const std::int64_t rows = p.query_len.value_or(p.seq_len);
  if (i >= rows || j < p.kv_start || j >= p.kv_len) return false;
  const std::int64_t query = p.q_start.value_or(p.kv_len - rows) + i;
  const std::int64_t key = p.key_offset + j * p.key_stride;
  if (p.causal && key > query) return false;
  if (p.window_left >= 0 && key < query - p.window_left) return false;
  return p.window_right < 0 || key <= query + p.window_right;
}

double pairs(const SdpaProblem& p, std::int64_t first, std::int64_t last, SdpaBand keys) {
  double count = 0;
  for (std::int64_t i = first; i < last; ++i) {
    for (std::int64_t j = keys.begin; j < keys.end; ++j) count += sees(p, i, j) ? 1 : 0;
  }
  return count;
}

bool any(const SdpaProblem& p, std::int64_t first, std::int64_t last, std::int64_t j) {
  bool is_seen = false;
  for (std::int64_t i = first; i <= last; ++i) is_seen = is_seen || sees(p, i, j);
  return is_seen;
}

bool all(const SdpaProblem& p, std::int64_t first, std::int64_t last, std::int64_t j) {
  bool is_seen = true;
  for (std::int64_t i = first; i <= last; ++i) is_seen = is_seen && sees(p, i, j);
  return is_seen;
}

bool holds(SdpaBand band, std::int64_t j) { return band.begin <= j && j < band.end; }

}  // namespace

TEST_CASE("a row's band holds the keys that it sees and no others, and never moves back") {
  std::mt19937 rng(19);
  for (int round = 0; round < 4000; ++round) {
    const SdpaProblem p = random_problem(rng, true);
    const SdpaSequence sequence = sequence_of(p, 0);
    const SdpaWindow window = window_of(p);
    SdpaBand before{0, 0};
    for (std::int64_t i = 0; i < p.seq_len; ++i) {
      const SdpaBand band = sdpa_band(sequence, window, i);
      INFO("round ", round, ", row ", i);
      REQUIRE(band.begin <= band.end);
      REQUIRE(band.end <= p.kv_len);
      REQUIRE(before.begin <= band.begin);
      REQUIRE(before.end <= band.end);
      before = band;
      for (std::int64_t j = 0; j < p.kv_capacity; ++j) REQUIRE(holds(band, j) == sees(p, i, j));
    }
  }
}

TEST_CASE("the bands of rows are their union and what all of them see") {
  std::mt19937 rng(20);
  for (int round = 0; round < 4000; ++round) {
    const SdpaProblem p = random_problem(rng, true);
    const SdpaSequence sequence = sequence_of(p, 0);
    const SdpaWindow window = window_of(p);
    const std::int64_t first = std::uniform_int_distribution<std::int64_t>(0, p.seq_len - 1)(rng);
    const std::int64_t last =
        std::uniform_int_distribution<std::int64_t>(first, p.seq_len - 1)(rng);
    const SdpaBand some = sdpa_band_of_rows(sequence, window, first, last);
    const SdpaBand every = sdpa_band_of_all(sequence, window, first, last);
    INFO("round ", round, ", rows ", first, " to ", last);
    REQUIRE(some.begin <= some.end);
    REQUIRE(every.begin <= every.end);
    for (std::int64_t j = 0; j < p.kv_capacity; ++j) {
      // Between two rows' windows may lie keys that neither sees.
      if (any(p, first, last, j)) REQUIRE(holds(some, j));
      REQUIRE(holds(every, j) == all(p, first, last, j));
    }
    // The union begins and ends at a key that some row sees.
    if (some.begin < some.end) {
      REQUIRE(any(p, first, last, some.begin));
      REQUIRE(any(p, first, last, some.end - 1));
    }
  }
}

TEST_CASE("pairs in closed form are those that a count finds") {
  std::mt19937 rng(21);
  for (int round = 0; round < 4000; ++round) {
    const SdpaProblem p = random_problem(rng, false);
    const auto pick = [&rng](std::int64_t low, std::int64_t high) {
      return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
    };
    const std::int64_t row_begin = pick(0, p.seq_len);
    const std::int64_t row_end = pick(row_begin, p.seq_len);
    const std::int64_t key_begin = pick(0, p.kv_capacity);
    const SdpaBand keys{key_begin, pick(key_begin, p.kv_capacity)};
    INFO("round ", round);
    REQUIRE(band_pairs(sequence_of(p, 0), window_of(p), row_begin, row_end, keys) ==
            pairs(p, row_begin, row_end, keys));
    REQUIRE(visible_pairs(p) == pairs(p, 0, p.seq_len, {0, p.kv_capacity}));
  }
}

TEST_CASE("pairs of keys that are sharded are near what a count finds") {
  std::mt19937 rng(22);
  for (int round = 0; round < 4000; ++round) {
    const SdpaProblem p = random_problem(rng, true);
    const double counted = pairs(p, 0, p.seq_len, {0, p.kv_capacity});
    // Each row's two ends are off by less than a key.
    REQUIRE(std::abs(visible_pairs(p) - counted) <= 2.0 * static_cast<double>(p.seq_len));
  }
}

TEST_CASE("positions far from 0 and sides past 2^60 leave 64 bits alone") {
  constexpr std::int64_t kFar = std::int64_t{1} << 62;
  constexpr std::int64_t kSide = std::int64_t{1} << 60;
  SdpaProblem p;
  p.seq_len = 3;
  p.kv_capacity = p.kv_len = 5;
  p.window_left = kSide;
  p.window_right = kSide;
  for (const std::int64_t start : {kFar, -kFar}) {
    p.q_start = start;
    for (const std::int64_t offset : {kSide, -kSide}) {
      p.key_offset = offset;
      p.key_stride = kSide / 5;
      const SdpaBand band = sdpa_band(sequence_of(p, 0), window_of(p), 2);
      CHECK(band.begin == band.end);
      CHECK(visible_pairs(p) == 0);
    }
  }
  p.key_offset = 0;
  p.key_stride = 1;
  p.window_left = kSide + 1;
  p.window_right = INT64_MAX;
  const SdpaBand band = sdpa_band(sequence_of(p, 0), window_of(p), 0);
  CHECK(band.begin == 0);
  CHECK(band.end == 5);
}
