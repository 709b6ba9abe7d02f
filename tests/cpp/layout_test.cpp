// Extents and overlaps of strided views, against brute force.
#include "core/layout.h"

#include <set>

#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

std::vector<std::int64_t> elements_of(const TensorView& view) {
  std::vector<std::int64_t> elements;
  for (std::int64_t b = 0; b < view.batch; ++b) {
    for (std::int64_t h = 0; h < view.heads; ++h) {
      for (std::int64_t i = 0; i < view.rows; ++i) {
        for (std::int64_t d = 0; d < view.width; ++d) {
          elements.push_back(view.layout.offset + b * view.layout.batch_stride +
                             h * view.layout.head_stride + i * view.layout.row_stride + d);
        }
      }
    }
  }
  return elements;
}

TensorView random_view(std::mt19937& rng) {
  const auto pick = [&rng](int low, int high) {
    return static_cast<std::int64_t>(std::uniform_int_distribution<int>(low, high)(rng));
  };
  TensorView view{pick(1, 3), pick(1, 3), pick(1, 3), pick(1, 4), {}, 4};
  view.layout = {pick(0, 40), pick(-14, 14), pick(-14, 14), pick(-14, 14)};
  return view;
}

}  // namespace

TEST_CASE("extent and overlap agree with brute force") {
  std::mt19937 rng(7);
  int overlapping = 0;
  int crossing = 0;
  for (int round = 0; round < 20000; ++round) {
    const TensorView a = random_view(rng);
    const TensorView b = random_view(rng);
    const std::vector<std::int64_t> a_elements = elements_of(a);
    const std::vector<std::int64_t> b_elements = elements_of(b);
    const std::set<std::int64_t> a_set(a_elements.begin(), a_elements.end());
    std::int64_t first = 0;
    std::int64_t last = 0;
    REQUIRE(element_extent(a, first, last));
    REQUIRE(first == *a_set.begin());
    REQUIRE(last == *a_set.rbegin());
    const bool self = a_set.size() != a_elements.size();
    REQUIRE(overlaps_itself(a) == self);
    overlapping += self;
    if (self) continue;
    bool shared = false;
    for (const std::int64_t element : b_elements) shared = shared || a_set.count(element) != 0;
    REQUIRE(views_overlap(a, 1 << 20, b, 1 << 20) == shared);
    REQUIRE(views_overlap(a, (1 << 20) + 4000, b, 1 << 20) == false);
    crossing += shared;
  }
  CHECK(overlapping > 1000);
  CHECK(crossing > 1000);
}

TEST_CASE("strides past 64 bits are noticed") {
  TensorView view{3, 1, 1, 4, {0, INT64_MAX / 2, 0, 4}, 4};
  std::int64_t first = 0;
  std::int64_t last = 0;
  CHECK(!element_extent(view, first, last));
  view.layout.batch_stride = INT64_MAX / 4;  // elements fit, bytes do not
  CHECK(!element_extent(view, first, last));
}

TEST_CASE("broadcast views of 2^60 elements are judged without walking them") {
  TensorView output{INT32_MAX, INT32_MAX, 4, 8, {0, 0, 0, 8}, 4};
  CHECK(overlaps_itself(output));
  output.layout.head_stride = 1;
  CHECK(overlaps_itself(output));
  const TensorView keys{INT32_MAX, INT32_MAX, 2, 8, {0, 0, 0, 16}, 4};
  const TensorView between{1, 1, 2, 8, {8, 0, 0, 16}, 4};
  const TensorView across{1, 1, 2, 8, {7, 0, 0, 16}, 4};
  CHECK(!views_overlap(between, 1 << 20, keys, 1 << 20));
  CHECK(views_overlap(across, 1 << 20, keys, 1 << 20));
}

