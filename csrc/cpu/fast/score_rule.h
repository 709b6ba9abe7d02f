// What becomes of scores between the product and the softmax: softcap, ALiBi and masks, each a pass
// over scores of one row and a block of keys that lie in the L1 cache. Without any of them products
// come out of the kernels in log2 units and nothing else happens; a zero bias and an all-True mask
// leave them bit for bit as they are.
#pragma once

#include "cpu/fast/launch_view.h"
#include "cpu/fast/simd.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// tanh(x) of u = 2 x log2 e within a few units in the last place, also near 0: from 2^u - 1, which
/// is n = round(u), f = u - n: 2^n (2^f - 1) + (2^n - 1). 2^f - 1 = f p(f), where p was fitted for
/// the least relative error, 0.35 * 2^-24.
inline Vec tanh_of_log2(Vec u) {
  const Vec zero = splat(0.0f);
  const Vec far = splat(-40.0f);                            // 1 - 2^-40 is 1
  const Vec bounded = zero - max(far, zero - max(far, u));  // in this order a NaN stays
  const Vec n = round_to_integer(bounded);
  const Vec f = bounded - n;
  Vec p = splat(0x1.4308eep-13f);
  p = fma(p, f, splat(0x1.5f07b6p-10f));
  p = fma(p, f, splat(0x1.3b2ba0p-7f));
  p = fma(p, f, splat(0x1.c6af6ep-5f));
  p = fma(p, f, splat(0x1.ebfbdep-3f));
  p = fma(p, f, splat(0x1.62e430p-1f));
  const Vec one = splat(1.0f);
  const Vec power = times_power_of_two(one, n);
  const Vec less_one = fma(power, f * p, power - one);
  return less_one / (less_one + splat(2.0f));
}

/// Entries of a mask, of one row and some keys, as what is added to scores: a boolean one is 0 or
/// -inf. Rows of a tile often share theirs.
struct MaskEntries {
  const char* from = nullptr;  ///< of which row's
  int n_keys = 0;
  float* memory = nullptr;  ///< room for a block's
  const float* values = nullptr;
};

class ScoreRule {
 public:
  ScoreRule(const NativeLaunch& launch, const SdpaSequence& sequence, sdpa_i64 b)
      : args_(args_of(launch)),
        factor_(product_factor(args_)),
        q_start_(sequence.q_start - args_.window.key_offset) {
    if (args_.has_alibi != 0) {
      slopes_ = static_cast<const float*>(launch.bindings[SDPA_BUFFER_ALIBI].data) +
                args_.alibi_offset + b * args_.alibi_batch;
    }
    if (args_.mask_kind == SDPA_ELEMENT_NONE) return;
    element_size_ = args_.mask_kind == SDPA_ELEMENT_BOOL  ? 1
                    : args_.mask_kind == SDPA_ELEMENT_F32 ? 4
                                                          : 2;
    mask_ =
        static_cast<const char*>(launch.bindings[SDPA_BUFFER_MASK].data) +
        (args_.mask_offset + b * args_.mask_stride.batch + sequence.q_row * args_.mask_stride.row) *
            element_size_;
  }

  /// What products are multiplied by.
  float factor() const { return factor_; }
  bool is_on() const { return args_.softcap != 0 || slopes_ != nullptr || mask_ != nullptr; }
  bool has_mask() const { return mask_ != nullptr; }

  /// Whether the factors of head h are in range of f32; else its rows are attended in float64.
  bool is_in_range(sdpa_i64 h) const {
    if (factor_ - factor_ != 0) return false;
    if (args_.softcap != 0) {
      const float cap = args_.softcap * kLog2E;
      const bool is_tiny = __builtin_fabsf(factor_) < 0x1p-126f && args_.scale != 0;
      if (cap - cap != 0 || is_tiny) return false;
    }
    if (slopes_ == nullptr) return true;
    const float slope = slope_of(h);
    return slope - slope == 0;
  }

  /// One past the last of keys key..key + n_keys that the mask does not hide from row i of head h,
  /// or a little more, `least` if that is more. What hides is looked for in whole words, from the
  /// end on.
  int seen_end(sdpa_i64 h, sdpa_i64 i, sdpa_i64 key, int n_keys, int least) const {
    const char* entries = entries_at(h, i, key);
    const sdpa_i64 step = args_.mask_stride.key;
    const int per_word = 8 / element_size_;
    int end = n_keys;
    if (step == 0) return n_keys > least && hides(entries) ? least : n_keys;
    if (step == 1) {
      for (; end - least >= per_word; end -= per_word) {
        std::uint64_t word;
        __builtin_memcpy(&word, entries + (end - per_word) * element_size_, sizeof(word));
        if (word != hiding_word()) return end;
      }
    }
    while (end > least && hides(entries + (end - 1) * step * element_size_)) --end;
    return end;
  }

