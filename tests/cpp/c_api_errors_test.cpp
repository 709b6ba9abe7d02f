// What the C interface refuses, with which status and message; handles, structs and threads.
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "c_problem.h"
#include "capi/guard.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

/// Whether the status is the one wanted and the message holds the word.
void check_refused(metal_sdpa_status status, metal_sdpa_status wanted, const std::string& word) {
  const std::string text = metal_sdpa_last_message();
  INFO("the message is: ", text, "; the word is: ", word);
  CHECK(status == wanted);
  CHECK(text.find(word) != std::string::npos);
}

void check_bad(metal_sdpa_status status, const std::string& word) {
  check_refused(status, METAL_SDPA_INVALID_ARGUMENT, word);
}

BufferHandle allocate(const DeviceHandle& device, metal_sdpa_dtype dtype, std::int64_t elements) {
  metal_sdpa_buffer* buffer = nullptr;
  REQUIRE(metal_sdpa_buffer_allocate(device.get(), dtype, elements, &buffer) == METAL_SDPA_OK);
  return BufferHandle(buffer);
}

/// Two sequences, 2 heads, 3 rows, 5 slots, everything packed, f32.
struct World {
  World() : device(open_device("cpu")) {
    REQUIRE(metal_sdpa_problem_init(&problem, sizeof problem) == METAL_SDPA_OK);
    problem.batch = 2;
    problem.n_heads = problem.n_kv_heads = 2;
    problem.seq_len = 3;
    problem.kv_capacity = 5;
    problem.head_dim = problem.value_dim = 4;
    problem.scale = 0.5f;
    REQUIRE(metal_sdpa_problem_set_packed_layouts(&problem) == METAL_SDPA_OK);
    REQUIRE(metal_sdpa_operands_init(&operands, sizeof operands) == METAL_SDPA_OK);
    q = allocate(device, METAL_SDPA_F32, 48);
    k = allocate(device, METAL_SDPA_F32, 80);
    v = allocate(device, METAL_SDPA_F32, 80);
    out = allocate(device, METAL_SDPA_F32, 48);
    operands.q = q.get();
    operands.k = k.get();
    operands.v = v.get();
    operands.out = out.get();
    fill_bytes(out->buffer, 0xa5);
  }

  metal_sdpa_status run() const { return metal_sdpa_sdpa(device.get(), &problem, &operands); }

  DeviceHandle device;
  BufferHandle q, k, v, out;
  metal_sdpa_problem problem;
  metal_sdpa_operands operands;
};

void refuse(metal_sdpa_status status, const std::string& word,
            const std::function<void(World&)>& change) {
  World world;
  const auto before = bytes_of(world.out->buffer);
  change(world);
  check_refused(world.run(), status, word);
  CHECK(bytes_of(world.out->buffer) == before);
}

void refuse_bad(const std::string& word, const std::function<void(World&)>& change) {
  refuse(METAL_SDPA_INVALID_ARGUMENT, word, change);
}

void count_release(void* context) { ++*static_cast<int*>(context); }

/// A struct whose second version has one field more.
struct Grown {
  std::size_t struct_size;
  std::int64_t old_field;
  std::int64_t new_field;
};
void set_defaults(Grown& grown) { grown.new_field = 7; }

}  // namespace

template <>
inline constexpr std::size_t metal_sdpa::capi::kFirstSize<Grown> = 16;

