// Graph and what it tells of its nodes.
#include "metal_sdpa/graph.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "convert.h"
#include "interrupts.h"

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
std::size_t to_node(const Graph& graph, nb::handle node) {
  if (!nb::isinstance<Node>(node)) return to_size({"update", "node"}, node);
  const Node& given = nb::cast<Node&>(node);
  if (given.graph.lock() != graph.state()) fail_argument("update: node: is of another graph");
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

void update(Graph& graph, nb::handle node, nb::handle kv_seq_len) {
  const std::size_t index = to_node(graph, node);
  const std::int64_t length = to_int64({"update", "kv_seq_len"}, kv_seq_len);
  without_gil([&] { graph.update(index, length); });
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
      .def("update", &update, nb::arg("node").none(), nb::kw_only(), nb::arg("kv_seq_len").none(),
           nb::sig("def update(self, node: GraphNode | int, *, kv_seq_len: int) -> None"),
           "Plans an sdpa node, given as one of `nodes` or by its index, anew for another length, "
           "1 to the\nrecorded kv_capacity.\n\n"
           "InvalidArgument for any other node or length.");
}

}  // namespace metal_sdpa::python
