// Graphs: capture, replay, update, and reorder as a property on random sequences.
#include <cstring>

#include "core/hazards.h"
#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr std::size_t kCells = 12;

/// cells[write] = 3 * cells[write] + cells[read] + 1: no two orders of conflicting operations
/// agree.
void mix_cells(const NativeLaunch& launch, WorkRange, StopToken&) {
  std::uint32_t* out = launch.buffer<std::uint32_t>(1);
  *out = 3 * *out + *launch.buffer<const std::uint32_t>(0) + 1;
}

struct Cells {
  Device device{"cpu"};
  KernelRegistry registry{device};
  Buffer cells = device.empty({kCells}, DType::u32);

  Cells() { registry.register_native("mix_cells", mix_cells); }

  Buffer cell(std::size_t i) const { return cells.slice_view(4 * i, 1); }

  void mix(CommandEncoder& encoder, OpKind kind, std::size_t read, std::size_t write,
           bool declared = true) const {
    DispatchOptions options;
    if (declared) {
      options.reads = {{{cell(read), 0, 4}, {cell(write), 0, 4}}};
      options.writes = {{{cell(write), 0, 4}}};
    }
    encoder.set_op_kind(kind);
    encoder.encode_threadgroups(registry.get_pipeline("mix_cells"),
                                {{0, cell(read)}, {1, cell(write)}}, {1, 1, 1}, {1, 1, 1}, options);
  }

  std::vector<std::uint8_t> replay(const Graph& graph, std::size_t& barriers) const {
    fill_bytes(cells, 0);
    CommandEncoder encoder(device);
    graph.replay(encoder);
    barriers = encoder.barrier_count();
    encoder.commit_and_wait();
    return bytes_of(cells);
  }
};

Graph random_graph(const Cells& world, std::mt19937& rng) {
  const auto pick = [&rng](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(rng);
  };
  constexpr OpKind kKinds[] = {OpKind::rms_norm, OpKind::elem_mul, OpKind::elem_add,
                               OpKind::rms_norm, OpKind::elem_mul, OpKind::elem_add,
                               OpKind::rms_norm, OpKind::elem_mul, OpKind::elem_add,
                               OpKind::sdpa,     OpKind::softmax,  OpKind::other};
  CommandEncoder encoder(world.device);
  encoder.begin_capture();
  const std::size_t length = 2 + pick(30);
  for (std::size_t i = 0; i < length; ++i) {
    if (pick(15) == 0) encoder.memory_barrier();
    world.mix(encoder, kKinds[pick(12)], pick(kCells), pick(kCells), pick(20) != 0);
  }
  return encoder.end_capture();
}

bool is_fence(const GraphNodeInfo& node) {
  return node.barrier || !node.declared || node.kind == OpKind::sdpa ||
         node.kind == OpKind::softmax || node.kind == OpKind::other;
}

}  // namespace

TEST_CASE_FIXTURE(Cells, "capture encodes nothing and keeps order, kinds and barriers") {
  CommandEncoder encoder(device);
  encoder.begin_capture();
  mix(encoder, OpKind::rms_norm, 0, 1);
  encoder.memory_barrier();
  mix(encoder, OpKind::elem_add, 1, 2, false);
  encoder.encode_threadgroups(registry.get_pipeline("mix_cells"), {{0, cell(0)}, {1, cell(3)}},
                              {1, 1, 1}, {1, 1, 1});
  const Graph graph = encoder.end_capture();
  CHECK(encoder.barrier_count() == 0);
  encoder.commit_and_wait();
  CHECK(cells.host<std::uint32_t>()[1] == 0);
  const std::vector<GraphNodeInfo> nodes = graph.nodes();
  REQUIRE(nodes.size() == 4);
  CHECK(nodes[0].kind == OpKind::rms_norm);
  CHECK(nodes[0].label == "mix_cells");
  CHECK(nodes[1].barrier);
  CHECK(!nodes[2].declared);
  CHECK(nodes[3].kind == OpKind::other);  // the tag counts for one encode only
}

