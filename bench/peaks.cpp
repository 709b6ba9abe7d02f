// What this machine can do at most, with several threads: multiply-adds and pure loads.
//
// Each loop is compiled for the instruction sets of the kernels and chosen at run time, so that the
// limit is the machine's and not the compiler flags'. Times are taken inside, between two barriers
// of the threads: waking a thread is no part of a limit.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

#define PEAKS_API extern "C" __attribute__((visibility("default")))

namespace {

using Clock = std::chrono::steady_clock;

// Results go here, so that no loop is optimised away.
std::atomic<std::uint32_t> g_sink{0};

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/// Runs work(t) on threads 0..threads-1 at once. Seconds from the first start to the last end.
template <class Work>
double seconds_of(int threads, const Work& work) {
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> start(threads), end(threads);
  const auto run = [&](int t) {
    waiting.fetch_sub(1);
    while (waiting.load() > 0) relax();
    start[t] = Clock::now();
    work(t);
    end[t] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(start.begin(), start.end()))
      .count();
}

// ----- multiply-adds
// ------------------------------------------------------------------------------
//
// Twelve independent chains cover a latency of four to six cycles on two ports.

constexpr int kChains = 12;

// Volatile, so that the compiler can neither merge two chains nor simplify a factor.
volatile float g_start[kChains] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
volatile float g_factor = 0.5f;
volatile short g_bf16_factor = 0x3f00;  // 0.5

/// Flops of `rounds` rounds, or 0 where the machine has no such instruction.
using FlopLoop = double (*)(std::int64_t rounds);

double fma_baseline(std::int64_t rounds) {
  typedef float Vector __attribute__((vector_size(16)));
  Vector sum[kChains];
  for (int c = 0; c < kChains; ++c) sum[c] = Vector{} + g_start[c];
  const Vector x = Vector{} + g_factor;
  const Vector y = x;
  for (std::int64_t r = 0; r < rounds; ++r) {
    for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * x + y;
  }
  float total = 0.0f;
  for (const Vector& s : sum) total += s[0];
  g_sink += static_cast<std::uint32_t>(total);
  return 2.0 * 4 * kChains * static_cast<double>(rounds);
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) double fma_avx2(std::int64_t rounds) {
  __m256 sum[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sum[c] = _mm256_set1_ps(g_start[c]);
  const __m256 x = _mm256_set1_ps(g_factor);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = _mm256_fmadd_ps(sum[c], x, x);
  }
  float total = 0.0f;
  for (const __m256& s : sum) total += _mm256_cvtss_f32(s);
  g_sink += static_cast<std::uint32_t>(total);
  return 2.0 * 8 * kChains * static_cast<double>(rounds);
}

__attribute__((target("avx512f"))) double fma_avx512(std::int64_t rounds) {
  __m512 sum[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_ps(g_start[c]);
  const __m512 x = _mm512_set1_ps(g_factor);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_fmadd_ps(sum[c], x, x);
  }
  float total = 0.0f;
  for (const __m512& s : sum) total += _mm512_cvtss_f32(s);
  g_sink += static_cast<std::uint32_t>(total);
  return 2.0 * 16 * kChains * static_cast<double>(rounds);
}

__attribute__((target("avx512f,avx512bf16"))) double dot_avx512_bf16(std::int64_t rounds) {
  __m512 sum[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_ps(g_start[c]);
  const __m512bh x = (__m512bh)_mm512_set1_epi16(g_bf16_factor);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_dpbf16_ps(sum[c], x, x);
  }
  float total = 0.0f;
  for (const __m512& s : sum) total += _mm512_cvtss_f32(s);
  g_sink += static_cast<std::uint32_t>(total);
  return 4.0 * 16 * kChains * static_cast<double>(rounds);
}

#if defined(__linux__)

/// Whether this process may use the tile registers of AMX-BF16.
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmx = 1u << 22 | 1u << 24;  // BF16 and TILE, of leaf 7's edx
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAmx) != kAmx) return false;
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
}