TEST_CASE("NULL is refused for every handle and every struct") {
  const World w;
  metal_sdpa_device* device = nullptr;
  metal_sdpa_buffer* buffer = nullptr;
  metal_sdpa_encoder* encoder = nullptr;
  metal_sdpa_device_info device_info;
  metal_sdpa_buffer_info buffer_info;
  metal_sdpa_write_kv_problem write;
  metal_sdpa_write_kv_operands write_operands;
  metal_sdpa_merge_problem merge;
  metal_sdpa_merge_operands merge_operands;
  REQUIRE(metal_sdpa_write_kv_problem_init(&write, sizeof write) == METAL_SDPA_OK);
  REQUIRE(metal_sdpa_write_kv_operands_init(&write_operands, sizeof write_operands) ==
          METAL_SDPA_OK);
  REQUIRE(metal_sdpa_merge_problem_init(&merge, sizeof merge) == METAL_SDPA_OK);
  REQUIRE(metal_sdpa_merge_operands_init(&merge_operands, sizeof merge_operands) == METAL_SDPA_OK);
  const metal_sdpa_device* d = w.device.get();

  check_bad(metal_sdpa_device_open("cpu", nullptr, nullptr), "device_open: device: got NULL");
  check_bad(metal_sdpa_device_describe(nullptr, &device_info, sizeof device_info),
            "device: got NULL");
  check_bad(metal_sdpa_device_describe(d, nullptr, sizeof device_info), "info: got NULL");
  check_bad(metal_sdpa_device_require(nullptr, "mask"), "device: got NULL");
  check_bad(metal_sdpa_device_require(d, nullptr), "feature: got NULL");
  check_bad(metal_sdpa_device_synchronize(nullptr), "device: got NULL");
  check_bad(metal_sdpa_buffer_allocate(nullptr, METAL_SDPA_F32, 1, &buffer), "device: got NULL");
  check_bad(metal_sdpa_buffer_allocate(d, METAL_SDPA_F32, 1, nullptr), "buffer: got NULL");
  float number = 0;
  check_bad(
      metal_sdpa_buffer_wrap(nullptr, METAL_SDPA_F32, &number, 4, 0, nullptr, nullptr, &buffer),
      "device: got NULL");
  check_bad(metal_sdpa_buffer_wrap(d, METAL_SDPA_F32, &number, 4, 0, nullptr, nullptr, nullptr),
            "buffer: got NULL");
  check_bad(metal_sdpa_buffer_wrap(d, METAL_SDPA_F32, nullptr, 4, 0, nullptr, nullptr, &buffer),
            "data: got a null pointer");
  check_bad(metal_sdpa_buffer_wrap_native(nullptr, METAL_SDPA_F32, &number, 0, 4, nullptr, nullptr,
                                          &buffer),
            "device: got NULL");
  check_bad(
      metal_sdpa_buffer_wrap_native(d, METAL_SDPA_F32, nullptr, 0, 4, nullptr, nullptr, &buffer),
      "handle: got a null pointer");
  check_bad(metal_sdpa_buffer_slice(nullptr, 0, 1, &buffer), "buffer: got NULL");
  check_bad(metal_sdpa_buffer_slice(w.q.get(), 0, 1, nullptr), "slice: got NULL");
  check_bad(metal_sdpa_buffer_describe(nullptr, &buffer_info, sizeof buffer_info),
            "buffer: got NULL");
  check_bad(metal_sdpa_buffer_describe(w.q.get(), nullptr, sizeof buffer_info), "info: got NULL");
  check_bad(metal_sdpa_sdpa(nullptr, &w.problem, &w.operands), "sdpa: device: got NULL");
  check_bad(metal_sdpa_sdpa(d, nullptr, &w.operands), "sdpa: problem: got NULL");
  check_bad(metal_sdpa_sdpa(d, &w.problem, nullptr), "sdpa: operands: got NULL");
  check_bad(metal_sdpa_write_kv(nullptr, &write, &write_operands), "write_kv: device: got NULL");
  check_bad(metal_sdpa_write_kv(d, nullptr, &write_operands), "write_kv: problem: got NULL");
  check_bad(metal_sdpa_write_kv(d, &write, nullptr), "write_kv: operands: got NULL");
  check_bad(metal_sdpa_merge_states(nullptr, &merge, &merge_operands), "device: got NULL");
  check_bad(metal_sdpa_merge_states(d, nullptr, &merge_operands), "problem: got NULL");
  check_bad(metal_sdpa_merge_states(d, &merge, nullptr), "operands: got NULL");
  check_bad(metal_sdpa_encoder_open(nullptr, &encoder), "encoder_open: device: got NULL");
  check_bad(metal_sdpa_encoder_open(d, nullptr), "encoder_open: encoder: got NULL");
  check_bad(metal_sdpa_encode_sdpa(nullptr, &w.problem, &w.operands), "encoder: got NULL");
  check_bad(metal_sdpa_encode_write_kv(nullptr, &write, &write_operands), "encoder: got NULL");
  check_bad(metal_sdpa_encode_merge_states(nullptr, &merge, &merge_operands), "encoder: got NULL");
  check_bad(metal_sdpa_encoder_commit(nullptr), "encoder_commit: encoder: got NULL");
  check_bad(metal_sdpa_encoder_wait(nullptr), "encoder_wait: encoder: got NULL");
  check_bad(metal_sdpa_problem_set_packed_layouts(nullptr), "problem: got NULL");
  check_bad(metal_sdpa_write_kv_problem_set_packed_layouts(nullptr), "problem: got NULL");
  check_bad(metal_sdpa_merge_problem_set_packed_layouts(nullptr), "problem: got NULL");
  CHECK(device == nullptr);
  CHECK(buffer == nullptr);
  CHECK(encoder == nullptr);
  metal_sdpa_device_close(nullptr);
  metal_sdpa_buffer_release(nullptr);
  metal_sdpa_encoder_close(nullptr);
}