TEST_CASE_FIXTURE(Cells, "reorder keeps results, fences and conflicts, and never adds a barrier") {
  std::mt19937 rng(12);
  std::size_t moved_in_all = 0;
  std::size_t saved_in_all = 0;
  for (int round = 0; round < 400; ++round) {
    Graph graph = random_graph(*this, rng);
    std::size_t barriers_before = 0;
    std::size_t barriers_after = 0;
    const std::vector<std::uint8_t> before = replay(graph, barriers_before);
    const std::vector<GraphNodeInfo> nodes_before = graph.nodes();
    const std::size_t moved = graph.reorder();
    const std::vector<GraphNodeInfo> nodes_after = graph.nodes();
    INFO("round ", round);
    REQUIRE(replay(graph, barriers_after) == before);
    REQUIRE(barriers_after <= barriers_before);
    REQUIRE(nodes_after.size() == nodes_before.size());
    for (std::size_t i = 0; i < nodes_before.size(); ++i) {
      REQUIRE(is_fence(nodes_before[i]) == is_fence(nodes_after[i]));
    }
    REQUIRE(graph.reorder() == 0);  // it is stable
    moved_in_all += moved;
    saved_in_all += barriers_before - barriers_after;
  }
  CHECK(moved_in_all > 100);
  CHECK(saved_in_all > 50);
}

TEST_CASE_FIXTURE(Cells, "a replay twice, and one behind direct dispatches, gets its barriers") {
  CommandEncoder encoder(device);
  encoder.begin_capture();
  mix(encoder, OpKind::elem_add, 0, 1);
  const Graph graph = encoder.end_capture();
  CommandEncoder target(device);
  mix(target, OpKind::elem_add, 2, 0);  // writes what the graph reads
  graph.replay(target);
  CHECK(target.barrier_count() == 1);
  graph.replay(target);
  CHECK(target.barrier_count() == 2);
  target.commit_and_wait();
  CHECK(cells.host<std::uint32_t>()[1] == 3 * 2 + 1 + 1);
}

TEST_CASE("recorded at one key and replayed at every length, the bits are those of direct calls") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    const std::int64_t capacity = kind == "cpu" ? 300 : 40;
    std::mt19937 rng(4);
    const Buffer q = device.empty({2, 4, 1, 32}, DType::f16);
    const Buffer k = device.empty({2, 2, capacity, 32}, DType::f16);
    const Buffer v = device.empty({2, 2, capacity, 32}, DType::f16);
    const Buffer replayed = device.empty({2, 4, 1, 32}, DType::f16);
    const Buffer direct = device.empty({2, 4, 1, 32}, DType::f16);
    for (const Buffer& buffer : {q, k, v}) fill_normal(buffer, rng, 1);
    SdpaParams params{4, 2, 32, 1, 1, 0.2f, capacity, true};
    CommandEncoder recorder(device);
    recorder.begin_capture();
    encode_sdpa(recorder, registry, device, q, k, v, replayed, params, 2);
    Graph graph = recorder.end_capture();
    for (std::int64_t length = 1; length <= capacity; ++length) {
      graph.update(0, length);
      CommandEncoder encoder(device);
      graph.replay(encoder);
      params.kv_seq_len = length;
      encode_sdpa(encoder, registry, device, q, k, v, direct, params, 2);
      encoder.commit_and_wait();
      INFO(kind, " length ", length);
      REQUIRE(bytes_of(replayed) == bytes_of(direct));
    }
    REQUIRE(graph.nodes()[0].kv_seq_len == capacity);
    CHECK(error_of([&] { graph.update(0, capacity + 1); }, "kv_capacity") ==
          ErrorCode::invalid_argument);
    CHECK(error_of([&] { graph.update(0, 0); }) == ErrorCode::invalid_argument);
    CHECK(error_of([&] { graph.update(1, 1); }, "the graph has 1") == ErrorCode::invalid_argument);
  }
}

TEST_CASE_FIXTURE(Cells, "update takes sdpa nodes only; replay wants an encoder that encodes") {
  CommandEncoder encoder(device);
  encoder.begin_capture();
  mix(encoder, OpKind::elem_add, 0, 1);
  Graph graph = encoder.end_capture();
  CHECK(error_of([&] { graph.update(0, 1); }, "no sdpa node") == ErrorCode::invalid_argument);
  encoder.commit_and_wait();
  CHECK(error_of([&] { graph.replay(encoder); }, "used once") == ErrorCode::invalid_argument);
}