/// Four independent sums of products of 16 x 32 by 32 x 16 bf16. In assembly, which no compiler
/// flag has to allow.
double dot_amx(std::int64_t rounds) {
  alignas(64) std::uint8_t config[64] = {1};  // palette
  for (int i = 0; i < 8; ++i) {
    config[16 + 2 * i] = 64;  // bytes of a row
    config[48 + i] = 16;      // rows
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  for (std::int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(
        "tdpbf16ps %tmm7, %tmm6, %tmm0\n\ttdpbf16ps %tmm7, %tmm6, %tmm1\n\t"
        "tdpbf16ps %tmm7, %tmm6, %tmm2\n\ttdpbf16ps %tmm7, %tmm6, %tmm3");
  }
  __asm__ volatile("tilerelease");
  return 4.0 * 2 * 16 * 16 * 32 * static_cast<double>(rounds);
}

#endif

#elif defined(__aarch64__)

double fma_neon(std::int64_t rounds) {
  constexpr int kNeonChains = 2 * kChains;  // some cores have four pipes
  float32x4_t sum[kNeonChains];
#pragma GCC unroll 24
  for (int c = 0; c < kNeonChains; ++c) sum[c] = vdupq_n_f32(g_start[c % kChains] + c);
  const float32x4_t x = vdupq_n_f32(g_factor);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int c = 0; c < kNeonChains; ++c) sum[c] = vfmaq_f32(sum[c], x, x);
  }
  float total = 0.0f;
  for (const float32x4_t& s : sum) total += vgetq_lane_f32(s, 0);
  g_sink += static_cast<std::uint32_t>(total);
  return 2.0 * 4 * kNeonChains * static_cast<double>(rounds);
}

/// BFMMLA by its encoding, which no compiler flag has to allow: v[c] += v28 * v29, 32 flops.
double dot_neon_bf16(std::int64_t rounds) {
  for (std::int64_t r = 0; r < rounds; ++r) {
    // bfmmla v<c>.4s, v28.8h, v29.8h is 0x6e5def80 + c.
    __asm__ volatile(
        ".inst 0x6e5def80\n.inst 0x6e5def81\n.inst 0x6e5def82\n.inst 0x6e5def83\n"
        ".inst 0x6e5def84\n.inst 0x6e5def85\n.inst 0x6e5def86\n.inst 0x6e5def87\n"
        ".inst 0x6e5def90\n.inst 0x6e5def91\n.inst 0x6e5def92\n.inst 0x6e5def93\n" ::
            : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v28",
              "v29");
  }
  return 32.0 * kChains * static_cast<double>(rounds);
}

bool has_bf16() {
#if defined(__linux__)
  constexpr unsigned long kHwcap2Bf16 = 1ul << 14;  // HWCAP2_BF16 of the kernel's ABI
  return (getauxval(AT_HWCAP2) & kHwcap2Bf16) != 0;
#elif defined(__APPLE__)
  int value = 0;
  std::size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}

#endif

FlopLoop fma_loop() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return fma_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_avx2;
#elif defined(__aarch64__)
  return fma_neon;
#endif
  return fma_baseline;
}

FlopLoop dot_loop() {
#if defined(__x86_64__)
#if defined(__linux__)
  static const bool amx = has_amx();
  if (amx) return dot_amx;
#endif
  if (__builtin_cpu_supports("avx512bf16")) return dot_avx512_bf16;
#elif defined(__aarch64__)
  if (has_bf16()) return dot_neon_bf16;
#endif
  return nullptr;
}

/// Flops per second of all threads together: the best of `tries`.
double best_rate(FlopLoop loop, int threads, std::int64_t rounds, int tries) {
  double best = 0.0;
  for (int i = 0; i < tries; ++i) {
    const double seconds = seconds_of(threads, [&](int) { loop(rounds); });
    best = std::max(best, loop(1) * static_cast<double>(rounds) * threads / seconds);
  }
  return best;
}

// ----- loads
// --------------------------------------------------------------------------------------
//
// A thread walks over several places of its share at once, a page of each in turn, so that the
// prefetchers have more than one stream to follow.

