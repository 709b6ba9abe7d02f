// Plans become dispatches.
#include "core/dispatch.h"

#include <cstring>
#include <mutex>
#include <utility>

#include "core/encoder_state.h"
#include "core/registry.h"
#include "core/text.h"
#include "core/validation.h"

namespace metal_sdpa {
namespace {

/// The memory behind an operand: a view of the caller's or a whole scratch storage.
struct OperandMemory {
  std::shared_ptr<Storage> storage;
  std::size_t byte_offset = 0;
  std::size_t byte_len = 0;
};

OperandMemory operand_memory(PlanOperand operand, const SdpaOperands& operands,
                             const ScratchList& scratch) {
  const Buffer* buffer = operand_buffer(operand, operands);
  if (buffer != nullptr) return {buffer->storage(), buffer->byte_offset(), buffer->byte_len()};
  const ScratchMemory& memory = scratch[scratch_index(operand)];
  return {memory.storage, memory.byte_offset, memory.byte_len};
}

DispatchBinding args_binding(const PlanArgs& args) {
  DispatchBinding binding;
  binding.index = args.index;
  binding.bytes.assign(args.bytes.begin(), args.bytes.end());
  binding.byte_len = binding.bytes.size();
  return binding;
}

/// A table too long for an inline binding goes through a scratch buffer of the device.
DispatchBinding table_binding(Backend& backend, const PlanTable& table) {
  DispatchBinding binding;
  binding.index = table.index;
  binding.byte_len = table.bytes->size();
  if (binding.byte_len <= backend.limits().max_inline_bytes) {
    binding.bytes = *table.bytes;
    return binding;
  }
  binding.storage = acquire_scratch(backend, binding.byte_len);
  std::memcpy(binding.storage->host, table.bytes->data(), binding.byte_len);
  return binding;
}

template <typename Ranges>
std::vector<AddressRange> resolve_ranges(const Ranges& ranges, const SdpaOperands& operands,
                                         const ScratchList& scratch) {
  std::vector<AddressRange> resolved;
  resolved.reserve(ranges.size());
  for (const PlanRange& range : ranges) {
    const OperandMemory memory = operand_memory(range.operand, operands, scratch);
    const std::uint64_t begin = memory.storage->address + memory.byte_offset + range.offset;
    resolved.push_back({begin, begin + range.length});
  }
  return resolved;
}

/// Whether what a binding of q, k and v starts with stands on 16 bytes.
bool starts_aligned(const SdpaOperands& operands) {
  for (const PlanOperand operand : {PlanOperand::q, PlanOperand::k, PlanOperand::v}) {
    const Buffer* buffer = operand_buffer(operand, operands);
    if ((buffer->storage()->address + buffer->byte_offset()) % 16 != 0) return false;
  }
  return true;
}

DispatchRecord resolve_step(Backend& backend, const KernelRegistry& registry, const PlanStep& step,
                            const SdpaOperands& operands, const ScratchList& scratch) {
  DispatchRecord record;
  record.kind = OpKind::sdpa;
  Dispatch& dispatch = record.dispatch;
  FunctionConstants constants(step.constants.begin(), step.constants.end());
  if (step.aligned_constant >= 0 && starts_aligned(operands)) {
    constants.push_back({static_cast<std::uint32_t>(step.aligned_constant), true});
  }
  dispatch.pipeline = plan_pipeline(registry, step.kernel, std::move(constants));
  constexpr std::size_t kConstants = 3;  // args, sequences and work
  dispatch.bindings.reserve(step.bindings.size() + kConstants);
  for (const PlanBinding& bound : step.bindings) {
    OperandMemory memory = operand_memory(bound.operand, operands, scratch);
    DispatchBinding binding;
    binding.index = bound.index;
    binding.storage = std::move(memory.storage);
    binding.byte_offset = memory.byte_offset;
    binding.byte_len = memory.byte_len;
    binding.zero_first = bound.zero_first;
    dispatch.bindings.push_back(std::move(binding));
  }
  dispatch.bindings.push_back(args_binding(step.args));
  for (const PlanTable* table : {&step.sequences, &step.work}) {
    if (table->bytes != nullptr) dispatch.bindings.push_back(table_binding(backend, *table));
  }
  dispatch.threadgroup_memory.assign(step.threadgroup_memory.begin(),
                                     step.threadgroup_memory.end());
  dispatch.threadgroups = step.threadgroups;
  dispatch.threadgroup_size = step.threadgroup_size;
  dispatch.flops = step.flops;
  dispatch.dealt = step.work.bytes != nullptr;
  record.access.declared = true;
  record.access.reads = resolve_ranges(step.reads, operands, scratch);
  record.access.writes = resolve_ranges(step.writes, operands, scratch);
  return record;
}

/// A node with memory for a plan of the whole capacity; a later plan that wants more takes more.
void record_node(Graph::State& graph, const KernelRegistry& registry, const SdpaOperands& operands,
                 const SdpaProblem& problem, const Plan& plan, const Device& device,
                 ScratchList scratch) {
  Backend& backend = *device.backend();
  reserve_scratch(backend, plan_capacity(device, problem), scratch);
  reserve_scratch(backend, plan, scratch);
  std::vector<DispatchRecord> records = resolve_plan(backend, registry, plan, operands, scratch);
  SdpaNode node{problem, operands, registry, std::move(scratch), std::move(records)};
  const std::lock_guard<std::mutex> lock(graph.mutex);
  graph.nodes.emplace_back(std::move(node));
}

}  // namespace

Plan plan_valid(const Backend& backend, const SdpaProblem& problem, const DeviceOptions& options) {
  require_features("plan_sdpa", backend.kind(), problem);
  if (problem.batch > 0 && problem.seq_len > 0) return backend.plan_sdpa(problem, options);
  Plan plan;
  plan.reason = "the output has no element";
  return plan;
}

Plan plan_capacity(const Device& device, const SdpaProblem& problem) {
  SdpaProblem full = problem;
  static_cast<Visibility&>(full) = {};
  full.kv_len = full.kv_capacity;
  return plan_valid(*device.backend(), full, device.options());
}

void check_encode(EncoderState& state, const KernelRegistry& registry, const Device& device,
                  const char* call) {
  state.take_op_kind(OpKind::sdpa);
  state.require_encoding(call);
  if (!(state.device == device)) fail_argument(call, ": encoder: is of another device");
  if (!(registry.device() == device)) fail_argument(call, ": registry: is of another device");
}

void encode_plan(EncoderState& state, const KernelRegistry& registry, const Device& device,
                 const SdpaOperands& operands, const SdpaProblem& problem, const Plan& plan,
                 ScratchList scratch) {
  if (state.capture != nullptr) {
    record_node(*state.capture, registry, operands, problem, plan, device, std::move(scratch));
    return;
  }
  Backend& backend = *device.backend();
  reserve_scratch(backend, plan, scratch);
  for (const DispatchRecord& record : resolve_plan(backend, registry, plan, operands, scratch)) {
    state.encode(record);
  }
}

std::vector<DispatchRecord> resolve_plan(Backend& backend, const KernelRegistry& registry,
                                         const Plan& plan, const SdpaOperands& operands,
                                         const ScratchList& scratch) {
  std::vector<DispatchRecord> records;
  records.reserve(plan.steps.size());
  for (const PlanStep& step : plan.steps) {
    records.push_back(resolve_step(backend, registry, step, operands, scratch));
  }
  return records;
}

Plan plan_sdpa(const Device& device, const SdpaProblem& problem) {
  validate_problem(problem, device.limits(), "plan_sdpa");
  return plan_valid(*device.backend(), problem, device.options());
}

void encode_sdpa(CommandEncoder& encoder, const KernelRegistry& registry, const Device& device,
                 const SdpaOperands& operands, const SdpaProblem& problem) {
  EncoderState& state = encoder.state();
  check_encode(state, registry, device, "encode_sdpa");
  Backend& backend = *device.backend();
  validate_problem(problem, backend.limits(), "encode_sdpa");
  validate_operands(problem, operands, backend, "encode_sdpa");
  const Plan plan = plan_valid(backend, problem, device.options());
  encode_plan(state, registry, device, operands, problem, plan, {});
}

void encode_sdpa(CommandEncoder& encoder, const KernelRegistry& registry, const Device& device,
                 const Buffer& q, const Buffer& k, const Buffer& v, const Buffer& output,
                 const SdpaParams& params, std::int64_t batch_size) {
  encoder.state().require_encoding("encode_sdpa");
  SdpaProblem problem = problem_from_params(params, q, batch_size);
  problem.set_packed_layouts();
  encode_sdpa(encoder, registry, device, SdpaOperands{q, k, v, output, {}}, problem);
}

void sdpa(const Device& device, const SdpaOperands& operands, const SdpaProblem& problem) {
  run_sdpa(device, operands, problem, "sdpa");
}

void run_sdpa(const Device& device, const SdpaOperands& operands, const SdpaProblem& problem,
              const char* call) {
  Backend& backend = *device.backend();
  validate_problem(problem, backend.limits(), call);
  validate_operands(problem, operands, backend, call);
  const Plan plan = plan_valid(backend, problem, device.options());
  ScratchList scratch;
  reserve_scratch(backend, plan, scratch);
  backend.run_plan(default_registry(device), plan, operands, scratch, device.options());
}

void Backend::run_plan(const KernelRegistry& registry, const Plan& plan,
                       const SdpaOperands& operands, const ScratchList& scratch,
                       const DeviceOptions& options) {
  const std::unique_ptr<CommandStream> stream = command_stream(options);
  HazardTracker hazards;
  for (const DispatchRecord& record : resolve_plan(*this, registry, plan, operands, scratch)) {
    if (hazards.needs_barrier(record.access)) {
      stream->barrier();
      hazards.clear();
    }
    stream->dispatch(record.dispatch);
    hazards.add(record.access);
  }
  stream->commit_and_wait();
}

}  // namespace metal_sdpa