  /// Brings the entries of row i of head h and n_keys keys near.
  void bring_entries(sdpa_i64 h, sdpa_i64 i, sdpa_i64 key, sdpa_i64 n_keys) const {
    if (args_.mask_stride.key != 1) return;
    const char* from = entries_at(h, i, key);
    for (sdpa_i64 at = 0; at < n_keys * element_size_; at += 64) __builtin_prefetch(from + at);
  }

  /// Whether the mask hides all of a band's keys.
  bool hides_all(sdpa_i64 h, sdpa_i64 i, const SdpaBand& keys) const {
    if (mask_ == nullptr) return false;
    return seen_end(h, i, keys.begin, static_cast<int>(keys.end - keys.begin), 0) == 0;
  }

  /// Whether a row whose largest score in log2 units is `reference` has only biases that log2 units
  /// do not hold.
  bool is_swallowed(float reference) const { return mask_ != nullptr && reference < -0x1p127f; }

  /// Whether all of a swallowed row's keys have one bias, beside which no score counts: its weights
  /// are then equal. Else its biases differ by more than f32 can say here.
  bool has_one_bias(sdpa_i64 h, sdpa_i64 i, const SdpaBand& keys, float reference,
                    float& bias) const {
    if (reference != kLeastBias * kLog2E) return false;
    float memory[kMaskChunk];
    MaskEntries entries;
    entries.memory = memory;
    bias = -kInfinity;
    for (sdpa_i64 key = keys.begin; key < keys.end; key += kMaskChunk) {
      const int n = static_cast<int>(smaller<sdpa_i64>(kMaskChunk, keys.end - key));
      find_entries(entries_at(h, i, key), n, entries);
      for (int j = 0; j < n; ++j) {
        const float entry = entries.values[j];
        if (entry == -kInfinity || entry == bias) continue;
        if (bias != -kInfinity) return false;
        bias = entry;
      }
    }
    return true;
  }

  /// Products of row i of head h and keys key..key + n_keys, times factor(), become scores in log2
  /// units. Whole vectors are read and written, of the mask n_keys entries. -inf: hidden.
  void apply(sdpa_i64 h, sdpa_i64 i, sdpa_i64 key, int n_keys, MaskEntries& entries,
             float* scores) const {
    if (args_.softcap != 0) cap_scores(n_keys, scores);
    if (slopes_ != nullptr) subtract_distances(h, i, key, n_keys, scores);
    if (mask_ == nullptr) return;
    const char* from = entries_at(h, i, key);
    if (are_all_true(from, n_keys)) return;
    find_entries(from, n_keys, entries);
    if (args_.mask_kind == SDPA_ELEMENT_BOOL) {
      hide_keys(entries.values, n_keys, scores);
    } else {
      add_biases(entries.values, n_keys, scores);
    }
  }

 private:
  static constexpr int kMaskChunk = 256;

  /// Lower biases would be infinite in log2 units.
  static constexpr float kLeastBias = -0x1p127f;

  static float product_factor(const SdpaArgs& args) {
    if (args.softcap == 0) return args.scale * kLog2E;
    constexpr double kTwoLog2E = 2.88539008177792681;
    return static_cast<float>(static_cast<double>(args.scale) / static_cast<double>(args.softcap) *
                              kTwoLog2E);
  }

  float slope_of(sdpa_i64 h) const { return slopes_[h * args_.alibi_head] * kLog2E; }

  const char* entries_at(sdpa_i64 h, sdpa_i64 i, sdpa_i64 key) const {
    const SdpaMaskStrides& stride = args_.mask_stride;
    return mask_ + (h * stride.head + i * stride.row + key * stride.key) * element_size_;
  }

  /// Entries that all hide: False, or -inf.
  std::uint64_t hiding_word() const {
    if (args_.mask_kind == SDPA_ELEMENT_BOOL) return 0;
    if (args_.mask_kind == SDPA_ELEMENT_F32) return 0xff800000ff800000;
    return args_.mask_kind == SDPA_ELEMENT_F16 ? 0xfc00fc00fc00fc00 : 0xff80ff80ff80ff80;
  }

  bool hides(const char* entry) const {
    const std::uint64_t word = hiding_word();  // any of its entries
    return __builtin_memcmp(entry, &word, static_cast<std::size_t>(element_size_)) == 0;
  }

  bool are_all_true(const char* from, int n_keys) const {
    if (args_.mask_kind != SDPA_ELEMENT_BOOL) return false;
    if (args_.mask_stride.key == 0) return from[0] != 0;
    if (args_.mask_stride.key != 1) return false;
    int n_false = 0;
    for (int j = 0; j < n_keys; ++j) n_false += from[j] == 0 ? 1 : 0;
    return n_false == 0;
  }

