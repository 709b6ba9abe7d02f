// Blocks of keys that no row sees are not read: their pages cannot be.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "metal_problems.h"
#include "oracle.h"
#include "problems.h"

namespace metal_sdpa::test {
namespace {

constexpr std::int64_t kBlock = 16;

/// Pages that hold a cache, of which some can be closed.
class Pages {
 public:
  Pages(const Device& device, const Buffer& contents) {
    byte_len_ = contents.byte_len();
    data_ = ::mmap(nullptr, byte_len_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    REQUIRE(data_ != MAP_FAILED);
    std::memcpy(data_, contents.data(), byte_len_);
    const std::shared_ptr<void> owner(data_,
                                      [length = byte_len_](void* p) { ::munmap(p, length); });
    const auto elements = static_cast<std::int64_t>(contents.element_count());
    buffer_ = device.wrap({data_, byte_len_, false, owner}, contents.dtype(), {elements});
  }

  const Buffer& buffer() const { return buffer_; }

  void open() const { REQUIRE(::mprotect(data_, byte_len_, PROT_READ | PROT_WRITE) == 0); }

  void close(std::size_t from, std::size_t to) const {
    if (from == to) return;
    REQUIRE(::mprotect(static_cast<char*>(data_) + from, to - from, PROT_NONE) == 0);
  }

 private:
  void* data_ = nullptr;
  std::size_t byte_len_ = 0;
  Buffer buffer_;
};

/// Whether any row sees a key of the block; a key in the same block as one that is seen may be
/// read.
bool is_seen(const SdpaProblem& p, const SdpaOperands& x, std::int64_t block) {
  for (std::int64_t h = 0; h < p.n_heads; ++h) {
    for (std::int64_t i = 0; i < p.seq_len; ++i) {
      for (std::int64_t j = block * kBlock; j < (block + 1) * kBlock; ++j) {
        if (is_visible(p, x, 0, h, i, j)) return true;
      }
    }
  }
  return false;
}

/// Every kernel, with the pages of blocks that no row sees closed.
void check_unseen(const Device& device, SdpaProblem problem, const SdpaOperands& x) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const Pages k(device, x.k), v(device, x.v);
  SdpaOperands paged = x;
  paged.k = k.buffer();
  paged.v = v.buffer();
  const auto block_bytes = static_cast<std::size_t>(kBlock * problem.head_dim * 4);
  REQUIRE(block_bytes % page == 0);
  std::size_t closed = 0;
  for (const std::string& kernel : kernels_for(device, problem)) {
    problem.kernel = kernel;
    const Plan plan = plan_with_spans(problem, 32);
    for (std::int64_t block = 0; block < problem.kv_capacity / kBlock; ++block) {
      if (is_seen(problem, x, block)) continue;
      const auto from = static_cast<std::size_t>(block) * block_bytes;
      k.close(from, from + block_bytes);
      v.close(from, from + block_bytes);
      ++closed;
    }
    run_plan(device, plan, paged);
    k.open();
    v.open();
    INFO(kernel, " D ", problem.head_dim);
    CHECK(worst_error(problem, paged, reference_sdpa(problem, paged)) <= 1.0);
  }
  CHECK(closed > 0);
}

}  // namespace

TEST_CASE("software metal: blocks that no row sees are not read") {
  const Device device("metal");
  std::mt19937 rng(149);
  for (const std::int64_t head_dim : {64, 256}) {
    for (const std::int64_t seq_len : {1, 6, 40}) {
      SdpaProblem plain =
          problem_of({1, 2, 1, seq_len, 144, 160, head_dim, head_dim, true}, DType::f32);
      SdpaProblem problem = plain;
      check_unseen(device, problem, random_operands(rng, device, problem));
      problem.window_left = 19;
      check_unseen(device, problem, random_operands(rng, device, problem));
      problem.kv_start = 80;
      check_unseen(device, problem, random_operands(rng, device, problem));
      problem = plain;
      problem.mask = MaskLayout{DType::u8, 0, 0, 0, 0, 1};
      const SdpaOperands x = random_operands(rng, device, problem);
      fill_bytes(x.mask, 0);
      for (const std::size_t key : {33, 34, 90}) x.mask.host<std::uint8_t>()[key] = 1;
      check_unseen(device, problem, x);
    }
  }
}

}  // namespace metal_sdpa::test
