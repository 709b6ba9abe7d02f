// The scheduler of a threadgroup's fibers.
#include "threadgroup.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace software_metal {

using msl_host::kLanes;
using msl_host::Meeting;

namespace {

[[maybe_unused]] constexpr std::size_t kMargin = 64;
constexpr unsigned char kMarginByte = 0xa5;
constexpr unsigned char kPoisonByte = 0xff;  // NaN as f32, f16 and bf16
constexpr std::size_t kMaxThreadgroupMemory = 32768;
constexpr unsigned kPreemptOneIn = 8;

std::size_t margin() {
#ifdef SOFTWARE_METAL_ASAN
  return 0;
#else
  return kMargin;
#endif
}

}  // namespace

// ----- GuardedMemory

GuardedMemory::GuardedMemory(std::size_t bytes)
    : block_(new unsigned char[bytes + 2 * margin()]),
      data_(block_.get() + margin()),
      size_(bytes) {
  std::memset(block_.get(), kMarginByte, margin());
  std::memset(block_.get() + margin() + bytes, kMarginByte, margin());
}

void GuardedMemory::poison() { std::memset(data_, kPoisonByte, size_); }

bool GuardedMemory::is_intact() const {
  auto is_margin = [](unsigned char c) { return c == kMarginByte; };
  const unsigned char* after = block_.get() + margin() + size_;
  return std::all_of(block_.get(), block_.get() + margin(), is_margin) &&
         std::all_of(after, after + margin(), is_margin);
}

// ----- ThreadgroupEngine

ThreadgroupEngine* ThreadgroupEngine::running_ = nullptr;

const msl_host::Runtime& ThreadgroupEngine::runtime() {
  static const msl_host::Runtime services = {&ThreadgroupEngine::meet,
                                             &ThreadgroupEngine::threadgroup_array};
  return services;
}

bool ThreadgroupEngine::run(const msl_host::Module& module, const msl_host::Function& function,
                            const msl_host::Group& group, Random& random) {
  entry_ = function.entry;
  current_thread_ = module.current;
  random_ = &random;
  failed_ = false;
  ++generation_;
  running_ = this;
  scheduler_ = FiberContext();  // the executor's thread may be another one than last time
  set_up(group);
  run_simdgroups();
  running_ = nullptr;
  if (!failed_) failed_ = !check_arrays();
  return !failed_;
}

void ThreadgroupEngine::set_up(const msl_host::Group& group) {
  const msl_host::Uint3 size = group.threads;
  n_lanes_ = size.x * size.y * size.z;
  while (lanes_.size() < n_lanes_) {
    lanes_.push_back(std::make_unique<Lane>());
    stacks_.add_stack(lanes_.back()->context);
  }
  simds_.resize(group.simdgroups);
  for (unsigned s = 0; s < group.simdgroups; ++s) {
    Simd& simd = simds_[s];
    unsigned count = std::min(kLanes, n_lanes_ - s * kLanes);
    simd.all = count == kLanes ? ~0u : (1u << count) - 1;
    simd.ready = simd.all;
    simd.done = 0;
    simd.first_lane = s * kLanes;
    reorder(simd);
  }
  unsigned index = 0;
  const msl_host::Uint3 at = group.position_in_grid;
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x, ++index) {
        Lane& lane = *lanes_[index];
        const msl_host::Uint3 full = group.dispatched_threads;
        lane.thread.position_in_threadgroup = {x, y, z};
        lane.thread.position_in_grid = {at.x * full.x + x, at.y * full.y + y, at.z * full.z + z};
        lane.thread.index_in_threadgroup = index;
        lane.thread.lane = index % kLanes;
        lane.thread.simdgroup_index = index / kLanes;
        lane.thread.simdgroup = &simds_[index / kLanes].shared;
        lane.thread.group = &group;
        prepare_fiber(lane.context, &fiber_main, index);
      }
    }
  }
  runnable_ = group.simdgroups == 32 ? ~0u : (1u << group.simdgroups) - 1;
  at_barrier_ = 0;
}

// The n-th set bit of a mask.
static unsigned nth_bit(std::uint32_t mask, unsigned n) {
  while (n-- > 0) mask &= mask - 1;
  return static_cast<unsigned>(std::countr_zero(mask));
}

