// Keys in pages give the bits of the same keys gathered, on every kernel family and instruction set
// of this machine; pages and entries that nobody sees are never looked at.
#include <algorithm>
#include <array>
#include <numeric>

#include "batches.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr std::array<const char*, 4> kKernels{"", "sdpa", "sdpa_decode", "sdpa_prefill"};

/// What entries and pages of nobody hold.
constexpr std::int64_t kWild = -7;

struct Paged {
  SdpaProblem problem;
  SdpaOperands operands;
  SdpaProblem dense;  ///< the same with K and V packed
  SdpaOperands dense_operands;
};

struct Pages {
  std::int64_t page_len = 16;
  DType table = DType::i32;
  bool heads_first = false;  ///< HND, else NHD
  bool is_sparse = false;    ///< each sequence's entries in a list of their own: starts
};

std::int64_t pages_of(std::int64_t keys, std::int64_t page_len) {
  return (keys + page_len - 1) / page_len;
}

void set_entry(const Buffer& table, std::int64_t at, std::int64_t page) {
  if (table.dtype() == DType::i64) {
    table.host<std::int64_t>()[at] = page;
  } else {
    table.host<std::int32_t>()[at] = static_cast<std::int32_t>(page);
  }
}

std::int64_t entry(const Buffer& table, std::int64_t at) {
  return table.dtype() == DType::i64 ? table.host<std::int64_t>()[at]
                                     : table.host<std::int32_t>()[at];
}

TensorLayout page_layout(const Pages& pages, std::int64_t heads, std::int64_t width) {
  const std::int64_t page = heads * pages.page_len * width;
  if (pages.heads_first) return {0, page, pages.page_len * width, width};
  return {0, page, width, heads * width};
}

/// Row j of sequence b of packed keys to where its page has it.
void copy_row(const Paged& x, const Buffer& from, const TensorLayout& dense, const Buffer& to,
              const TensorLayout& paged, std::int64_t width, std::int64_t b, std::int64_t j) {
  const SdpaProblem& p = x.problem;
  const PageTable& table = *p.pages;
  const std::int64_t start =
      table.starts.empty() ? b * table.sequence_stride : table.starts[static_cast<std::size_t>(b)];
  const std::int64_t page = entry(x.operands.block_table, start + j / table.page_len);
  for (std::int64_t h = 0; h < p.n_kv_heads; ++h) {
    const std::int64_t source =
        (x.dense.kv_rows[static_cast<std::size_t>(b)] + j) * dense.row_stride +
        h * dense.head_stride;
    const std::int64_t target =
        page * paged.batch_stride + h * paged.head_stride + j % table.page_len * paged.row_stride;
    for (std::int64_t d = 0; d < width; ++d) {
      set_element(to, static_cast<std::size_t>(target + d),
                  get_element(from, static_cast<std::size_t>(source + d)));
    }
  }
}