constexpr std::size_t kLine = 64;
constexpr std::size_t kStep = 4096;

using LoadLoop = std::uint32_t (*)(const std::byte* from, std::size_t bytes);

std::uint32_t load_baseline(const std::byte* from, std::size_t bytes) {
  typedef std::uint32_t Vector __attribute__((vector_size(16), aligned(1), may_alias));
  Vector sum[4] = {};
  for (std::size_t i = 0; i + kLine <= bytes; i += kLine) {
    const auto* line = reinterpret_cast<const Vector*>(from + i);
    for (int j = 0; j < 4; ++j) sum[j] ^= line[j];
  }
  const Vector all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1] ^ all[2] ^ all[3];
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) std::uint32_t load_avx2(const std::byte* from, std::size_t bytes) {
  __m256i sum[4] = {};
  for (std::size_t i = 0; i + 2 * kLine <= bytes; i += 2 * kLine) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const auto* at = reinterpret_cast<const __m256i*>(from + i + 32 * j);
      sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256(at));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<std::uint32_t>(_mm256_extract_epi32(all, 0) ^ _mm256_extract_epi32(all, 5));
}

__attribute__((target("avx512f"))) std::uint32_t load_avx512(const std::byte* from,
                                                             std::size_t bytes) {
  __m512i sum[4] = {};
  for (std::size_t i = 0; i + 4 * kLine <= bytes; i += 4 * kLine) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(from + i + kLine * j));
    }
  }
  const __m512i all =
      _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
  std::uint32_t lanes[16];
  _mm512_storeu_si512(lanes, all);
  return lanes[0] ^ lanes[15];
}

#endif

LoadLoop load_loop() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return load_avx512;
  if (__builtin_cpu_supports("avx2")) return load_avx2;
#endif
  return load_baseline;
}

/// Reads [from, from + bytes) as `streams` neighbouring parts, a step of each in turn.
std::uint32_t load_streams(LoadLoop loop, const std::byte* from, std::size_t bytes, int streams) {
  const std::size_t part = bytes / streams / kStep * kStep;
  std::uint32_t sum = 0;
  for (std::size_t at = 0; at < part; at += kStep) {
    for (int s = 0; s < streams; ++s) sum ^= loop(from + s * part + at, kStep);
  }
  return sum ^ loop(from + streams * part, bytes - streams * part);
}

}  // namespace

/// The widest instruction set of the loops: "avx512_amx", "avx512", "avx2", "neon" or "baseline".
PEAKS_API const char* peaks_isa() {
#if defined(__x86_64__)
#if defined(__linux__)
  if (dot_loop() == dot_amx) return "avx512_amx";
#endif
  if (fma_loop() == fma_avx512) return "avx512";
  if (fma_loop() == fma_avx2) return "avx2";
#elif defined(__aarch64__)
  return "neon";
#endif
  return "baseline";
}

/// f32 multiply-adds: flop/s of `threads` threads together, the best of `tries`.
PEAKS_API double peaks_fma_f32(int threads, std::int64_t rounds, int tries) {
  return best_rate(fma_loop(), threads, rounds, tries);
}

/// Dot products of bf16 pairs into f32: flop/s, or 0 where there is no such instruction.
PEAKS_API double peaks_bf16_dot(int threads, std::int64_t rounds, int tries) {
  return dot_loop() == nullptr ? 0.0 : best_rate(dot_loop(), threads, rounds, tries);
}

/// Seconds to load n buffers once, with nothing else done: each thread reads its share of each.
PEAKS_API double peaks_load(const std::byte* const* buffers, const std::size_t* bytes, int n,
                            int threads, int streams) {
  const LoadLoop loop = load_loop();
  return seconds_of(threads, [&](int t) {
    std::uint32_t sum = 0;
    for (int i = 0; i < n; ++i) {
      const std::size_t begin = bytes[i] / kLine * t / threads * kLine;
      const std::size_t end = bytes[i] / kLine * (t + 1) / threads * kLine;
      sum ^= load_streams(loop, buffers[i] + begin, end - begin, streams);
    }
    g_sink += sum;
  });
}