TEST_CASE("devices: kinds, options, facts, features, threads") {
  metal_sdpa_device* device = reinterpret_cast<metal_sdpa_device*>(&device);
  check_refused(metal_sdpa_device_open("tpu", nullptr, &device), METAL_SDPA_DEVICE_NOT_FOUND,
                "kind: got \"tpu\"");
  CHECK(device == nullptr);
  metal_sdpa_device_options options;
  REQUIRE(metal_sdpa_device_options_init(&options, sizeof options) == METAL_SDPA_OK);
  options.isa = "z80";
  check_bad(metal_sdpa_device_open("cpu", &options, &device), "z80");
  options.isa = "baseline";
  options.threads = -1;
  check_bad(metal_sdpa_device_open("cpu", &options, &device), "threads");
  options.threads = 1;
  REQUIRE(metal_sdpa_device_open("cpu", &options, &device) == METAL_SDPA_OK);
  CHECK(device->device.options().isa == "baseline");
  CHECK(device->device.options().threads == 1);
  const DeviceHandle owner(device);
  metal_sdpa_device_info info;
  REQUIRE(metal_sdpa_device_describe(device, &info, sizeof info) == METAL_SDPA_OK);
  CHECK(info.struct_size == sizeof info);
  CHECK(std::string(info.kind) == "cpu");
  CHECK(info.name == device->device.name());
  CHECK(info.max_head_dim == device->device.limits().max_head_dim);
  CHECK(info.max_buffer_bytes == device->device.limits().max_buffer_bytes);
  CHECK(metal_sdpa_device_require(device, "paged") == METAL_SDPA_OK);
  check_bad(metal_sdpa_device_require(device, "telepathy"), "telepathy");
  CHECK(metal_sdpa_device_synchronize(device) == METAL_SDPA_OK);
  CHECK(open_device(nullptr)->device == Device("auto"));
  const std::int32_t threads = metal_sdpa_get_num_threads();
  check_bad(metal_sdpa_set_num_threads(0), "0");
  CHECK(metal_sdpa_set_num_threads(threads + 1) == METAL_SDPA_OK);
  CHECK(get_num_threads() == threads + 1);
  CHECK(metal_sdpa_set_num_threads(threads) == METAL_SDPA_OK);
  CHECK(std::string(metal_sdpa_version()) == METAL_SDPA_VERSION);
  metal_sdpa_shutdown();
  CHECK(World().run() == METAL_SDPA_OK);
}

TEST_CASE("wrapped memory is given back once, when nothing refers to it") {
  const DeviceHandle device = open_device("cpu");
  alignas(128) float numbers[32] = {};
  int released = 0;
  metal_sdpa_buffer* buffer = reinterpret_cast<metal_sdpa_buffer*>(&buffer);
  const auto wrap = [&](metal_sdpa_dtype dtype, void* data, std::size_t byte_len) {
    return metal_sdpa_buffer_wrap(device.get(), dtype, data, byte_len, 1, &count_release, &released,
                                  &buffer);
  };
  check_bad(wrap(METAL_SDPA_F32, numbers, 7), "byte_len: 7, takes a multiple of the 4 bytes");
  CHECK(buffer == nullptr);
  check_bad(wrap(METAL_SDPA_F32, numbers, 0), "byte_len: 0");
  check_bad(wrap(METAL_SDPA_F32, reinterpret_cast<char*>(numbers) + 2, 4), "is not aligned");
  check_refused(wrap(8, numbers, 8), METAL_SDPA_UNSUPPORTED_DTYPE, "dtype: 8, takes");
  check_refused(wrap(-1, numbers, 8), METAL_SDPA_UNSUPPORTED_DTYPE, "dtype: -1, takes");
  check_refused(metal_sdpa_buffer_wrap_native(device.get(), METAL_SDPA_F32, numbers, 0, 4,
                                              &count_release, &released, &buffer),
                METAL_SDPA_UNSUPPORTED, "wrap");
  CHECK(released == 0);

  REQUIRE(wrap(METAL_SDPA_U16, numbers, 60) == METAL_SDPA_OK);
  BufferHandle whole(buffer);
  metal_sdpa_buffer_info info;
  REQUIRE(metal_sdpa_buffer_describe(buffer, &info, sizeof info) == METAL_SDPA_OK);
  CHECK(info.data == numbers);
  CHECK(info.byte_len == 60);
  CHECK(info.dtype == METAL_SDPA_U16);
  CHECK(info.read_only == 1);
  metal_sdpa_buffer* slice = buffer;
  check_bad(metal_sdpa_buffer_slice(whole.get(), 0, 31, &slice), "leave the view");
  CHECK(slice == nullptr);
  REQUIRE(metal_sdpa_buffer_slice(whole.get(), 4, 28, &slice) == METAL_SDPA_OK);
  whole.reset();
  CHECK(released == 0);
  REQUIRE(metal_sdpa_buffer_describe(slice, &info, sizeof info) == METAL_SDPA_OK);
  CHECK(info.data == numbers + 1);
  CHECK(info.byte_len == 56);
  metal_sdpa_buffer_release(slice);
  CHECK(released == 1);

  REQUIRE(metal_sdpa_buffer_wrap(device.get(), METAL_SDPA_F32, numbers, 128, 0, nullptr, nullptr,
                                 &buffer) == METAL_SDPA_OK);
  whole.reset(buffer);
  REQUIRE(metal_sdpa_buffer_describe(buffer, &info, sizeof info) == METAL_SDPA_OK);
  CHECK(info.read_only == 0);
}

