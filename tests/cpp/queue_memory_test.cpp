// The queue where memory is short: whatever allocation fails, the call throws or succeeds, and the
// device works on.
#include <atomic>
#include <cstdlib>
#include <new>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

/// Allocations that still succeed, on any thread, before one fails; negative: none does.
std::atomic<long> g_left{-1};

void* try_to_allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (g_left.load() >= 0 && g_left.fetch_sub(1) == 0) return nullptr;
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, bytes == 0 ? 1 : bytes) == 0 ? memory : nullptr;
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  void* memory = try_to_allocate(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
// std::stable_sort asks with this one; a sanitizer's own would not go with the deletes below.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return try_to_allocate(bytes, alignof(std::max_align_t));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

TEST_CASE("the device survives any allocation that fails") {
  const Device device("cpu", {3, ""});
  const KernelRegistry registry(device);
  std::mt19937 rng(51);
  SdpaProblem p = prefill_problem(DType::f32, 4, 30, 1500, 64, 64);
  p.batch = 3;
  p.kv_lengths = {1500, 20, 1030};
  p.set_packed_layouts();
  const SdpaOperands x = random_operands(rng, device, p);
  sdpa(device, x, p);
  const auto want = bytes_of(x.out);
  const auto use = [&] {
    sdpa(device, x, p);
    CommandEncoder encoder(device);
    encode_sdpa(encoder, registry, device, x, p);
    encoder.commit();
    encoder.wait_until_completed();
    device.synchronize();
    shutdown();
  };
  long n = 0;
  bool ran_out = true;
  for (; ran_out && n < 5000; ++n) {
    g_left = n;
    try {
      use();
    } catch (const std::exception&) {
      // bad_alloc, or an Error that tells of it.
    }
    ran_out = g_left.exchange(-1) < 0;
    try {
      device.synchronize();
    } catch (const Error&) {
      // What nobody waited for.
    }
    fill_bytes(x.out, 0xff);
    use();
    INFO("allocation ", n, " fails");
    REQUIRE(bytes_of(x.out) == want);
  }
  CHECK(n > 20);
  CHECK(!ran_out);
}