TEST_CASE("views of one tensor agree with brute force") {
  std::mt19937 rng(11);
  const auto pick = [&rng](int low, int high) {
    return static_cast<std::int64_t>(std::uniform_int_distribution<int>(low, high)(rng));
  };
  int apart = 0;
  int crossing = 0;
  for (int round = 0; round < 20000; ++round) {
    TensorView a = random_view(rng);
    a.layout.batch_stride *= pick(1, 4);
    TensorView b = a;
    b.layout.offset += pick(-12, 12);
    b.width = pick(1, 4);
    // One axis may differ, so that not all of them can be left out.
    if (pick(0, 2) == 0) b.rows = pick(1, 3);
    if (pick(0, 2) == 0) b.layout.head_stride = pick(-14, 14);
    const std::vector<std::int64_t> elements = elements_of(a);
    const std::set<std::int64_t> a_set(elements.begin(), elements.end());
    bool shared = false;
    for (const std::int64_t element : elements_of(b)) {
      shared = shared || a_set.count(element) != 0;
    }
    REQUIRE(views_overlap(a, 1 << 20, b, 1 << 20) == shared);
    REQUIRE(views_overlap(b, 1 << 20, a, 1 << 20) == shared);
    crossing += shared;
    apart += !shared;
  }
  CHECK(apart > 1000);
  CHECK(crossing > 1000);
}

TEST_CASE("keys and values in halves of 2^31 pages are told apart without walking them") {
  constexpr std::int64_t kHead = 2 * 128 * 64;
  const TensorView keys{INT32_MAX, 8, 128, 64, {0, 8 * kHead, kHead, 64}, 2};
  TensorView values = keys;
  values.layout.offset = kHead / 2;
  CHECK(!views_overlap(keys, 1 << 20, values, 1 << 20));
  values.layout.offset -= 1;
  CHECK(views_overlap(keys, 1 << 20, values, 1 << 20));
  TensorView interleaved = keys;  // [K | V] in every row
  interleaved.rows = 64;
  interleaved.layout.row_stride = 128;
  values = interleaved;
  values.layout.offset = 64;
  CHECK(!views_overlap(interleaved, 1 << 20, values, 1 << 20));
  values.width = 65;
  values.heads = 1;
  values.layout.head_stride = 0;
  CHECK(views_overlap(interleaved, 1 << 20, values, 1 << 20));
}

TEST_CASE("views without elements overlap nothing, whatever their strides") {
  const TensorView some{2, 2, 2, 4, {0, 16, 8, 4}, 4};
  for (TensorView none : {TensorView{0, 2, 2, 4, {0, 0, 0, 0}, 4},
                          TensorView{2, 2, 0, 4, {0, INT64_MIN, 1, INT64_MAX}, 4}}) {
    CHECK(!overlaps_itself(none));
    CHECK(!views_overlap(none, 1 << 20, some, 1 << 20));
    CHECK(!views_overlap(some, 1 << 20, none, 1 << 20));
  }
}

TEST_CASE("the stride of an axis of one entry counts for nothing") {
  for (const std::int64_t stride : {INT64_MIN, INT64_MIN + 1, INT64_MAX, std::int64_t{0}}) {
    const TensorView view{1, 2, 3, 4, {0, stride, 12, 4}, 4};
    std::int64_t first = 0;
    std::int64_t last = 0;
    CHECK(element_extent(view, first, last));
    CHECK(first == 0);
    CHECK(last == 23);
    CHECK(!overlaps_itself(view));
    const TensorView crossed{1, 2, 3, 4, {0, stride, 11, 4}, 4};
    CHECK(overlaps_itself(crossed));
  }
}

TEST_CASE("strides of axes with one entry are never counted") {
  for (const std::int64_t stride : {INT64_MAX, INT64_MIN}) {
    const TensorView row{1, 1, 1, 8, {0, stride, stride, stride}, 4};
    const TensorView rows{1, 1, 3, 8, {0, stride, stride, 8}, 4};
    std::int64_t first = 0;
    std::int64_t last = 0;
    CHECK(element_extent(row, first, last));
    CHECK(last == 7);
    CHECK(!overlaps_itself(row));
    CHECK(!overlaps_itself(rows));
    CHECK(views_overlap(row, 1 << 20, rows, 1 << 20));
    CHECK(!views_overlap(row, (1 << 20) + 96, rows, 1 << 20));
  }
}