TEST_CASE("buffers that are not made") {
  const DeviceHandle device = open_device("cpu");
  metal_sdpa_buffer* buffer = nullptr;
  check_bad(metal_sdpa_buffer_allocate(device.get(), METAL_SDPA_F32, 0, &buffer),
            "elements: 0, takes 1 or more");
  check_bad(metal_sdpa_buffer_allocate(device.get(), METAL_SDPA_F32, -4, &buffer), "elements: -4");
  check_bad(metal_sdpa_buffer_allocate(device.get(), METAL_SDPA_F32, INT64_MAX, &buffer), "shape");
  check_refused(metal_sdpa_buffer_allocate(device.get(), METAL_SDPA_U8, INT64_MAX, &buffer),
                METAL_SDPA_BUFFER_ALLOCATION, "alloc_buffer");
  check_refused(metal_sdpa_buffer_allocate(device.get(), 99, 1, &buffer),
                METAL_SDPA_UNSUPPORTED_DTYPE, "dtype: 99");
}

TEST_CASE("bad problems are refused by name, and nothing is written") {
  CHECK(World().run() == METAL_SDPA_OK);
  refuse_bad("scale: nan", [](World& w) { w.problem.scale = NAN; });
  refuse_bad("batch: -1, takes 0 to", [](World& w) { w.problem.batch = -1; });
  refuse_bad("batch: 2147483648", [](World& w) { w.problem.batch = std::int64_t{1} << 31; });
  refuse_bad("n_heads: 0", [](World& w) { w.problem.n_heads = 0; });
  refuse_bad("value_dim: 0", [](World& w) { w.problem.value_dim = 0; });
  refuse_bad("seq_len: is not set", [](World& w) { w.problem.seq_len = METAL_SDPA_UNSET; });
  refuse_bad("kv_capacity: is not set", [](World& w) { w.problem.kv_capacity = METAL_SDPA_UNSET; });
  refuse_bad("kv_lengths: 6", [](World& w) { w.problem.kv_len = 6; });
  refuse_bad("window: left -2", [](World& w) { w.problem.window_left = -2; });
  refuse_bad("key_stride: 0", [](World& w) { w.problem.key_stride = 0; });
  refuse_bad("softcap", [](World& w) { w.problem.softcap = -1; });
  refuse_bad("kernel", [](World& w) { w.problem.kernel = "no_such_kernel"; });
  refuse_bad("output: its strides", [](World& w) { w.problem.out = {}; });
  refuse(METAL_SDPA_UNSUPPORTED_DTYPE, "sdpa: dtype: 77", [](World& w) { w.problem.dtype = 77; });
  refuse(METAL_SDPA_UNSUPPORTED_DTYPE, "q: dtype u8", [](World& w) { w.problem.dtype = 3; });
  refuse(METAL_SDPA_UNSUPPORTED_DTYPE, "q: dtype f32",
         [](World& w) { w.problem.dtype = METAL_SDPA_F16; });
  static const metal_sdpa_mask_layout mask{0, 0, 0, 0, 1, 9};
  refuse(METAL_SDPA_UNSUPPORTED_DTYPE, "mask: dtype: 9", [](World& w) { w.problem.mask = &mask; });
  static const metal_sdpa_head_layout heads{0, 0, 1, -3};
  refuse(METAL_SDPA_UNSUPPORTED_DTYPE, "sinks: dtype: -3",
         [](World& w) { w.problem.sinks = &heads; });
  refuse(METAL_SDPA_UNSUPPORTED_DTYPE, "alibi_slopes: dtype: -3",
         [](World& w) { w.problem.alibi_slopes = &heads; });
}

