// How many threads CPU work uses.
#pragma once

namespace metal_sdpa::cpu {

inline constexpr int kMaxThreads = 1024;

/// CPUs of this process's affinity mask, capped by its cgroup's quota; at least 1.
int available_cpus();

/// InvalidArgument where METAL_SDPA_NUM_THREADS was no number of threads when the library was
/// loaded.
void require_valid_environment();

}  // namespace metal_sdpa::cpu