Paged paged(const Device& device, std::mt19937& rng, DType dtype,
            const std::vector<Sequence>& sequences, const Heads& heads, const Pages& pages) {
  Paged x;
  SdpaProblem& p = x.problem;
  p = batch_problem(dtype, sequences, heads);
  pack_queries(1, p);
  x.dense = p;
  pack_keys(0, x.dense);
  SdpaOperands& dense = x.dense_operands;
  dense.q = device.empty({p.q_total, p.n_heads, p.head_dim}, dtype);
  dense.k = device.empty({x.dense.kv_total, p.n_kv_heads, p.head_dim}, dtype);
  dense.v = device.empty({x.dense.kv_total, p.n_kv_heads, p.value_dim}, dtype);
  dense.out = device.empty({p.q_total, p.n_heads, p.value_dim}, dtype);
  dense.lse = device.empty({p.n_heads, p.q_total}, DType::f32);
  fill_normal(dense.q, rng, 2);
  fill_normal(dense.k, rng, 1);
  fill_normal(dense.v, rng, 1);

  PageTable table;
  table.dtype = pages.table;
  table.page_len = pages.page_len;
  std::int64_t most = 0;
  std::int64_t all = 0;
  for (const Sequence& sequence : sequences) {
    const std::int64_t n = pages_of(sequence.keys, pages.page_len);
    table.starts.push_back(all);
    most = std::max(most, n);
    all += n;
  }
  table.n_pages = all + 3;
  table.n_entries = all;
  if (!pages.is_sparse) {
    table.starts.clear();
    table.n_entries = most + 2;
    table.sequence_stride = table.n_entries;
  }
  const std::int64_t n_table = pages.is_sparse ? all : table.n_entries * p.batch;
  x.operands = dense;
  x.operands.out = device.empty(dense.out.shape(), dtype);
  x.operands.lse = device.empty(dense.lse.shape(), DType::f32);
  x.operands.block_table = device.empty({std::max<std::int64_t>(n_table, 1)}, pages.table);
  for (std::int64_t i = 0; i < n_table; ++i) set_entry(x.operands.block_table, i, kWild);
  std::vector<std::int64_t> free(static_cast<std::size_t>(table.n_pages));
  std::iota(free.begin(), free.end(), std::int64_t{0});
  std::shuffle(free.begin(), free.end(), rng);
  std::int64_t at = 0;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const std::int64_t n = pages_of(sequences[static_cast<std::size_t>(b)].keys, pages.page_len);
    const std::int64_t start = pages.is_sparse ? at : b * table.sequence_stride;
    for (std::int64_t i = 0; i < n; ++i, ++at) {
      set_entry(x.operands.block_table, start + i, free[static_cast<std::size_t>(at)]);
    }
  }
  p.pages = table;
  p.kv_capacity = std::max<std::int64_t>(most * pages.page_len, p.kv_capacity);
  p.k = page_layout(pages, p.n_kv_heads, p.head_dim);
  p.v = page_layout(pages, p.n_kv_heads, p.value_dim);
  x.operands.k = device.empty({table.n_pages * pages.page_len * p.n_kv_heads, p.head_dim}, dtype);
  x.operands.v = device.empty({table.n_pages * pages.page_len * p.n_kv_heads, p.value_dim}, dtype);
  for (const Buffer& buffer : {x.operands.k, x.operands.v}) {
    for (std::size_t i = 0; i < buffer.element_count(); ++i) set_element(buffer, i, NAN);
  }
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t j = 0; j < p.kv_lengths[static_cast<std::size_t>(b)]; ++j) {
      copy_row(x, dense.k, x.dense.k, x.operands.k, p.k, p.head_dim, b, j);
      copy_row(x, dense.v, x.dense.v, x.operands.v, p.v, p.value_dim, b, j);
    }
  }
  return x;
}

void check_bits(const Device& device, const Paged& x) {
  for (const Buffer& buffer :
       {x.operands.out, x.operands.lse, x.dense_operands.out, x.dense_operands.lse}) {
    fill_bytes(buffer, 0xff);
  }
  sdpa(device, x.operands, x.problem);
  sdpa(device, x.dense_operands, x.dense);
  REQUIRE(bytes_of(x.operands.out) == bytes_of(x.dense_operands.out));
  REQUIRE(bytes_of(x.operands.lse) == bytes_of(x.dense_operands.lse));
}

void check_everywhere(Paged x) {
  for (const std::string& isa : isas()) {
    for (const int threads : {1, 3}) {
      const Device device = device_of(isa, threads);
      for (const char* kernel : kKernels) {
        x.problem.kernel = x.dense.kernel = kernel;
        INFO("isa ", isa, " threads ", threads, " kernel ", x.problem.kernel, " dtype ",
             name_of(x.problem.dtype), " page ", x.problem.pages->page_len);
        check_bits(device, x);
      }
    }
  }
}

const std::vector<Sequence> kMixed{{1, 700}, {0, 40}, {90, 90}, {3, 1300},
                                   {1, 1},   {5, 0},  {2, 513}};

}  // namespace

TEST_CASE("pages of every length") {
  std::mt19937 rng(1);
  const Device device("cpu");
  for (const std::int64_t page_len : {1, 3, 16, 64, 256, 2000}) {
    const DType dtype = kDTypes[static_cast<std::size_t>(page_len % 3)];
    Paged x = paged(device, rng, dtype, kMixed, {4, 2, 64, 64},
                    {page_len, DType::i32, page_len % 2 == 0, false});
    x.problem.causal = x.dense.causal = true;
    check_everywhere(x);
  }
}