TEST_CASE("bad packed rows and pages are refused by name") {
  static const std::int64_t late[] = {1, 2, 3};
  static const std::int64_t falling[] = {0, 3, 2};
  static const std::int64_t fine[] = {0, 1, 3};
  static const std::int64_t long_rows[] = {0, 3};
  static const std::int64_t negative[] = {-1, 1};
  refuse_bad("cu_seqlens_q: begins with 1", [](World& w) { w.problem.cu_seqlens_q = late; });
  refuse_bad("cu_seqlens_k: 2 behind 3 at entry 2",
             [](World& w) { w.problem.cu_seqlens_k = falling; });
  refuse_bad("q_rows: are given, and so is cu_seqlens_q", [](World& w) {
    w.problem.cu_seqlens_q = fine;
    w.problem.q_rows = fine;
  });
  refuse_bad("kv_rows: are given, and so is cu_seqlens_k", [](World& w) {
    w.problem.cu_seqlens_k = fine;
    w.problem.kv_rows = fine;
  });
  refuse_bad("cu_seqlens_q: ends with 3, takes at most q_total 2", [](World& w) {
    w.problem.cu_seqlens_q = fine;
    w.problem.q_total = 2;
  });
  refuse_bad("query_lengths: 3 of sequence 1, takes 0 to the 2 rows", [](World& w) {
    w.problem.cu_seqlens_q = fine;
    w.problem.query_lengths = long_rows;
  });
  refuse_bad("kv_lengths: -1 of sequence 0, takes 0 to the 1 rows", [](World& w) {
    w.problem.cu_seqlens_k = fine;
    w.problem.kv_lengths = negative;
  });
  refuse_bad("query_lengths: 2 of sequence 0", [](World& w) {
    w.problem.cu_seqlens_q = fine;
    w.problem.query_len = 2;
  });
  refuse_bad("q_total: 9, but neither", [](World& w) { w.problem.q_total = 9; });
  refuse_bad("kv_total: is not set", [](World& w) { w.problem.kv_rows = fine; });
  refuse_bad("seq_len: is not set", [](World& w) {
    w.problem.q_rows = fine;
    w.problem.q_total = 6;
    w.problem.seq_len = METAL_SDPA_UNSET;
  });
  static metal_sdpa_page_table pages;
  REQUIRE(metal_sdpa_page_table_init(&pages, sizeof pages) == METAL_SDPA_OK);
  refuse_bad("page_len: 0", [](World& w) { w.problem.pages = &pages; });
  pages.page_len = 5;
  pages.n_pages = 2;
  pages.n_entries = 1;
  pages.sequence_stride = 1;
  refuse_bad("block_table: the buffer is empty", [](World& w) { w.problem.pages = &pages; });
  const BufferHandle table = allocate(open_device("cpu"), METAL_SDPA_I32, 2);
  table->buffer.host<std::int32_t>()[1] = 2;
  refuse_bad("block_table: page 2 of sequence 1", [&](World& w) {
    w.problem.pages = &pages;
    w.operands.block_table = table.get();
  });
  pages.dtype = 12;
  refuse(METAL_SDPA_UNSUPPORTED_DTYPE, "pages: dtype: 12",
         [](World& w) { w.problem.pages = &pages; });
  pages.struct_size = 0;
  refuse_bad("pages: struct_size 0", [](World& w) { w.problem.pages = &pages; });
}