void ThreadgroupEngine::run_simdgroups() {
  while (!failed_) {
    if (runnable_ == 0 && !release_barrier()) return;
    unsigned pick = random_->below(static_cast<unsigned>(std::popcount(runnable_)));
    Lane* lane = next_ready(simds_[nth_bit(runnable_, pick)]);
    make_current(*lane);
    switch_fiber(scheduler_, lane->context);
  }
  for (unsigned i = 0; i < n_lanes_; ++i) abandon_fiber(lanes_[i]->context);
}

// All simdgroups stand still: true when a barrier could be opened, false at the end.
bool ThreadgroupEngine::release_barrier() {
  if (at_barrier_ == 0) return false;
  const Lane& first = *lanes_[simds_[nth_bit(at_barrier_, 0)].first_lane];
  for (const Simd& simd : simds_) {
    const Lane& lane = *lanes_[simd.first_lane];
    if (simd.done != 0 || lane.site != first.site || lane.meeting != first.meeting) {
      fail(describe_waiters());
      return false;
    }
  }
  for (Simd& simd : simds_) {
    simd.ready = simd.all;
    reorder(simd);
  }
  runnable_ = std::exchange(at_barrier_, 0u);
  return true;
}

void ThreadgroupEngine::make_current(Lane& lane) {
  current_ = &lane;
  *current_thread_ = &lane.thread;
}

void ThreadgroupEngine::reorder(Simd& simd) {
  std::uint32_t bits = random_->next();
  simd.start = bits & 31;
  simd.stride = (bits >> 5 & 31) | 1;
  simd.position = 0;
}

ThreadgroupEngine::Lane* ThreadgroupEngine::next_ready(Simd& simd) {
  if (simd.ready == 0) return nullptr;
  while (simd.position < kLanes) {
    unsigned lane = (simd.start + simd.position * simd.stride) & 31;
    ++simd.position;
    if (simd.ready >> lane & 1) return lanes_[simd.first_lane + lane].get();
  }
  reorder(simd);
  return next_ready(simd);
}

// ----- On the fibers' stacks

void ThreadgroupEngine::fiber_main() {
  fiber_started();
  ThreadgroupEngine& engine = *running_;
  Lane& lane = *engine.current_;
  engine.entry_(lane.thread);
  engine.finish_lane(lane);
}

void ThreadgroupEngine::finish_lane(Lane& lane) {
  Simd& simd = simd_of(lane);
  simd.ready &= ~(1u << lane.thread.lane);
  simd.done |= 1u << lane.thread.lane;
  Lane* next = next_ready(simd);
  if (next == nullptr && settle(simd)) next = next_ready(simd);
  if (next == nullptr) leave_fiber(lane.context, scheduler_);
  make_current(*next);
  leave_fiber(lane.context, next->context);
}

void ThreadgroupEngine::meet(Meeting meeting, const char* name, unsigned site,
                             msl_host::Resolver resolve) {
  Lane& lane = *running_->current_;
  lane.meeting = meeting;
  lane.name = name;
  lane.site = site;
  lane.resolve = resolve;
  running_->block(lane);
}

// Returns when the lane may go on.
void ThreadgroupEngine::block(Lane& lane) {
  Simd& simd = simd_of(lane);
  simd.ready &= ~(1u << lane.thread.lane);
  Lane* next = next_ready(simd);
  if (next == nullptr) {
    bool goes_on = settle(simd);
    if (goes_on && std::popcount(runnable_) > 1) goes_on = random_->below(kPreemptOneIn) != 0;
    if (!goes_on) {
      switch_fiber(lane.context, scheduler_);
      return;
    }
    next = next_ready(simd);
  }
  make_current(*next);
  if (next != &lane) switch_fiber(lane.context, next->context);
}

// No lane of the simdgroup can go on. Opens its meeting if all have come; true if some lane is
// ready then.
bool ThreadgroupEngine::settle(Simd& simd) {
  std::uint32_t live = simd.all & ~simd.done;
  std::uint32_t self = 1u << (&simd - simds_.data());
  if (live == 0) {
    runnable_ &= ~self;
    return false;
  }
  const Lane& first = *lanes_[simd.first_lane + nth_bit(live, 0)];
  for (std::uint32_t rest = live & (live - 1); rest != 0; rest &= rest - 1) {
    const Lane& lane = *lanes_[simd.first_lane + nth_bit(rest, 0)];
    if (lane.site != first.site || lane.meeting != first.meeting || lane.name != first.name) {
      return settle_divergent(simd, live);
    }
  }
  return settle_uniform(simd, first, live);
}