TEST_CASE("tables of both widths, lists and blocks, pages of both orders") {
  std::mt19937 rng(2);
  const Device device("cpu");
  for (const DType table : {DType::i32, DType::i64}) {
    for (const bool heads_first : {false, true}) {
      for (const bool is_sparse : {false, true}) {
        check_everywhere(paged(device, rng, DType::bf16, kMixed, {8, 1, 40, 24},
                               {7, table, heads_first, is_sparse}));
      }
    }
  }
}

TEST_CASE("pages before every row's window are not looked at") {
  std::mt19937 rng(3);
  const Device device("cpu");
  Paged x = paged(device, rng, DType::f16, {{1, 900}, {30, 700}}, {4, 2, 64, 64}, {16, DType::i32});
  for (SdpaProblem* p : {&x.problem, &x.dense}) {
    p->causal = true;
    p->window_left = 99;
  }
  for (std::int64_t i = 0; i < 800 / 16; ++i) set_entry(x.operands.block_table, i, kWild);
  for (std::int64_t i = 0; i < (700 - 30 - 99) / 16; ++i) {
    set_entry(x.operands.block_table, x.problem.pages->sequence_stride + i, kWild);
  }
  check_everywhere(x);
  for (SdpaProblem* p : {&x.problem, &x.dense}) {
    p->window_left = Visibility::kUnlimited;
    p->kv_starts = {810, 600};
  }
  check_everywhere(x);
}

TEST_CASE("sequences share pages") {
  std::mt19937 rng(4);
  const Device device("cpu");
  Paged x = paged(device, rng, DType::f32, {{1, 100}, {1, 100}, {1, 100}}, {4, 2, 64, 64}, {10});
  const std::int64_t row = x.problem.pages->sequence_stride;
  for (std::int64_t i = 0; i < 10; ++i) {
    for (std::int64_t b = 1; b < 3; ++b) {
      set_entry(x.operands.block_table, b * row + i, entry(x.operands.block_table, i));
    }
  }
  x.dense.kv_rows = {0, 0, 0};
  check_everywhere(x);
}

TEST_CASE("one tensor holds keys and values") {
  std::mt19937 rng(5);
  const Device device("cpu");
  Paged x = paged(device, rng, DType::f32, {{1, 300}, {40, 60}}, {2, 1, 32, 32}, {16});
  const std::int64_t n_pages = x.problem.pages->n_pages;
  const Buffer both = device.empty({n_pages, 16, 64}, DType::f32);
  for (std::int64_t row = 0; row < n_pages * 16; ++row) {
    std::memcpy(both.host<float>() + row * 64, x.operands.k.host<float>() + row * 32, 128);
    std::memcpy(both.host<float>() + row * 64 + 32, x.operands.v.host<float>() + row * 32, 128);
  }
  x.operands.k = x.operands.v = both;
  x.problem.k = {0, 16 * 64, 0, 64};
  x.problem.v = {32, 16 * 64, 0, 64};
  check_everywhere(x);
}

TEST_CASE("queries that are not packed, with a mask") {
  std::mt19937 rng(6);
  const Device device("cpu");
  Paged x = paged(device, rng, DType::f32, {{3, 70}, {3, 50}}, {4, 2, 32, 32}, {16});
  for (SdpaProblem* p : {&x.problem, &x.dense}) {
    p->q_rows.clear();
    p->q = {0, 3 * 4 * 32, 32, 4 * 32};
    p->out = p->q;
    p->mask = MaskLayout{DType::f32, 0, 3 * 80, 0, 80, 1};
  }
  for (SdpaOperands* operands : {&x.operands, &x.dense_operands}) {
    operands->mask = device.empty({2, 3, 80}, DType::f32);
    std::mt19937 own(7);
    fill_normal(operands->mask, own, 1);
    operands->lse = device.empty({2, 4, 3}, DType::f32);
  }
  check_everywhere(x);
}