TEST_CASE("memory that is missing, read-only, too short or without a use is refused") {
  refuse_bad("q: the buffer is empty", [](World& w) { w.operands.q = nullptr; });
  refuse_bad("output: the buffer is empty", [](World& w) { w.operands.out = nullptr; });
  refuse_bad("lse: the buffer is empty", [](World& w) { w.problem.return_lse = 1; });
  refuse_bad("k: elements", [](World& w) { w.operands.k = w.q.get(); });
  refuse_bad("lse: is given, but the problem's return_lse is 0",
             [](World& w) { w.operands.lse = w.q.get(); });
  refuse_bad("mask: is given", [](World& w) { w.operands.mask = w.q.get(); });
  refuse_bad("sinks: is given", [](World& w) { w.operands.sinks = w.q.get(); });
  refuse_bad("alibi_slopes: is given", [](World& w) { w.operands.alibi_slopes = w.q.get(); });
  refuse_bad("block_table: is given", [](World& w) { w.operands.block_table = w.q.get(); });
  refuse_bad("output: overlaps q", [](World& w) { w.operands.q = w.out.get(); });
  alignas(128) static float numbers[48] = {};
  World world;
  metal_sdpa_buffer* out = nullptr;
  REQUIRE(metal_sdpa_buffer_wrap(world.device.get(), METAL_SDPA_F32, numbers, sizeof numbers, 1,
                                 nullptr, nullptr, &out) == METAL_SDPA_OK);
  const BufferHandle owner(out);
  world.operands.out = out;
  check_bad(world.run(), "output: the buffer is read-only");
}

TEST_CASE("structs say their size, and callers of other versions are understood") {
  refuse_bad("problem: struct_size 0, takes", [](World& w) { w.problem.struct_size = 0; });
  refuse_bad("operands: struct_size 8, takes", [](World& w) { w.operands.struct_size = 8; });
  refuse_bad("problem: struct_size", [](World& w) { w.problem.struct_size = 1u << 20; });
  metal_sdpa_problem problem;
  check_bad(metal_sdpa_problem_init(&problem, sizeof problem - 8), "problem: struct_size");
  check_bad(metal_sdpa_problem_init(nullptr, sizeof problem), "problem: got NULL");

  // A newer header's struct: this library's fields, and others behind them.
  World world;
  struct {
    metal_sdpa_problem known;
    std::int64_t unknown;
  } newer;
  std::memset(static_cast<void*>(&newer), 0xff, sizeof newer);
  REQUIRE(metal_sdpa_problem_init(&newer.known, sizeof newer) == METAL_SDPA_OK);
  CHECK(newer.unknown == 0);
  newer.known = world.problem;
  newer.known.struct_size = sizeof newer;
  world.problem.struct_size = 0;
  CHECK(metal_sdpa_sdpa(world.device.get(), &newer.known, &world.operands) == METAL_SDPA_OK);
  newer.unknown = 1;
  check_refused(metal_sdpa_sdpa(world.device.get(), &newer.known, &world.operands),
                METAL_SDPA_UNSUPPORTED, "problem: byte");
  CHECK(metal_sdpa_problem_set_packed_layouts(&newer.known) == METAL_SDPA_UNSUPPORTED);

  // An older header's struct lacks fields, and nothing is written where they would be.
  Grown old{16, 5, 99};
  CHECK(capi::read_struct("call", "old", &old).new_field == 7);
  CHECK(capi::read_struct("call", "old", &old).old_field == 5);
  capi::write_back(capi::read_struct("call", "old", &old), &old);
  CHECK(old.new_field == 99);
  capi::init_struct("call", "old", &old, 16);
  CHECK(old.old_field == 0);
  CHECK(old.new_field == 99);
  capi::init_struct("call", "old", &old, 24);
  CHECK(old.new_field == 7);
}

TEST_CASE("defaults are those that the header names") {
  metal_sdpa_problem p;
  REQUIRE(metal_sdpa_problem_init(&p, sizeof p) == METAL_SDPA_OK);
  CHECK(p.struct_size == sizeof p);
  CHECK(p.batch == 1);
  CHECK(p.dtype == METAL_SDPA_F32);
  CHECK(p.scale != p.scale);
  for (const std::int64_t side : {p.window_left, p.window_right}) {
    CHECK(side == METAL_SDPA_UNLIMITED);
  }
  for (const std::int64_t unset :
       {p.seq_len, p.kv_capacity, p.kv_len, p.q_start, p.query_len, p.q_total, p.kv_total}) {
    CHECK(unset == METAL_SDPA_UNSET);
  }
  CHECK(p.key_stride == 1);
  CHECK(p.softcap == 0);
  metal_sdpa_page_table table;
  REQUIRE(metal_sdpa_page_table_init(&table, sizeof table) == METAL_SDPA_OK);
  CHECK(table.dtype == METAL_SDPA_I32);
  CHECK(table.check_entries == 1);
  CHECK(table.entry_stride == 1);
  metal_sdpa_write_kv_problem write;
  REQUIRE(metal_sdpa_write_kv_problem_init(&write, sizeof write) == METAL_SDPA_OK);
  CHECK(write.check_slots == 1);
  CHECK(write.n_pages == 1);
}