bool ThreadgroupEngine::settle_uniform(Simd& simd, const Lane& first, std::uint32_t live) {
  if (first.meeting != Meeting::lanes && live != simd.all) {
    fail(describe_waiters());
    return false;
  }
  if (first.meeting == Meeting::threadgroup_barrier) {
    std::uint32_t self = 1u << (&simd - simds_.data());
    runnable_ &= ~self;
    at_barrier_ |= self;
    return false;
  }
  resolve_lanes(simd, live, first);
  return true;
}

// Lanes in different places: an operation of the active lanes may still go on. The one with the
// lowest line number does, as lanes inside a loop come back before those behind it go on.
bool ThreadgroupEngine::settle_divergent(Simd& simd, std::uint32_t live) {
  const Lane* lowest = nullptr;
  for (std::uint32_t rest = live; rest != 0; rest &= rest - 1) {
    const Lane& lane = *lanes_[simd.first_lane + nth_bit(rest, 0)];
    if (lane.meeting != Meeting::lanes) continue;
    if (lowest == nullptr || msl_host::line_of(lane.site) < msl_host::line_of(lowest->site)) {
      lowest = &lane;
    }
  }
  if (lowest == nullptr) {
    fail(describe_waiters());
    return false;
  }
  std::uint32_t active = 0;
  for (std::uint32_t rest = live; rest != 0; rest &= rest - 1) {
    const Lane& lane = *lanes_[simd.first_lane + nth_bit(rest, 0)];
    bool same = lane.meeting == lowest->meeting && lane.site == lowest->site &&
                lane.name == lowest->name;
    if (same) active |= 1u << lane.thread.lane;
  }
  resolve_lanes(simd, active, *lowest);
  return true;
}

void ThreadgroupEngine::resolve_lanes(Simd& simd, std::uint32_t active, const Lane& any) {
  simd.shared.active = active;
  if (any.resolve != nullptr) any.resolve(simd.shared);
  simd.ready = active;
  reorder(simd);
}

// ----- Failures

void ThreadgroupEngine::fail(std::string error) {
  failed_ = true;
  error_ = std::move(error);
}

std::string ThreadgroupEngine::describe_waiters() const {
  struct Place {
    std::string text;
    unsigned count;
  };
  std::vector<Place> places;
  auto tally = [&](const std::string& text) {
    for (Place& place : places) {
      if (place.text == text) return void(++place.count);
    }
    places.push_back({text, 1});
  };
  for (unsigned i = 0; i < n_lanes_; ++i) {
    const Simd& simd = simds_[i / kLanes];
    std::uint32_t bit = 1u << (i % kLanes);
    if (simd.done & bit) {
      tally("have returned");
    } else if (simd.ready & bit) {
      tally("are running");
    } else {
      tally(format("wait at %s (line %u)", lanes_[i]->name, msl_host::line_of(lanes_[i]->site)));
    }
  }
  std::string text = "divergence in a threadgroup:";
  for (const Place& place : places) {
    text += format("%s %u threads %s", &place == places.data() ? "" : ",", place.count,
                   place.text.c_str());
  }
  return text;
}

// ----- Threadgroup arrays declared in kernels

void* ThreadgroupEngine::threadgroup_array(unsigned id, unsigned bytes) {
  ThreadgroupEngine& engine = *running_;
  std::size_t total = engine.bound_bytes_ + bytes;
  for (auto& array : engine.arrays_) {
    if (array->id == id && array->memory.size() == bytes) {
      if (std::exchange(array->generation, engine.generation_) != engine.generation_) {
        array->memory.poison();
      }
      return array->memory.data();
    }
    if (array->generation == engine.generation_) total += array->memory.size();
  }
  if (total > kMaxThreadgroupMemory) {
    violation("%zu bytes of threadgroup memory, but the device has %zu", total,
              kMaxThreadgroupMemory);
  }
  engine.arrays_.push_back(std::unique_ptr<ThreadgroupArray>(
      new ThreadgroupArray{id, GuardedMemory(bytes), engine.generation_}));
  engine.arrays_.back()->memory.poison();
  return engine.arrays_.back()->memory.data();
}

bool ThreadgroupEngine::check_arrays() {
  for (const auto& array : arrays_) {
    if (array->memory.is_intact()) continue;
    error_ = "a write past the end of a threadgroup array";
    arrays_.clear();
    return false;
  }
  return true;
}

}  // namespace software_metal