  void cap_scores(int n_keys, float* scores) const {
    const Vec cap = splat(args_.softcap * kLog2E);
    for (int j = 0; j < n_keys; j += kLanes) {
      store(scores + j, cap * tanh_of_log2(load(scores + j)));
    }
  }

  static Vec absolute(Vec v) { return max(v, splat(0.0f) - v); }

  void subtract_distances(sdpa_i64 h, sdpa_i64 i, sdpa_i64 key, int n_keys, float* scores) const {
    constexpr sdpa_i64 kExact = 1 << 23;
    const Vec slope = splat(-slope_of(h));
    const sdpa_i64 stride = args_.window.key_stride;
    const sdpa_i64 first = q_start_ + i - key * stride;
    if (stride > kExact / 1024 || first > kExact || first < -kExact) {
      return subtract_far_distances(slope, first, n_keys, scores);
    }
    const Vec step = splat(static_cast<float>(stride * kLanes));
    float lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = static_cast<float>(first - lane * stride);
    }
    Vec distance = load(lanes);
    for (int j = 0; j < n_keys; j += kLanes) {
      store(scores + j, fma(absolute(distance), slope, load(scores + j)));
      distance = distance - step;
    }
  }

  /// Distances that f32 does not hold are rounded once.
  void subtract_far_distances(Vec slope, sdpa_i64 first, int n_keys, float* scores) const {
    for (int j = 0; j < n_keys; j += kLanes) {
      float lanes[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = static_cast<float>(first - (j + lane) * args_.window.key_stride);
      }
      store(scores + j, fma(absolute(load(lanes)), slope, load(scores + j)));
    }
  }

  static Vec load_entries(const float* values, int j, int n_keys) {
    return j + kLanes <= n_keys ? load(values + j) : load_first(values + j, n_keys - j);
  }

  static void hide_keys(const float* values, int n_keys, float* scores) {
    for (int j = 0; j < n_keys; j += kLanes) {
      const Vec entries = load_entries(values, j, n_keys);
      store(scores + j, keep_infinite(entries, load(scores + j)));
    }
  }

  static void add_biases(const float* values, int n_keys, float* scores) {
    for (int j = 0; j < n_keys; j += kLanes) {
      const Vec entries = load_entries(values, j, n_keys);
      const Vec biases = max(splat(kLeastBias), entries);  // in this order a NaN stays
      const Vec sum = fma(biases, splat(kLog2E), load(scores + j));
      store(scores + j, keep_infinite(entries, sum));
    }
  }

  /// What `from` holds as f32: where it lies, or in memory.
  void find_entries(const char* from, int n_keys, MaskEntries& entries) const {
    if (entries.from == from && entries.n_keys == n_keys) return;
    entries.from = from;
    entries.n_keys = n_keys;
    entries.values = entries.memory;
    switch (args_.mask_kind) {
      case SDPA_ELEMENT_F32:
        if (args_.mask_stride.key == 1) {
          entries.values = reinterpret_cast<const float*>(from);
        } else {
          widen_entries(reinterpret_cast<const float*>(from), n_keys, entries.memory);
        }
        return;
      case SDPA_ELEMENT_F16:
        return widen_entries(reinterpret_cast<const F16*>(from), n_keys, entries.memory);
      case SDPA_ELEMENT_BF16:
        return widen_entries(reinterpret_cast<const BF16*>(from), n_keys, entries.memory);
      default:
        return widen_truths(reinterpret_cast<const std::uint8_t*>(from), n_keys, entries.memory);
    }
  }

  template <typename M>
  void widen_entries(const M* from, int n_keys, float* to) const {
    const sdpa_i64 step = args_.mask_stride.key;
    for (int j = 0; j < n_keys; j += kLanes) {
      const int n = smaller(n_keys - j, kLanes);
      if (step == 1) {
        store(to + j, n == kLanes ? load(from + j) : load_first(from + j, n));
        continue;
      }
      M lanes[kLanes] = {};
      for (int lane = 0; lane < n; ++lane) lanes[lane] = from[(j + lane) * step];
      store(to + j, load(lanes));
    }
  }

  void widen_truths(const std::uint8_t* from, int n_keys, float* to) const {
    const sdpa_i64 step = args_.mask_stride.key;
    if (step == 1) {
      for (int j = 0; j < n_keys; ++j) to[j] = from[j] != 0 ? 0.0f : -kInfinity;
    } else {
      for (int j = 0; j < n_keys; ++j) to[j] = from[j * step] != 0 ? 0.0f : -kInfinity;
    }
  }

  const SdpaArgs& args_;
  const float factor_;
  const sdpa_i64 q_start_;         ///< position of query 0 less that of slot 0
  const float* slopes_ = nullptr;  ///< of the sequence's heads
  const char* mask_ = nullptr;     ///< of the sequence
  int element_size_ = 1;
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