TEST_CASE("checks of slots and of table entries can be left out") {
  const DeviceHandle device = open_device("cpu");
  metal_sdpa_write_kv_problem write;
  REQUIRE(metal_sdpa_write_kv_problem_init(&write, sizeof write) == METAL_SDPA_OK);
  write.tokens = write.heads = write.head_dim = write.value_dim = write.page_size = 1;
  REQUIRE(metal_sdpa_write_kv_problem_set_packed_layouts(&write) == METAL_SDPA_OK);
  const BufferHandle rows = allocate(device, METAL_SDPA_F32, 1);
  const BufferHandle k = allocate(device, METAL_SDPA_F32, 1);
  const BufferHandle v = allocate(device, METAL_SDPA_F32, 1);
  const BufferHandle slots = allocate(device, METAL_SDPA_I32, 1);
  slots->buffer.host<std::int32_t>()[0] = 5;
  metal_sdpa_write_kv_operands memory{sizeof memory, rows.get(), rows.get(),
                                      k.get(),       v.get(),    slots.get()};
  check_bad(metal_sdpa_write_kv(device.get(), &write, &memory), "slots: 5 of token 0");
  write.check_slots = 0;
  CHECK(metal_sdpa_write_kv(device.get(), &write, &memory) == METAL_SDPA_OK);
  write.dtype = 40;
  check_refused(metal_sdpa_write_kv(device.get(), &write, &memory), METAL_SDPA_UNSUPPORTED_DTYPE,
                "write_kv: dtype: 40");
  metal_sdpa_merge_problem merge;
  REQUIRE(metal_sdpa_merge_problem_init(&merge, sizeof merge) == METAL_SDPA_OK);
  metal_sdpa_merge_operands states;
  REQUIRE(metal_sdpa_merge_operands_init(&states, sizeof states) == METAL_SDPA_OK);
  check_bad(metal_sdpa_merge_states(device.get(), &merge, &states), "n_states: 0");
  merge.out_dtype = -1;
  check_refused(metal_sdpa_merge_states(device.get(), &merge, &states),
                METAL_SDPA_UNSUPPORTED_DTYPE, "merge_states: out_dtype: -1");
}

TEST_CASE("layouts of extents that no memory has are refused where they are used") {
  constexpr std::int64_t kHuge = std::int64_t{1} << 40;
  World world;
  world.problem.n_heads = world.problem.n_kv_heads = world.problem.seq_len = kHuge;
  CHECK(metal_sdpa_problem_set_packed_layouts(&world.problem) == METAL_SDPA_OK);
  check_bad(world.run(), "n_heads: 1099511627776");
  metal_sdpa_write_kv_problem write;
  REQUIRE(metal_sdpa_write_kv_problem_init(&write, sizeof write) == METAL_SDPA_OK);
  write.heads = write.head_dim = write.page_size = kHuge;
  CHECK(metal_sdpa_write_kv_problem_set_packed_layouts(&write) == METAL_SDPA_OK);
  CHECK(write.k_cache.page_stride == INT64_MAX);
  CHECK(write.k_new.token_stride == INT64_MAX);
  metal_sdpa_merge_problem merge;
  REQUIRE(metal_sdpa_merge_problem_init(&merge, sizeof merge) == METAL_SDPA_OK);
  merge.n_states = merge.batch = merge.heads = merge.rows = merge.width = kHuge;
  CHECK(metal_sdpa_merge_problem_set_packed_layouts(&merge) == METAL_SDPA_OK);
  CHECK(merge.outs.state_stride == INT64_MAX);
  CHECK(merge.out.head_stride == INT64_MAX);
}

