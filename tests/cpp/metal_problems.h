// Attention problems of the Metal tests, the kernels that take them, and plans other than the
// device's own.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/dispatch.h"
#include "core/encoder_state.h"
#include "core/registry.h"
#include "metal/plan.h"
#include "metal/plan_tiles.h"
#include "oracle.h"
#include "problems.h"
#include "shaders/sdpa_args.h"
#include "support.h"

namespace metal_sdpa::test {

struct Case {
  std::int64_t batch, n_heads, n_kv_heads, seq_len, kv_len, kv_capacity, head_dim, value_dim;
  bool causal;
};

inline SdpaProblem problem_of(const Case& c, DType dtype) {
  SdpaProblem problem;
  problem.dtype = dtype;
  problem.batch = c.batch;
  problem.n_heads = c.n_heads;
  problem.n_kv_heads = c.n_kv_heads;
  problem.seq_len = c.seq_len;
  problem.kv_len = c.kv_len;
  problem.kv_capacity = c.kv_capacity;
  problem.head_dim = c.head_dim;
  problem.value_dim = c.value_dim;
  problem.causal = c.causal;
  problem.scale = 0.3f;
  problem.return_lse = true;
  problem.set_packed_layouts();
  return problem;
}

/// The same contents in memory of another device.
inline Buffer copied(const Device& device, const Buffer& source) {
  const Buffer copy = device.alloc_buffer(source.byte_len(), source.dtype(), source.shape());
  std::memcpy(copy.data(), source.data(), source.byte_len());
  return copy;
}

inline SdpaOperands copied(const Device& device, const SdpaOperands& x, bool lse) {
  const auto if_there = [&](const Buffer& buffer) {
    return buffer.byte_len() > 0 ? copied(device, buffer) : Buffer();
  };
  return {copied(device, x.q),
          copied(device, x.k),
          copied(device, x.v),
          copied(device, x.out),
          lse ? copied(device, x.lse) : Buffer(),
          if_there(x.mask),
          if_there(x.sinks),
          if_there(x.alibi_slopes)};
}

inline constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};

/// Runs a plan that may differ from the device's own.
inline void run_plan(const Device& device, const Plan& plan, const SdpaOperands& x) {
  Backend& backend = *device.backend();
  ScratchList scratch;
  reserve_scratch(backend, plan, scratch);
  CommandEncoder encoder = device.command_encoder();
  for (const DispatchRecord& record :
       resolve_plan(backend, default_registry(device), plan, x, scratch)) {
    encoder.state().encode(record);
  }
  encoder.commit_and_wait();
}

/// The device's plan with spans of `span_len` keys in place of its own, so that small problems have
/// many; the straightforward kernel keeps its own.
inline Plan plan_with_spans(const SdpaProblem& problem, std::int64_t span_len,
                            const MetalFacts& facts = {}) {
  if (problem.kernel == "sdpa") return plan_metal_sdpa(problem, facts);
  KernelFacts kernel = tile_kernel(problem, problem.seq_len, problem.kernel == "sdpa_prefill");
  kernel.spans.span_len = span_len;
  return plan_steps(problem, facts, kernel);
}

/// Kernels that a problem can be forced to.
inline std::vector<std::string> kernels_for(const Device& device, SdpaProblem problem) {
  std::vector<std::string> kernels;
  for (const char* kernel : {"sdpa", "sdpa_decode", "sdpa_prefill"}) {
    problem.kernel = kernel;
    try {
      const Plan plan = plan_sdpa(device, problem);
      plan_pipeline(default_registry(device), plan.steps[0].kernel,
                    {{SDPA_CONSTANT_GENERAL, true}});
      kernels.push_back(kernel);
    } catch (const Error& error) {
      const bool expected = error.code() == ErrorCode::invalid_argument ||
                            error.code() == ErrorCode::kernel_not_found;
      CHECK(expected);
    }
  }
  return kernels;
}

/// Every kernel that takes the problem, against float64.
inline void check_every_kernel(const Device& device, SdpaProblem problem, const SdpaOperands& x) {
  const Reference reference = reference_sdpa(problem, x);
  for (const std::string& kernel : kernels_for(device, problem)) {
    problem.kernel = kernel;
    sdpa(device, x, problem);
    INFO(kernel, " ", std::string(dtype_name(problem.dtype)), " L ", problem.seq_len, " kv ",
         problem.kv_len);
    CHECK(worst_error(problem, x, reference) <= 1.0);
  }
}

}  // namespace metal_sdpa::test
