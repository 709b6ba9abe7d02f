// What the tests of the CPU's kernels share.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "oracle.h"
#include "problems.h"
#include "support.h"

namespace metal_sdpa::test {

inline constexpr std::array<DType, 3> kDTypes{DType::f32, DType::f16, DType::bf16};

inline std::string name_of(DType dtype) { return dtype_name(dtype); }

/// Names of the instruction sets that this machine runs.
inline std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const cpu::Isa isa : cpu::supported_isas()) names.emplace_back(cpu::isa_name(isa));
  return names;
}

inline Device device_of(const std::string& isa, int threads = 1) {
  return Device("cpu", {threads, isa});
}

/// One KV head with packed layouts, all keys in use.
inline SdpaProblem problem_of(const char* kernel, DType dtype, std::int64_t group,
                              std::int64_t rows, std::int64_t keys, std::int64_t head_dim,
                              std::int64_t value_dim) {
  SdpaProblem p;
  p.kernel = kernel;
  p.dtype = dtype;
  p.n_heads = group;
  p.seq_len = rows;
  p.kv_capacity = p.kv_len = keys;
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  p.scale = 1 / std::sqrt(static_cast<float>(head_dim));
  p.return_lse = true;
  p.set_packed_layouts();
  return p;
}

inline SdpaProblem prefill_problem(DType dtype, std::int64_t group, std::int64_t rows,
                                   std::int64_t keys, std::int64_t head_dim,
                                   std::int64_t value_dim) {
  return problem_of("sdpa_prefill", dtype, group, rows, keys, head_dim, value_dim);
}

/// The buffer's bytes in memory of their own, with an inaccessible page behind the last one.
inline Buffer before_a_wall(const Device& device, const Buffer& buffer) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t n_bytes = buffer.byte_len();
  const std::size_t room = (n_bytes + page - 1) / page * page;
  void* base =
      mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(base != MAP_FAILED);
  const std::shared_ptr<void> owner(base, [=](void* p) { munmap(p, room + page); });
  REQUIRE(mprotect(static_cast<char*>(base) + room, page, PROT_NONE) == 0);
  char* data = static_cast<char*>(base) + room - n_bytes;
  std::memcpy(data, buffer.data(), n_bytes);
  return device.wrap({data, n_bytes, false, owner}, buffer.dtype(), buffer.shape());
}

/// Runs the problem; the worst error of a row, in units of its bound.
inline double error_of_run(const Device& device, const SdpaProblem& p, const SdpaOperands& x) {
  fill_bytes(x.out, 0xff);
  sdpa(device, x, p);
  return worst_error(p, x, reference_sdpa(p, x));
}

}  // namespace metal_sdpa::test