TEST_CASE("an encoder in the wrong state refuses, and one that is dropped leaves no trace") {
  World world;
  metal_sdpa_encoder* made = nullptr;
  REQUIRE(metal_sdpa_encoder_open(world.device.get(), &made) == METAL_SDPA_OK);
  EncoderHandle encoder(made);
  check_bad(metal_sdpa_encoder_wait(made), "");
  CHECK(metal_sdpa_encode_sdpa(made, &world.problem, &world.operands) == METAL_SDPA_OK);
  world.problem.n_heads = 3;
  check_bad(metal_sdpa_encode_sdpa(made, &world.problem, &world.operands), "encode_sdpa: n_heads");
  encoder.reset();
  const auto bytes = bytes_of(world.out->buffer);
  CHECK(bytes == std::vector<std::uint8_t>(bytes.size(), 0xa5));
}

TEST_CASE("every exception has its status, and no exception leaves") {
  const auto status_of = [](const auto& thrown) { return capi::guarded([&] { throw thrown; }); };
  const std::pair<ErrorCode, metal_sdpa_status> codes[] = {
      {ErrorCode::invalid_argument, METAL_SDPA_INVALID_ARGUMENT},
      {ErrorCode::unsupported_dtype, METAL_SDPA_UNSUPPORTED_DTYPE},
      {ErrorCode::unsupported, METAL_SDPA_UNSUPPORTED},
      {ErrorCode::device_not_found, METAL_SDPA_DEVICE_NOT_FOUND},
      {ErrorCode::kernel_not_found, METAL_SDPA_KERNEL_NOT_FOUND},
      {ErrorCode::shader_compilation, METAL_SDPA_SHADER_COMPILATION},
      {ErrorCode::command_buffer, METAL_SDPA_COMMAND_BUFFER},
      {ErrorCode::buffer_allocation, METAL_SDPA_BUFFER_ALLOCATION},
      {ErrorCode::interrupted, METAL_SDPA_INTERRUPTED}};
  for (const auto& [code, status] : codes)
    check_refused(status_of(Error(code, "why")), status, "why");
  check_refused(status_of(std::bad_alloc()), METAL_SDPA_OUT_OF_MEMORY, "memory");
  check_refused(status_of(std::runtime_error("odd")), METAL_SDPA_INTERNAL, "odd");
  check_refused(status_of(1), METAL_SDPA_INTERNAL, "unknown");
  const char* const names[] = {"ok",
                               "invalid_argument",
                               "unsupported_dtype",
                               "unsupported",
                               "device_not_found",
                               "kernel_not_found",
                               "shader_compilation",
                               "command_buffer",
                               "buffer_allocation",
                               "interrupted",
                               "out_of_memory",
                               "internal",
                               "unknown"};
  for (int i = 0; i < 13; ++i) {
    CHECK(std::string(metal_sdpa_status_name(static_cast<metal_sdpa_status>(i))) == names[i]);
  }
}

TEST_CASE("threads that share a device and its buffers do not disturb each other") {
  const World shared;
  std::vector<std::thread> threads;
  std::vector<int> faults(6, 0);
  for (std::size_t t = 0; t < faults.size(); ++t) {
    threads.emplace_back([&, t] {
      const std::string kind = "kind " + std::to_string(t);
      const BufferHandle out = allocate(shared.device, METAL_SDPA_F32, 48);
      metal_sdpa_operands operands = shared.operands;
      operands.out = out.get();
      for (int i = 0; i < 50; ++i) {
        metal_sdpa_device* none = nullptr;
        const bool refused =
            metal_sdpa_device_open(kind.c_str(), nullptr, &none) == METAL_SDPA_DEVICE_NOT_FOUND;
        const metal_sdpa_status status =
            metal_sdpa_sdpa(shared.device.get(), &shared.problem, &operands);
        const std::string text = metal_sdpa_last_message();
        if (!refused || status != METAL_SDPA_OK || text.find(kind) == text.npos) ++faults[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(faults == std::vector<int>(faults.size(), 0));
}

TEST_CASE("each thread has a message of its own, which success leaves") {
  metal_sdpa_device* device = nullptr;
  check_refused(metal_sdpa_device_open("here", nullptr, &device), METAL_SDPA_DEVICE_NOT_FOUND,
                "here");
  const std::string before = metal_sdpa_last_message();
  std::string first, second;
  std::thread other([&] {
    first = metal_sdpa_last_message();
    metal_sdpa_device* none = nullptr;
    metal_sdpa_device_open("there", nullptr, &none);
    second = metal_sdpa_last_message();
  });
  other.join();
  CHECK(first.empty());
  CHECK(second.find("there") != std::string::npos);
  CHECK(metal_sdpa_last_message() == before);
  CHECK(World().run() == METAL_SDPA_OK);
  CHECK(metal_sdpa_last_message() == before);
}
