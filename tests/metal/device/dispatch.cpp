// Runs the threadgroups of one dispatch.
#include <cstring>
#include <numeric>
#include <set>

#include "command.hpp"
#include "control.hpp"
#include "fiber.hpp"

namespace software_metal {
namespace {

msl_host::Uint3 to_uint3(MTL::Size size) {
  return {static_cast<unsigned>(size.width), static_cast<unsigned>(size.height),
          static_cast<unsigned>(size.depth)};
}

// The engine keeps its stacks from one dispatch to the next. The executor alone uses it.
ThreadgroupEngine& engine() {
  static ThreadgroupEngine& instance = *new ThreadgroupEngine;
  return instance;
}

class DispatchRun {
 public:
  DispatchRun(const Dispatch& dispatch, Random& random) : dispatch_(dispatch), random_(random) {}

  std::string run() {
    bind();
    std::vector<unsigned> order(volume());
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[random_.below(static_cast<unsigned>(i))]);
    }
    for (unsigned index : order) {
      std::string failure = run_group(index);
      if (!failure.empty()) return failure;
    }
    count(SOFTWARE_METAL_DISPATCHES);
    count(SOFTWARE_METAL_THREADGROUPS, order.size());
    return "";
  }

 private:
  std::size_t volume() const {
    return dispatch_.groups.width * dispatch_.groups.height * dispatch_.groups.depth;
  }

  void bind() {
    group_.dispatched_threads = to_uint3(dispatch_.group_size);
    group_.groups_in_grid = to_uint3(dispatch_.groups);
    group_.threads_in_grid = to_uint3(dispatch_.threads_in_grid);
    for (const Dispatch::Argument& argument : dispatch_.buffers) {
      group_.buffers[argument.index] = argument.address;
    }
    std::size_t total = 0;
    for (unsigned i = 0; i < kMaxBindings; ++i) {
      if (dispatch_.threadgroup_memory[i] == 0) continue;
      total += dispatch_.threadgroup_memory[i];
      memory_.push_back(std::make_unique<GuardedMemory>(dispatch_.threadgroup_memory[i]));
      group_.threadgroup_memory[i] = memory_.back()->data();
    }
    engine().set_bound_threadgroup_memory(total);
  }

  // Fewer threads at the far edges of a grid that is not a multiple of the threadgroup.
  static unsigned edge(unsigned position, unsigned size, unsigned grid) {
    unsigned long begin = static_cast<unsigned long>(position) * size;
    return static_cast<unsigned>(std::min<unsigned long>(size, grid - begin));
  }

  std::string run_group(unsigned index) {
    const msl_host::Uint3 n = group_.groups_in_grid;
    const msl_host::Uint3 at{index % n.x, index / n.x % n.y, index / n.x / n.y};
    const msl_host::Uint3 size = group_.dispatched_threads, grid = group_.threads_in_grid;
    group_.position_in_grid = at;
    group_.threads = {edge(at.x, size.x, grid.x), edge(at.y, size.y, grid.y),
                      edge(at.z, size.z, grid.z)};
    unsigned threads = group_.threads.x * group_.threads.y * group_.threads.z;
    group_.simdgroups = (threads + msl_host::kLanes - 1) / msl_host::kLanes;
    for (auto& memory : memory_) memory->poison();
    const Pipeline& pipeline = *dispatch_.pipeline;
    bool ok = engine().run(pipeline.function->library->module, pipeline.function->function, group_,
                           random_);
    std::string failure = ok ? "" : engine().error();
    for (auto& memory : memory_) {
      if (failure.empty() && !memory->is_intact()) {
        failure = "a write outside of threadgroup memory";
      }
    }
    if (failure.empty()) return "";
    failure = format("%s: threadgroup (%u, %u, %u): %s", pipeline.name(), at.x, at.y, at.z,
                     failure.c_str());
    violation("%s", failure.c_str());
    return failure;
  }

  const Dispatch& dispatch_;
  Random& random_;
  msl_host::Group group_{};
  std::vector<std::unique_ptr<GuardedMemory>> memory_;
};

}  // namespace

std::string run_dispatch(const Dispatch& dispatch, Random& random) {
  std::lock_guard<std::mutex> lock(shader_state_mutex());
  dispatch.pipeline->apply_constants();
  std::uint64_t before = violations_on_this_thread();
  std::string failure = DispatchRun(dispatch, random).run();
  if (failure.empty() && violations_on_this_thread() != before) {
    failure = "a violation was recorded";
  }
  return failure;
}

}  // namespace software_metal
