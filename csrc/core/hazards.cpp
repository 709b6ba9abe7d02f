// Conflicts between dispatches.
#include "core/hazards.h"

#include <algorithm>

namespace metal_sdpa {
namespace {

bool overlap(const std::vector<AddressRange>& a, const std::vector<AddressRange>& b) {
  return std::any_of(a.begin(), a.end(), [&b](const AddressRange& x) {
    return std::any_of(b.begin(), b.end(),
                       [&x](const AddressRange& y) { return x.begin < y.end && y.begin < x.end; });
  });
}

}  // namespace

bool conflict(const AccessSet& a, const AccessSet& b) {
  if (!a.declared || !b.declared) return true;
  return overlap(a.writes, b.writes) || overlap(a.writes, b.reads) || overlap(a.reads, b.writes);
}

bool HazardTracker::needs_barrier(const AccessSet& access) const {
  return any_ && conflict(pending_, access);
}

void HazardTracker::add(const AccessSet& access) {
  any_ = true;
  pending_.declared = pending_.declared && access.declared;
  pending_.reads.insert(pending_.reads.end(), access.reads.begin(), access.reads.end());
  pending_.writes.insert(pending_.writes.end(), access.writes.begin(), access.writes.end());
}

void HazardTracker::clear() {
  any_ = false;
  pending_.declared = true;
  pending_.reads.clear();
  pending_.writes.clear();
}

}  // namespace metal_sdpa
