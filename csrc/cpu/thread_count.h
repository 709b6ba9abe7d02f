// How many threads CPU work uses.
#pragma once

namespace metal_sdpa::cpu {

inline constexpr int kMaxThreads = 1024;

/// CPUs of this process's affinity mask, capped by its cgroup's quota; at least 1.
int available_cpus();

}  // namespace metal_sdpa::cpu
