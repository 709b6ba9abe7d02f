// The one rule for when two dispatches conflict, and the one tracker that places barriers.
#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"
#include "metal_sdpa/encoder.h"

namespace metal_sdpa {

/// Bytes begin..end in the address space of Storage::address.
struct AddressRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// What a dispatch touches; undeclared conflicts with everything.
struct AccessSet {
  bool declared = false;
  std::vector<AddressRange> reads;
  std::vector<AddressRange> writes;
};

/// A dispatch with what core knows of it beyond the device's needs.
struct DispatchRecord {
  Dispatch dispatch;
  AccessSet access;
  OpKind kind = OpKind::other;
};

/// True unless the two may run at the same time: no byte that one writes is touched by the other.
bool conflict(const AccessSet& a, const AccessSet& b);

/// Remembers what was dispatched since the last barrier.
class HazardTracker {
 public:
  bool needs_barrier(const AccessSet& access) const;
  void add(const AccessSet& access);
  void clear();

 private:
  bool any_ = false;
  AccessSet pending_{true, {}, {}};
};

}  // namespace metal_sdpa
