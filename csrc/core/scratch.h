// Scratch memory of plans, kept for the next call when the device is done with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace metal_sdpa {

class Backend;
class Buffer;
struct Plan;
class Storage;

/// One scratch memory of a plan.
struct ScratchMemory {
  std::shared_ptr<Storage> storage;
  std::size_t byte_offset = 0;
  std::size_t byte_len = 0;
};

/// By the number that a plan's operands have: scratch0 is the first.
using ScratchList = std::vector<ScratchMemory>;

/// Memory for every scratch of the plan; entries that `scratch` holds and that fit stay.
void reserve_scratch(Backend& backend, const Plan& plan, ScratchList& scratch);

/// Bytes that carve_scratch wants for a plan, wherever they begin.
std::uint64_t carved_bytes(const Plan& plan);

/// The plan's scratch memories in `memory`, which has carved_bytes(plan) or more.
ScratchList carve_scratch(const Plan& plan, const Buffer& memory);

/// Memory of at least `byte_len` bytes with whatever contents; it returns to the device's pool when
/// the last holder (a dispatch in flight, a graph) lets go.
std::shared_ptr<Storage> acquire_scratch(Backend& backend, std::size_t byte_len);

/// What a Backend keeps for acquire_scratch; guarded by process_mutex().
struct ScratchPool {
  std::vector<std::shared_ptr<Storage>> free;
};

}  // namespace metal_sdpa