TEST_CASE("an output over any sequence's entries is refused") {
  std::mt19937 rng(9);
  const Device device("cpu");
  Paged x = paged(device, rng, DType::f32, {{1, 20}, {1, 20}}, {1, 1, 8, 8}, {16});
  const std::int64_t n_table = x.operands.block_table.shape()[0];
  const std::int64_t n_out = x.problem.q_total * 8;
  const Buffer memory = device.empty({n_table + n_out}, DType::f32);
  std::memcpy(memory.data(), x.operands.block_table.data(), static_cast<std::size_t>(n_table) * 4);
  const auto view = [&](std::int64_t first, std::int64_t n, DType dtype) {
    auto* data = static_cast<char*>(memory.data()) + first * 4;
    return device.wrap(
        {data, static_cast<std::size_t>(n) * 4, false, std::make_shared<Buffer>(memory)}, dtype,
        {n});
  };
  x.operands.block_table = view(0, n_table, DType::i32);
  x.operands.out = view(n_table, n_out, DType::f32);
  sdpa(device, x.operands, x.problem);
  x.operands.out = view(x.problem.pages->sequence_stride + 1, n_out, DType::f32);
  CHECK(error_of([&] { sdpa(device, x.operands, x.problem); }, "overlaps block_table") ==
        ErrorCode::invalid_argument);
}

TEST_CASE("pages are checked") {
  std::mt19937 rng(8);
  const Device device("cpu");
  const Paged x = paged(device, rng, DType::f32, {{2, 35}, {1, 20}}, {2, 1, 8, 8}, {16});
  const auto refusal = [&](const std::string& word, auto change) {
    Paged bad = x;
    bad.operands.block_table = device.empty(x.operands.block_table.shape(), DType::i32);
    std::memcpy(bad.operands.block_table.data(), x.operands.block_table.data(),
                x.operands.block_table.byte_len());
    fill_bytes(x.operands.out, 0xee);
    change(bad);
    const ErrorCode code = error_of([&] { sdpa(device, bad.operands, bad.problem); }, word);
    CHECK((code == ErrorCode::invalid_argument || code == ErrorCode::unsupported_dtype));
    for (const std::uint8_t byte : bytes_of(x.operands.out)) REQUIRE(byte == 0xee);
  };
  refusal("block_table: page -1 of sequence 1, entry 1, takes 0 to", [&](Paged& bad) {
    set_entry(bad.operands.block_table, x.problem.pages->sequence_stride + 1, -1);
  });
  refusal("block_table: page 8 of sequence 0, entry 2",
          [&](Paged& bad) { set_entry(bad.operands.block_table, 2, x.problem.pages->n_pages); });
  refusal("kv_lengths: 81 of sequence 0, takes 0 to the 80 slots", [](Paged& bad) {
    bad.problem.kv_lengths[0] = 81;
    bad.problem.kv_capacity = 100;
  });
  refusal("page_len: 0", [](Paged& bad) { bad.problem.pages->page_len = 0; });
  refusal("block_table: dtype f32, takes i32 or i64",
          [](Paged& bad) { bad.problem.pages->dtype = DType::f32; });
  refusal("block_table: dtype i32, but its layout says i64",
          [](Paged& bad) { bad.problem.pages->dtype = DType::i64; });
  refusal("k: elements", [](Paged& bad) { bad.problem.pages->n_pages += 1; });
  // A window that begins in the middle of a page sees that page.
  refusal("block_table: page -1 of sequence 0, entry 1", [](Paged& bad) {
    bad.problem.window_left = 14;  // the first row stands at 33
    bad.problem.causal = true;
    set_entry(bad.operands.block_table, 0, kWild);
    set_entry(bad.operands.block_table, 1, -1);
  });
  refusal("block_table: elements", [&](Paged& bad) {
    bad.operands.block_table = device.empty({x.operands.block_table.shape()[0] - 1}, DType::i32);
    fill_bytes(bad.operands.block_table, 0);
  });
  refusal("no pages", [](Paged& bad) { bad.problem.pages->n_pages = 0; });
  refusal("starts: 99", [](Paged& bad) { bad.problem.pages->starts = {0, 99}; });
}
