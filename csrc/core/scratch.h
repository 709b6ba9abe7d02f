// Scratch memory of plans, kept for the next call when the device is done with it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace metal_sdpa {

class Backend;
class Storage;

/// Memory of at least `byte_len` bytes with whatever contents; it returns to the device's pool when
/// the last holder (a dispatch in flight, a graph) lets go.
std::shared_ptr<Storage> acquire_scratch(Backend& backend, std::size_t byte_len);

/// What a Backend keeps for acquire_scratch; guarded by process_mutex().
struct ScratchPool {
  std::vector<std::shared_ptr<Storage>> free;
};

}  // namespace metal_sdpa
