// A schedule that is made once and run often.
#include "metal_sdpa/prepared.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include "core/dispatch.h"
#include "core/encoder_state.h"
#include "core/fork.h"
#include "core/registry.h"
#include "core/text.h"
#include "core/validation.h"

namespace metal_sdpa {
namespace {

constexpr const char* kPrepare = "prepare";

/// What a run looks at; never changed once it is made.
struct Schedule {
  SdpaProblem problem;
  Buffer block_table;
  Plan plan;
};

std::shared_ptr<const Schedule> make_schedule(const Device& device, SdpaProblem problem,
                                              const Buffer& block_table, const char* call) {
  validate_problem(problem, device.limits(), call);
  if (block_table.valid()) validate_table(problem, block_table, *device.backend(), call);
  Plan plan = plan_valid(*device.backend(), problem, device.options());
  return std::make_shared<const Schedule>(
      Schedule{std::move(problem), block_table, std::move(plan)});
}

/// Valid operands of the schedule. A table that was checked when it was prepared is not looked at
/// for every layer.
class CheckedOperands {
 public:
  CheckedOperands(const Schedule& schedule, const SdpaOperands& given, const Backend& backend,
                  const char* call)
      : given_(given) {
    const bool lacks_table = schedule.problem.pages.has_value() && !given.block_table.valid();
    if (lacks_table) all_.emplace(given).block_table = schedule.block_table;
    validate_operands(schedule.problem, operands(), backend, call, !lacks_table);
  }

  const SdpaOperands& operands() const { return all_.has_value() ? *all_ : given_; }

 private:
  const SdpaOperands& given_;
  std::optional<SdpaOperands> all_;
};

ScratchList scratch_of(const Plan& plan, const Buffer& scratch, const SdpaOperands& operands,
                       const Backend& backend, const char* call) {
  if (!scratch.valid()) return {};
  if (scratch.storage()->backend != &backend) {
    fail_argument(call, ": scratch: the buffer belongs to another device than ",
                  device_kind_name(backend.kind()));
  }
  if (scratch.read_only()) fail_argument(call, ": scratch: the buffer is read-only");
  const std::uint64_t needed = carved_bytes(plan);
  if (scratch.byte_len() < needed) {
    fail_argument(call, ": scratch: ", scratch.byte_len(), " bytes, takes ", needed, " or more");
  }
  for (const OperandInfo& info : operand_table()) {
    const Buffer& operand = operands.*info.buffer;
    if (!operand.valid()) continue;
    const bool apart = operand.address() + operand.byte_len() <= scratch.address() ||
                       scratch.address() + scratch.byte_len() <= operand.address();
    if (!apart) fail_argument(call, ": scratch: overlaps ", info.name);
  }
  return carve_scratch(plan, scratch);
}

}  // namespace

struct PreparedSdpa::State {
  explicit State(const Device& on) : device(on) {}

  // process_mutex() is the one that no child of fork() finds locked.
  std::shared_ptr<const Schedule> now() const {
    const std::lock_guard<std::mutex> lock(process_mutex());
    return schedule;
  }

  /// False where another schedule has taken the place of `before`, which the caller holds: nothing
  /// is freed under the lock.
  bool replace(const std::shared_ptr<const Schedule>& before,
               std::shared_ptr<const Schedule> after) {
    const std::lock_guard<std::mutex> lock(process_mutex());
    if (schedule != before) return false;
    schedule.swap(after);
    return true;
  }

  Device device;
  std::shared_ptr<const Schedule> schedule;  ///< guarded by process_mutex()
};

PreparedSdpa::PreparedSdpa(const Device& device, const SdpaProblem& problem,
                           const Buffer& block_table)
    : state_(std::make_shared<State>(device)) {
  state_->schedule = make_schedule(device, problem, block_table, kPrepare);
}

Device PreparedSdpa::device() const { return state_->device; }

SdpaProblem PreparedSdpa::problem() const { return state_->now()->problem; }

Plan PreparedSdpa::plan() const { return state_->now()->plan; }

std::uint64_t PreparedSdpa::scratch_bytes() const {
  const std::shared_ptr<const Schedule> schedule = state_->now();
  return std::max(carved_bytes(plan_capacity(state_->device, schedule->problem)),
                  carved_bytes(schedule->plan));
}

void PreparedSdpa::run(const SdpaOperands& operands, const Buffer& scratch) const {
  const std::shared_ptr<const Schedule> schedule = state_->now();
  Backend& backend = *state_->device.backend();
  const CheckedOperands checked(*schedule, operands, backend, "run");
  ScratchList memory = scratch_of(schedule->plan, scratch, checked.operands(), backend, "run");
  reserve_scratch(backend, schedule->plan, memory);
  backend.run_plan(default_registry(state_->device), schedule->plan, checked.operands(), memory,
                   state_->device.options());
}

void PreparedSdpa::encode(CommandEncoder& encoder, const KernelRegistry& registry,
                          const SdpaOperands& operands, const Buffer& scratch) const {
  const std::shared_ptr<const Schedule> schedule = state_->now();
  Backend& backend = *state_->device.backend();
  check_encode(encoder.state(), registry, state_->device, "encode");
  const CheckedOperands checked(*schedule, operands, backend, "encode");
  ScratchList memory = scratch_of(schedule->plan, scratch, checked.operands(), backend, "encode");
  encode_plan(encoder.state(), registry, state_->device, checked.operands(), schedule->problem,
              schedule->plan, std::move(memory));
}

void PreparedSdpa::update(const Visibility& visibility, const Buffer& block_table) {
  for (;;) {
    const std::shared_ptr<const Schedule> before = state_->now();
    SdpaProblem problem = before->problem;
    static_cast<Visibility&>(problem) = visibility;
    const Buffer& table = block_table.valid() ? block_table : before->block_table;
    if (state_->replace(before,
                        make_schedule(state_->device, std::move(problem), table, "update"))) {
      return;
    }
  }
}

}  // namespace metal_sdpa
