// The pool of scratch memory.
#include "core/scratch.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <utility>

#include "core/backend.h"
#include "core/fork.h"
#include "metal_sdpa/plan.h"

namespace metal_sdpa {
namespace {

// As many plans as run at once keep memory; more than that is given back to the system.
constexpr std::size_t kMaxKept = 8;
constexpr std::size_t kSmallest = 4096;
// Where memory of ours begins on either device.
constexpr std::uint64_t kAlignment = 128;

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::shared_ptr<Storage> take_free(ScratchPool& pool, std::size_t byte_len) {
  const std::lock_guard<std::mutex> lock(process_mutex());
  const auto fits = [byte_len](const std::shared_ptr<Storage>& storage) {
    return storage->byte_len == byte_len;
  };
  const auto found = std::find_if(pool.free.begin(), pool.free.end(), fits);
  if (found == pool.free.end()) return nullptr;
  std::shared_ptr<Storage> storage = std::move(*found);
  pool.free.erase(found);
  return storage;
}

/// Puts memory back when the last holder lets go; the oldest goes when too much is kept.
struct ReturnToPool {
  std::shared_ptr<ScratchPool> pool;
  std::shared_ptr<Storage> storage;

  void operator()(Storage*) {
    std::shared_ptr<Storage> surplus;  // freed outside of the lock
    const std::lock_guard<std::mutex> lock(process_mutex());
    if (pool->free.size() == kMaxKept) {
      surplus = std::move(pool->free.front());
      pool->free.erase(pool->free.begin());
    }
    pool->free.push_back(std::move(storage));
  }
};

}  // namespace

std::shared_ptr<Storage> acquire_scratch(Backend& backend, std::size_t byte_len) {
  const std::size_t rounded = std::bit_ceil(std::max(byte_len, kSmallest));
  const std::shared_ptr<ScratchPool>& pool = backend.scratch_pool();
  std::shared_ptr<Storage> storage = take_free(*pool, rounded);
  if (storage == nullptr) storage = backend.allocate(rounded);
  Storage* raw = storage.get();
  return std::shared_ptr<Storage>(raw, ReturnToPool{pool, std::move(storage)});
}

void reserve_scratch(Backend& backend, const Plan& plan, ScratchList& scratch) {
  for (std::size_t i = 0; i < kMaxScratch; ++i) {
    const std::size_t needed = plan.scratch_bytes[i];
    if (needed == 0) continue;
    if (scratch.size() <= i) scratch.resize(i + 1);
    if (scratch[i].storage != nullptr && scratch[i].byte_len >= needed) continue;
    std::shared_ptr<Storage> storage = acquire_scratch(backend, needed);
    const std::size_t byte_len = storage->byte_len;
    scratch[i] = {std::move(storage), 0, byte_len};
  }
}

std::uint64_t carved_bytes(const Plan& plan) {
  std::uint64_t bytes = 0;
  for (const std::uint64_t needed : plan.scratch_bytes) bytes += aligned(needed);
  return bytes == 0 ? 0 : bytes + kAlignment - 1;
}

ScratchList carve_scratch(const Plan& plan, const Buffer& memory) {
  ScratchList scratch(kMaxScratch);
  std::uint64_t begin = memory.byte_offset() + aligned(memory.address()) - memory.address();
  for (std::size_t i = 0; i < kMaxScratch; ++i) {
    const std::uint64_t needed = plan.scratch_bytes[i];
    if (needed == 0) continue;
    scratch[i] = {memory.storage(), begin, needed};
    begin += aligned(needed);
  }
  return scratch;
}

}  // namespace metal_sdpa
