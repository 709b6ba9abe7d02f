// The shortest way from a plan to its kernels: a tiny call costs little more than this.
#include "cpu/immediate.h"

#include <cstring>

#include "core/registry.h"
#include "cpu/execute.h"
#include "cpu/native_library.h"

namespace metal_sdpa::cpu {
namespace {

BoundMemory operand_memory(PlanOperand operand, const SdpaOperands& operands,
                           const ScratchList& scratch) {
  const Buffer* buffer = operand_buffer(operand, operands);
  if (buffer != nullptr) return {buffer->data(), buffer->byte_len()};
  const ScratchMemory& memory = scratch[scratch_index(operand)];
  return {static_cast<std::byte*>(memory.storage->host) + memory.byte_offset, memory.byte_len};
}

/// Kernels only read constant bytes.
BoundMemory constant_memory(const std::byte* data, std::size_t byte_len) {
  return {const_cast<std::byte*>(data), byte_len};
}

void bind_table(const PlanTable& table, NativeLaunch& launch) {
  if (table.bytes == nullptr) return;
  launch.bindings[table.index] = constant_memory(table.bytes->data(), table.bytes->size());
}

class PlanRun final : public ImmediateWork {
 public:
  PlanRun(const KernelRegistry& registry, const Plan& plan, const SdpaOperands& operands,
          const ScratchList& scratch, int threads)
      : registry_(registry),
        plan_(plan),
        operands_(operands),
        scratch_(scratch),
        threads_(threads) {}

  void run(ThreadPool& pool, InterruptPoller& poller) override {
    std::atomic<bool> cancelled{false};
    for (const PlanStep& step : plan_.steps) {
      const std::shared_ptr<Pipeline> pipeline = plan_pipeline(
          registry_, step.kernel, FunctionConstants(step.constants.begin(), step.constants.end()));
      const NativeLaunch launch = bind_step(step, operands_, scratch_);
      const KernelRun kernel{static_cast<const NativePipeline&>(*pipeline), launch, step.flops,
                             threads_, step.work.bytes != nullptr};
      run_kernel(kernel, cancelled, pool, &poller);
    }
  }

 private:
  const KernelRegistry& registry_;
  const Plan& plan_;
  const SdpaOperands& operands_;
  const ScratchList& scratch_;
  int threads_;
};

}  // namespace

NativeLaunch bind_step(const PlanStep& step, const SdpaOperands& operands,
                       const ScratchList& scratch) {
  NativeLaunch launch;
  launch.threadgroups = step.threadgroups;
  launch.threadgroup_size = step.threadgroup_size;
  for (const PlanBinding& binding : step.bindings) {
    const BoundMemory memory = operand_memory(binding.operand, operands, scratch);
    if (binding.zero_first) std::memset(memory.data, 0, memory.byte_len);
    launch.bindings[binding.index] = memory;
  }
  const PlanArgs& args = step.args;
  launch.bindings[args.index] = constant_memory(args.bytes.begin(), args.bytes.size());
  bind_table(step.sequences, launch);
  bind_table(step.work, launch);
  return launch;
}

bool run_immediately(Queue& queue, const KernelRegistry& registry, const Plan& plan,
                     const SdpaOperands& operands, const ScratchList& scratch, int threads) {
  PlanRun run(registry, plan, operands, scratch, threads);
  return queue.try_run(run);
}

}  // namespace metal_sdpa::cpu
