// Graph: nodes, update, replay.
#include "metal_sdpa/graph.h"

#include <utility>

#include "core/dispatch.h"
#include "core/encoder_state.h"
#include "core/fork.h"
#include "core/graph_state.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

void require_same_process(const Graph::State& state, const char* call) {
  if (state.fork_generation == fork_generation()) return;
  fail_argument(call, ": the graph was recorded before fork(); record it in this process");
}

GraphNodeInfo describe(const BarrierNode&) {
  GraphNodeInfo info;
  info.barrier = true;
  info.label = "barrier";
  info.declared = true;
  return info;
}

GraphNodeInfo describe(const DispatchRecord& record) {
  GraphNodeInfo info;
  info.kind = record.kind;
  info.label = record.dispatch.pipeline->name;
  info.dispatches = 1;
  info.declared = record.access.declared;
  return info;
}

GraphNodeInfo describe(const SdpaNode& node) {
  GraphNodeInfo info;
  info.kind = OpKind::sdpa;
  info.label = "sdpa";
  info.dispatches = node.records.size();
  info.declared = true;
  info.kv_seq_len = node.problem.kv_len;
  info.kv_capacity = node.problem.kv_capacity;
  return info;
}

void replay_node(const BarrierNode&, EncoderState& encoder) { encoder.barrier(); }
void replay_node(const DispatchRecord& record, EncoderState& encoder) { encoder.encode(record); }
void replay_node(const SdpaNode& node, EncoderState& encoder) {
  for (const DispatchRecord& record : node.records) encoder.encode(record);
}

/// A replay into an open capture copies the nodes.
void append_nodes(const std::vector<GraphNode>& nodes, Graph::State& capture) {
  const std::lock_guard<std::mutex> lock(capture.mutex);
  capture.nodes.insert(capture.nodes.end(), nodes.begin(), nodes.end());
}

SdpaNode& sdpa_node(Graph::State& state, std::size_t index, const char* call) {
  if (index >= state.nodes.size()) {
    fail_argument(call, ": node: ", index, ", the graph has ", state.nodes.size());
  }
  SdpaNode* node = std::get_if<SdpaNode>(&state.nodes[index]);
  if (node == nullptr) fail_argument(call, ": node: ", index, " is no sdpa node");
  return *node;
}

/// Gives the node another problem of the same operands; where that fails it stays as it was.
void plan_anew(Graph::State& state, SdpaNode& node, SdpaProblem problem) {
  Backend& backend = *state.device.backend();
  const Plan plan = plan_valid(backend, problem, state.device.options());
  reserve_scratch(backend, plan, node.scratch);
  node.records = resolve_plan(backend, node.registry, plan, node.operands, node.scratch);
  node.problem = std::move(problem);
}

}  // namespace

Graph::Graph(std::shared_ptr<State> state) : state_(std::move(state)) {}

std::vector<GraphNodeInfo> Graph::nodes() const {
  require_same_process(*state_, "nodes");
  const std::lock_guard<std::mutex> lock(state_->mutex);
  std::vector<GraphNodeInfo> infos;
  infos.reserve(state_->nodes.size());
  for (const GraphNode& node : state_->nodes) {
    infos.push_back(std::visit([](const auto& entry) { return describe(entry); }, node));
    infos.back().index = infos.size() - 1;
  }
  return infos;
}

std::size_t Graph::reorder() {
  require_same_process(*state_, "reorder");
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return reorder_nodes(state_->nodes);
}

void Graph::replay(CommandEncoder& encoder) const {
  require_same_process(*state_, "replay");
  EncoderState& target = encoder.state();
  target.require_encoding("replay");
  if (!(target.device == state_->device)) {
    fail_argument("replay: encoder: is of another device than the graph");
  }
  target.take_op_kind(OpKind::other);
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (target.capture != nullptr) {
    append_nodes(state_->nodes, *target.capture);
    return;
  }
  for (const GraphNode& node : state_->nodes) {
    std::visit([&target](const auto& entry) { replay_node(entry, target); }, node);
  }
}

void Graph::update(std::size_t index, std::int64_t kv_seq_len) {
  require_same_process(*state_, "update");
  const std::lock_guard<std::mutex> lock(state_->mutex);
  SdpaNode& node = sdpa_node(*state_, index, "update");
  if (kv_seq_len < 1 || kv_seq_len > node.problem.kv_capacity) {
    fail_argument("update: kv_seq_len: ", kv_seq_len, ", takes 1 to the recorded kv_capacity ",
                  node.problem.kv_capacity);
  }
  SdpaProblem problem = node.problem;
  problem.kv_len = kv_seq_len;
  problem.kv_lengths.clear();
  validate_problem(problem, state_->device.backend()->limits(), "update");
  plan_anew(*state_, node, std::move(problem));
}

Visibility Graph::visibility(std::size_t index) const {
  require_same_process(*state_, "visibility");
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return sdpa_node(*state_, index, "visibility").problem;
}

void Graph::update(std::size_t index, const Visibility& visibility) {
  require_same_process(*state_, "update");
  const std::lock_guard<std::mutex> lock(state_->mutex);
  SdpaNode& node = sdpa_node(*state_, index, "update");
  SdpaProblem problem = node.problem;
  static_cast<Visibility&>(problem) = visibility;
  validate_problem(problem, state_->device.backend()->limits(), "update");
  plan_anew(*state_, node, std::move(problem));
}

}  // namespace metal_sdpa
