// Graph and what it tells of its nodes.
#include "metal_sdpa/graph.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "convert.h"
#include "interrupts.h"
#include "metal_sdpa/sdpa.h"
#include "visibility.h"

namespace metal_sdpa::python {
namespace {

/// A node as Python has it, which knows its graph but does not keep it alive.
struct Node : GraphNodeInfo {
  std::weak_ptr<Graph::State> graph;
};

std::string describe(const Node& node) {
  return text_of("GraphNode(\"", node.label, "\", kind=", op_kind_name(node.kind),
                 ", dispatches=", node.dispatches, ")");
}

std::vector<Node> nodes_of(const Graph& graph) {
  std::vector<Node> nodes;
  for (GraphNodeInfo& info : graph.nodes()) nodes.push_back({std::move(info), graph.state()});
  return nodes;
}

/// A node of the graph, or an index.
std::size_t to_node(const Graph& graph, nb::handle node, const char* call = "update") {
  if (!nb::isinstance<Node>(node)) return to_size({call, "node"}, node);
  const Node& given = nb::cast<Node&>(node);
  if (given.graph.lock() != graph.state()) fail_argument(call, ": node: is of another graph");
  return given.index;
}

void bind_node(nb::module_& module) {
  nb::class_<Node>(module, "GraphNode", "What `Graph.nodes` tells of one node.")
      .def_ro("index", &Node::index, "Its place in order of encoding.")
      .def_ro("barrier", &Node::barrier, "Whether it is a barrier placed by hand.")
      .def_ro("kind", &Node::kind, "OpKind; `other` for a barrier.")
      .def_ro("label", &Node::label, "Function or operation name; \"barrier\".")
      .def_ro("dispatches", &Node::dispatches, "That a replay encodes now.")
      .def_ro("declared", &Node::declared, "Whether reads and writes are declared.")
      .def_ro("kv_seq_len", &Node::kv_seq_len, "Of an sdpa node, else None.")
      .def_ro("kv_capacity", &Node::kv_capacity, "Of an sdpa node, else None.")
      .def("__repr__", &describe);
}

void replay(const Graph& graph, nb::handle encoder) {
  auto& target = to_object<CommandEncoder>({"replay", "encoder"}, encoder, "a CommandEncoder");
  without_gil([&] { graph.replay(target); });
}

// --- what the queries of a node see -------------------------------------------------------------

void update_length(Graph& graph, std::size_t index, nb::handle kv_seq_len) {
  const std::int64_t length = to_int64({"update", "kv_seq_len"}, kv_seq_len);
  without_gil([&] { graph.update(index, length); });
}

void update(Graph& graph, nb::handle node, const nb::kwargs& changes) {
  const std::size_t index = to_node(graph, node);
  if (changes.size() == 1 && changes.contains("kv_seq_len")) {
    update_length(graph, index, changes["kv_seq_len"]);
    return;
  }
  if (changes.size() == 0) fail_argument("update: nothing to change is given");
  if (changes.contains("kv_seq_len") && changes.contains("kv_lengths")) {
    fail_argument("update: kv_seq_len: comes without kv_lengths, which are given");
  }
  Visibility visibility = graph.visibility(index);
  LengthCounts counts;
  for (const auto& [key, value] : changes) {
    if (nb::cast<std::string>(key) != "kv_seq_len") {
      change_visibility(key, value, visibility, counts);
      continue;
    }
    visibility.kv_len = to_int64({"update", "kv_seq_len"}, value);
    visibility.kv_lengths.clear();
  }
  require_entries(counts);
  without_gil([&] { graph.update(index, visibility); });
}

}  // namespace

void bind_graph(nb::module_& module) {
  bind_node(module);
  nb::class_<Graph>(module, "Graph",
                    "A recorded sequence of encodes that can be reordered, updated and replayed. "
                    "Safe from any thread.")
      .def_prop_ro("nodes", &nodes_of, "What each node is, in order of encoding.")
      .def(
          "reorder",
          [](Graph& self) {
            std::size_t moved = 0;
            without_gil([&] { moved = self.reorder(); });
            return moved;
          },
          "Moves rms_norm, elem_mul and elem_add nodes with declared ranges so that a replay needs "
          "fewer\nbarriers; every other node is a fence. Returns how many nodes moved.")
      .def("replay", &replay, nb::arg("encoder").none(),
           nb::sig("def replay(self, encoder: CommandEncoder) -> None"),
           "Encodes every node; the encoder's hazard tracker decides on barriers. May be repeated.")
      .def(
          "visibility",
          [](const Graph& self, nb::handle node) {
            return self.visibility(to_node(self, node, "visibility"));
          },
          nb::arg("node").none(),
          nb::sig("def visibility(self, node: GraphNode | int) -> Visibility"),
          "What the queries of an sdpa node see.")
      .def("update", &update, nb::arg("node").none(), nb::arg("changes"),
           nb::sig("def update(self, node: GraphNode | int, *, kv_seq_len: int = ..., "
                   "causal: bool = ..., window: int | tuple[int | None, int | None] | None = ..., "
                   "q_start: int | Sequence[int] | Array | None = ..., "
                   "query_lengths: int | Sequence[int] | Array | None = ..., "
                   "kv_lengths: int | Sequence[int] | Array = ..., "
                   "kv_starts: int | Sequence[int] | Array = ..., key_offset: int = ..., "
                   "key_stride: int = ...) -> None"),
           "Plans an sdpa node, given as one of `nodes` or by its index, anew for other lengths, "
           "starts or\nwindows, in sdpa()'s own terms; what is not given stays. kv_seq_len is one "
           "length for all\nsequences, 1 to the recorded kv_capacity.\n\n"
           "InvalidArgument, and nothing changes, for any other node or what the problem does not "
           "take.");
}

}  // namespace metal_sdpa::python