TEST_CASE("update changes the node that it names and no other, wherever it stands") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    // One span at the shortest length and several at the longest, on either device.
    const std::int64_t longest = kind == "cpu" ? 1600 : 300;
    std::mt19937 rng(6);
    const Buffer q = device.empty({1, 2, 1, 32}, DType::f32);
    const Buffer k = device.empty({1, 1, longest, 32}, DType::f32);
    const Buffer v = device.empty({1, 1, longest, 32}, DType::f32);
    for (const Buffer& buffer : {q, k, v}) fill_normal(buffer, rng, 1);
    SdpaParams params{2, 1, 32, 1, 7, 0.2f, longest, true};
    const std::vector<Buffer> out{device.empty({1, 2, 1, 32}, DType::f32),
                                  device.empty({1, 2, 1, 32}, DType::f32),
                                  device.empty({1, 2, 1, 32}, DType::f32)};
    const auto direct = [&](std::int64_t length) {
      const Buffer alone = device.empty({1, 2, 1, 32}, DType::f32);
      params.kv_seq_len = length;
      CommandEncoder encoder(device);
      encode_sdpa(encoder, registry, device, q, k, v, alone, params, 1);
      encoder.commit_and_wait();
      return bytes_of(alone);
    };
    CommandEncoder recorder(device);
    recorder.begin_capture();
    std::vector<std::size_t> nodes;
    const std::vector<std::int64_t> recorded{7, longest, 50};
    for (std::size_t i = 0; i < out.size(); ++i) {
      params.kv_seq_len = recorded[i];
      encode_sdpa(recorder, registry, device, q, k, v, out[i], params, 1);
      recorder.memory_barrier();
    }
    Graph graph = recorder.end_capture();
    std::vector<std::size_t> barriers;
    for (std::size_t i = 0; i < graph.nodes().size(); ++i) {
      (graph.nodes()[i].barrier ? barriers : nodes).push_back(i);
    }
    REQUIRE(nodes.size() == 3);
    std::vector<std::int64_t> lengths = recorded;
    const auto check = [&] {
      CommandEncoder encoder(device);
      graph.replay(encoder);
      encoder.commit_and_wait();
      for (std::size_t i = 0; i < out.size(); ++i) {
        INFO(kind, " node ", i, " length ", lengths[i]);
        CHECK(bytes_of(out[i]) == direct(lengths[i]));
        CHECK(graph.nodes()[nodes[i]].kv_seq_len == lengths[i]);
      }
    };
    check();
    for (const std::int64_t length : {longest, std::int64_t{1}, longest - 1, std::int64_t{40}}) {
      for (std::size_t i = 0; i < out.size(); ++i) {
        graph.update(nodes[i], length);
        lengths[i] = length;
        check();
        for (const std::size_t barrier : barriers) {
          CHECK(error_of([&] { graph.update(barrier, 5); }, "no sdpa node") ==
                ErrorCode::invalid_argument);
        }
        CHECK(error_of([&] { graph.update(nodes[i], longest + 1); }) ==
              ErrorCode::invalid_argument);
      }
    }
    check();  // what was refused has changed nothing
  }
}

TEST_CASE_FIXTURE(Cells, "a replay into a capture copies the nodes") {
  CommandEncoder encoder(device);
  encoder.begin_capture();
  mix(encoder, OpKind::elem_add, 0, 1);
  const Graph inner = encoder.end_capture();
  encoder.begin_capture();
  inner.replay(encoder);
  inner.replay(encoder);
  const Graph outer = encoder.end_capture();
  CHECK(outer.nodes().size() == 2);
  std::size_t barriers = 0;
  replay(outer, barriers);
  CHECK(cells.host<std::uint32_t>()[1] == 4);
}

TEST_CASE("conflicts: overlapping bytes of which one side writes") {
  const AccessSet reads{true, {{0, 10}}, {}};
  const AccessSet writes{true, {}, {{9, 12}}};
  const AccessSet next{true, {}, {{10, 12}}};
  CHECK(!conflict(reads, reads));
  CHECK(conflict(reads, writes));
  CHECK(conflict(writes, reads));
  CHECK(!conflict(reads, next));
  CHECK(conflict(writes, next));
  CHECK(conflict(AccessSet{}, reads));
}
