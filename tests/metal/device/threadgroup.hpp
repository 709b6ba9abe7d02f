// Runs the threads of one threadgroup as fibers that meet at barriers and simdgroup operations.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "report.hpp"
#include "shader_abi.hpp"

namespace software_metal {

/// Memory with exact bounds: under AddressSanitizer an allocation of its own, else with a margin
/// on both sides that is checked for writes.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t bytes);
  void* data() const { return data_; }
  std::size_t size() const { return size_; }
  /// Fills with the bits of a NaN in every floating type.
  void poison();
  bool is_intact() const;

 private:
  std::unique_ptr<unsigned char[]> block_;
  void* data_;
  std::size_t size_;
};

/// Only one engine runs at a time in a process: the device has one executor.
///
/// Between meetings the threads of a simdgroup run one after the other, in an order that the
/// generator picks; which simdgroup goes on is picked anew at each threadgroup barrier and now and
/// then in between. Each thread runs as far ahead as it can: what a missing barrier allows to
/// happen early, happens early.
class ThreadgroupEngine {
 public:
  ThreadgroupEngine() = default;
  ~ThreadgroupEngine() = default;

  /// Runs the threads; false when they diverged, with the reason in `error()`.
  bool run(const msl_host::Module& module, const msl_host::Function& function,
           const msl_host::Group& group, Random& random);
  const std::string& error() const { return error_; }

  static const msl_host::Runtime& runtime();

  /// Bytes of threadgroup memory bound by the encoder; arrays in the kernel come on top.
  void set_bound_threadgroup_memory(std::size_t bytes) { bound_bytes_ = bytes; }

 private:
  struct Lane {
    FiberContext context;
    msl_host::Thread thread;
    msl_host::Meeting meeting;
    unsigned site;
    const char* name;
    msl_host::Resolver resolve;
  };
  struct Simd {
    msl_host::Simdgroup shared;
    std::uint32_t all = 0;    ///< lanes that exist
    std::uint32_t ready = 0;  ///< lanes that can go on
    std::uint32_t done = 0;   ///< lanes that have returned
    unsigned first_lane = 0;  ///< index of lane 0 among the threads
    unsigned start = 0;       ///< order of the lanes: start + i * stride
    unsigned stride = 1;
    unsigned position = 0;
  };
  struct ThreadgroupArray {
    unsigned id;
    GuardedMemory memory;
    std::uint64_t generation;
  };

  static void fiber_main();
  static void meet(msl_host::Meeting meeting, const char* name, unsigned site,
                   msl_host::Resolver resolve);
  static void* threadgroup_array(unsigned id, unsigned bytes);

  void set_up(const msl_host::Group& group);
  void run_simdgroups();
  bool release_barrier();
  void finish_lane(Lane& lane);
  void block(Lane& lane);
  Lane* next_ready(Simd& simd);
  void reorder(Simd& simd);
  void make_current(Lane& lane);
  bool settle(Simd& simd);
  bool settle_uniform(Simd& simd, const Lane& first, std::uint32_t live);
  bool settle_divergent(Simd& simd, std::uint32_t live);
  void resolve_lanes(Simd& simd, std::uint32_t active, const Lane& any);
  void fail(std::string error);
  std::string describe_waiters() const;
  bool check_arrays();
  Simd& simd_of(const Lane& lane) { return simds_[lane.thread.simdgroup_index]; }

  static ThreadgroupEngine* running_;

  StackPool stacks_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Simd> simds_;
  std::vector<std::unique_ptr<ThreadgroupArray>> arrays_;
  std::uint64_t generation_ = 0;
  std::size_t bound_bytes_ = 0;
  FiberContext scheduler_;
  Lane* current_ = nullptr;
  msl_host::Thread** current_thread_ = nullptr;
  void (*entry_)(const msl_host::Thread&) = nullptr;
  unsigned n_lanes_ = 0;
  std::uint32_t runnable_ = 0;    ///< simdgroups that can go on
  std::uint32_t at_barrier_ = 0;  ///< simdgroups that wait at a threadgroup barrier
  Random* random_ = nullptr;
  bool failed_ = false;
  std::string error_;
};

}  // namespace software_metal
