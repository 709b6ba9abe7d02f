// Random attention problems.
#include "problems.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "oracle.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

class Dice {
 public:
  explicit Dice(std::mt19937& rng) : rng_(rng) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng_);
  }
  bool one_in(int n) { return between(1, n) == 1; }
  template <std::size_t N>
  std::int64_t pick(const std::array<std::int64_t, N>& items) {
    return items[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(N) - 1))];
  }

 private:
  std::mt19937& rng_;
};

/// Around the edges of tiles: 8, 16, 32, 64, 128.
std::int64_t edge_length(Dice& dice, std::int64_t most) {
  static constexpr std::array<std::int64_t, 18> kEdges{1,  2,  3,  7,  8,  9,  15, 16,  17,
                                                       31, 32, 33, 63, 64, 65, 97, 128, 129};
  const std::int64_t length = dice.one_in(3) ? dice.between(1, most) : dice.pick(kEdges);
  return std::min(length, most);
}

std::int64_t edge_dim(Dice& dice, std::int64_t most) {
  static constexpr std::array<std::int64_t, 14> kDims{1,  4,  8,  16, 32,  33,  40,
                                                      64, 72, 80, 96, 128, 192, 256};
  const std::int64_t dim = dice.one_in(4) ? dice.between(1, most) : dice.pick(kDims);
  return std::min(dim, most);
}

struct Axis {
  std::int64_t count;
  std::int64_t* stride;
};

/// Axes in a random order, each with some padding, some reversed; returns the layout.
TensorLayout random_layout(Dice& dice, std::int64_t batch, std::int64_t heads, std::int64_t rows,
                           std::int64_t width, bool may_broadcast) {
  TensorLayout layout;
  std::array<Axis, 3> axes{Axis{batch, &layout.batch_stride}, Axis{heads, &layout.head_stride},
                           Axis{rows, &layout.row_stride}};
  for (std::size_t i = 2; i > 0; --i) {
    std::swap(axes[i],
              axes[static_cast<std::size_t>(dice.between(0, static_cast<std::int64_t>(i)))]);
  }
  layout.offset = dice.between(0, 3);
  std::int64_t reach = width;
  for (const Axis& axis : axes) {
    const std::int64_t step = reach + (dice.one_in(2) ? 0 : dice.between(0, 5));
    if (may_broadcast && dice.one_in(12)) continue;  // stride 0
    const bool reversed = dice.one_in(6);
    *axis.stride = reversed ? -step : step;
    if (reversed) layout.offset += (axis.count - 1) * step;
    reach = (axis.count - 1) * step + reach;
  }
  return layout;
}

std::size_t element_of(const TensorLayout& layout, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<std::size_t>(layout.offset + b * layout.batch_stride + h * layout.head_stride +
                                  i * layout.row_stride);
}

/// Axes of a mask in a random order, each with some padding, some reversed or broadcast.
MaskLayout random_mask_layout(Dice& dice, const SdpaProblem& p, DType dtype) {
  MaskLayout mask;
  mask.dtype = dtype;
  mask.offset = dice.between(0, 3);
  std::array<Axis, 4> axes{Axis{p.kv_capacity, &mask.key_stride}, Axis{p.seq_len, &mask.row_stride},
                           Axis{p.n_heads, &mask.head_stride}, Axis{p.batch, &mask.batch_stride}};
  // Mostly as masks are, keys first.
  const std::size_t fixed = dice.one_in(3) ? 0 : 1;
  for (std::size_t i = 3; i > fixed; --i) {
    const auto other = dice.between(static_cast<std::int64_t>(fixed), static_cast<std::int64_t>(i));
    std::swap(axes[i], axes[static_cast<std::size_t>(other)]);
  }
  std::int64_t step = 1;
  for (const Axis& axis : axes) {
    if (dice.one_in(3)) step += dice.between(1, 5);
    const bool is_head_or_batch =
        axis.stride == &mask.head_stride || axis.stride == &mask.batch_stride;
    *axis.stride = 0;
    if (dice.one_in(is_head_or_batch ? 2 : 12)) continue;
    const bool reversed = dice.one_in(6);
    *axis.stride = reversed ? -step : step;
    if (reversed) mask.offset += (axis.count - 1) * step;
    step *= std::max<std::int64_t>(axis.count, 1);
  }
  return mask;
}

HeadLayout random_head_layout(Dice& dice, const SdpaProblem& p, bool has_batch, DType dtype) {
  HeadLayout layout{dtype, dice.between(0, 3), 0, dice.between(1, 3)};
  if (dice.one_in(8)) layout.head_stride = 0;
  if (has_batch && dice.one_in(2)) layout.batch_stride = (p.n_heads + 1) * 3;
  return layout;
}

/// Elements from the buffer's start to the layout's last.
std::int64_t elements_needed(const TensorLayout& layout, std::int64_t batch, std::int64_t heads,
                             std::int64_t rows, std::int64_t width) {
  const auto reach = [](std::int64_t count, std::int64_t stride) {
    return stride > 0 ? (count - 1) * stride : 0;
  };
  return layout.offset + reach(batch, layout.batch_stride) + reach(heads, layout.head_stride) +
         reach(rows, layout.row_stride) + width;
}

std::int64_t mask_elements(const SdpaProblem& p, const MaskLayout& mask) {
  const auto reach = [](std::int64_t count, std::int64_t stride) {
    return stride > 0 ? (count - 1) * stride : 0;
  };
  return mask.offset + reach(p.batch, mask.batch_stride) + reach(p.n_heads, mask.head_stride) +
         reach(p.seq_len, mask.row_stride) + reach(p.kv_capacity, mask.key_stride) + 1;
}

std::int64_t head_elements(const SdpaProblem& p, const HeadLayout& layout) {
  return layout.offset + (p.batch - 1) * layout.batch_stride +
         (p.n_heads - 1) * layout.head_stride + 1;
}

Buffer poisoned(const Device& device, DType dtype, std::int64_t elements) {
  const Buffer buffer = device.empty({elements}, dtype);
  fill_bytes(buffer, 0xff);  // a NaN in every floating-point format
  return buffer;
}

enum class Family {
  noise,
  peaked,
  cancelling,
  query_near_key,
  constant_values,
  equal_scores,
  count
};

class Filler {
 public:
  Filler(std::mt19937& rng, Family family, float scale)
      : rng_(rng), family_(family), scale_(std::max(std::fabs(scale), 1e-3f)) {}

  float q() {
    switch (family_) {
      case Family::equal_scores:
        return 0;
      case Family::peaked:
        return normal() * 4;
      case Family::cancelling:
        return (normal() > 0 ? 8.0f : -8.0f) + normal();
      default:
        return normal();
    }
  }
  float k() {
    return family_ == Family::cancelling ? q() : normal() * (family_ == Family::peaked ? 2 : 1);
  }
  float v() {
    if (family_ == Family::constant_values || family_ == Family::equal_scores) return 0.1f;
    return normal() + 1;
  }
  bool copies_keys() const { return family_ == Family::query_near_key; }

 private:
  float normal() { return std::normal_distribution<float>()(rng_); }
  std::mt19937& rng_;
  Family family_;
  float scale_;
};

enum class MaskFamily { all, most, few, blocks, diagonal, empty_rows, lowest, zeros, count };

constexpr std::int64_t kMaskBlock = 24;

/// Whether a mask of the family lets row i see key j.
bool lets_see(Dice& dice, MaskFamily family, std::int64_t i, std::int64_t j) {
  switch (family) {
    case MaskFamily::most:
      return !dice.one_in(8);
    case MaskFamily::few:
      return dice.one_in(8);
    case MaskFamily::blocks:
      return i / kMaskBlock == j / kMaskBlock;
    case MaskFamily::diagonal:
      return i == j;
    case MaskFamily::empty_rows:
      return i % 3 != 0;
    default:
      return true;
  }
}

/// The lowest finite number of a dtype.
float lowest(DType dtype) {
  if (dtype == DType::f16) return -65504;
  return dtype == DType::bf16 ? -0x1.fep127f : std::numeric_limits<float>::lowest();
}

float random_bias(Dice& dice, std::mt19937& rng, MaskFamily family, DType dtype, bool sees) {
  if (family == MaskFamily::zeros) return 0;
  if (family == MaskFamily::lowest && dice.one_in(2)) return lowest(dtype);
  if (!sees) return dice.one_in(4) ? lowest(dtype) : -std::numeric_limits<float>::infinity();
  return std::normal_distribution<float>()(rng) * 2;
}

/// Entries whose key is in reach of their row.
void fill_mask(std::mt19937& rng, const SdpaProblem& p, const Buffer& buffer) {
  Dice dice(rng);
  const auto family =
      static_cast<MaskFamily>(dice.between(0, static_cast<int>(MaskFamily::count) - 1));
  const MaskLayout& mask = *p.mask;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      for (std::int64_t i = 0; i < p.seq_len; ++i) {
        for (std::int64_t j = 0; j < p.kv_capacity; ++j) {
          if (!is_in_reach(p, b, i, j)) continue;
          const auto element =
              static_cast<std::size_t>(mask.offset + b * mask.batch_stride + h * mask.head_stride +
                                       i * mask.row_stride + j * mask.key_stride);
          const bool sees = lets_see(dice, family, i, j);
          if (mask.dtype == DType::u8) {
            const auto truth = static_cast<std::uint8_t>(dice.one_in(4) ? 0x80 : 1);
            buffer.host<std::uint8_t>()[element] = sees ? truth : 0;
          } else {
            set_element(buffer, element, random_bias(dice, rng, family, mask.dtype, sees));
          }
        }
      }
    }
  }
}

void fill_head_numbers(std::mt19937& rng, const SdpaProblem& p, const HeadLayout& layout,
                       const Buffer& buffer, float spread) {
  std::normal_distribution<float> normal;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      const std::int64_t element = layout.offset + b * layout.batch_stride + h * layout.head_stride;
      set_element(buffer, static_cast<std::size_t>(element), normal(rng) * spread);
    }
  }
}

/// Whether rows may have hidden keys before visible ones, or see none.
bool has_begin(const SdpaProblem& p) {
  return p.window_left >= 0 || p.query_len.has_value() || !p.query_lengths.empty();
}

/// Whether any row that reads KV head h sees slot j.
bool is_seen(const SdpaProblem& p, const SdpaOperands& x, std::int64_t b, std::int64_t h,
             std::int64_t j) {
  const std::int64_t group = p.n_heads / p.n_kv_heads;
  for (std::int64_t head = h * group; head < (h + 1) * group; ++head) {
    for (std::int64_t i = 0; i < p.seq_len; ++i) {
      if (is_visible(p, x, b, head, i, j)) return true;
    }
  }
  return false;
}

}  // namespace

ProblemLimits limits_for(const Device& device) {
  if (device.kind() == DeviceKind::cpu) return {};
  return {std::min<std::int64_t>(device.limits().max_head_dim, 160), 80, 60000};
}

SdpaProblem random_problem(std::mt19937& rng, const ProblemLimits& limits) {
  Dice dice(rng);
  SdpaProblem p;
  p.dtype = std::array<DType, 3>{DType::f32, DType::f16,
                                 DType::bf16}[static_cast<std::size_t>(dice.between(0, 2))];
  p.head_dim = edge_dim(dice, limits.head_dim);
  p.value_dim = dice.one_in(3) ? edge_dim(dice, limits.head_dim) : p.head_dim;
  p.kv_capacity = edge_length(dice, limits.kv_capacity);
  const std::int64_t key_cost = p.kv_capacity * (p.head_dim + p.value_dim);
  const std::int64_t rows = std::clamp<std::int64_t>(limits.work / key_cost, 1, 300);
  p.seq_len = dice.one_in(3) ? 1 : edge_length(dice, rows);
  const std::int64_t heads = std::clamp<std::int64_t>(rows / p.seq_len, 1, 8);
  p.n_kv_heads = dice.between(1, std::max<std::int64_t>(1, heads / 2));
  p.n_heads = p.n_kv_heads * dice.between(1, std::max<std::int64_t>(1, heads / p.n_kv_heads));
  p.batch = dice.between(1, std::clamp<std::int64_t>(rows / (p.seq_len * p.n_heads), 1, 4));
  p.causal = dice.one_in(2);
  p.return_lse = dice.one_in(2);
  p.scale = dice.one_in(8) ? (dice.one_in(2) ? 0.0f : -0.2f)
                           : 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  p.kv_len = dice.one_in(10) ? 0 : dice.between(1, p.kv_capacity);
  const auto random_start = [&] { return dice.between(-p.seq_len - 2, p.kv_capacity + 2); };
  if (dice.one_in(2)) p.q_start = random_start();
  if (dice.one_in(3)) {
    for (std::int64_t b = 0; b < p.batch; ++b) {
      p.kv_lengths.push_back(dice.between(0, p.kv_capacity));
    }
  }
  if (dice.one_in(3)) {
    for (std::int64_t b = 0; b < p.batch; ++b) p.q_starts.push_back(random_start());
  }
  p.q = random_layout(dice, p.batch, p.n_heads, p.seq_len, p.head_dim, true);
  p.k = random_layout(dice, p.batch, p.n_kv_heads, p.kv_capacity, p.head_dim, false);
  p.v = random_layout(dice, p.batch, p.n_kv_heads, p.kv_capacity, p.value_dim, false);
  p.out = random_layout(dice, p.batch, p.n_heads, p.seq_len, p.value_dim, false);
  return p;
}

Features random_features(std::mt19937& rng, int n) {
  Dice dice(rng);
  Features features;
  for (bool* feature :
       {&features.window, &features.kv_starts, &features.query_lengths, &features.key_positions,
        &features.boolean_mask, &features.additive_mask, &features.softcap, &features.alibi_slopes,
        &features.sinks, &features.out_f32}) {
    *feature = dice.one_in(n);
  }
  return features;
}

void add_features(std::mt19937& rng, const Features& features, SdpaProblem& p) {
  Dice dice(rng);
  const auto per_sequence = [&](std::int64_t most, std::vector<std::int64_t>& each) {
    for (std::int64_t b = 0; b < p.batch; ++b) each.push_back(dice.between(0, most));
  };
  if (features.window) {
    if (!dice.one_in(8)) p.window_left = edge_length(dice, p.kv_capacity + 2) - 1;
    if (dice.one_in(2)) p.window_right = edge_length(dice, p.kv_capacity + 2) - 1;
  }
  if (features.kv_starts) {
    p.kv_start = dice.one_in(8) ? p.kv_capacity : edge_length(dice, p.kv_capacity) - 1;
    if (dice.one_in(2)) per_sequence(p.kv_capacity, p.kv_starts);
  }
  if (features.query_lengths) {
    p.query_len = dice.between(0, p.seq_len);
    if (dice.one_in(2)) per_sequence(p.seq_len, p.query_lengths);
  }
  if (features.key_positions) {
    p.key_stride = dice.between(1, 4);
    p.key_offset = dice.between(-3, p.key_stride + 2);
    p.q_start = dice.between(-2, p.kv_capacity * p.key_stride);
  }
  if (features.boolean_mask) {
    p.mask = random_mask_layout(dice, p, DType::u8);
  } else if (features.additive_mask) {
    constexpr std::array<DType, 3> kDTypes{DType::f32, DType::f16, DType::bf16};
    p.mask = random_mask_layout(dice, p, kDTypes[static_cast<std::size_t>(dice.between(0, 2))]);
  }
  if (features.softcap) p.softcap = dice.one_in(2) ? 2.5f : 50.0f;
  if (features.alibi_slopes) p.alibi_slopes = random_head_layout(dice, p, true, DType::f32);
  if (features.sinks) {
    p.sinks = random_head_layout(dice, p, false, dice.one_in(2) ? DType::f32 : p.dtype);
  }
  p.out_f32 = features.out_f32;
}

SdpaOperands poisoned_operands(const Device& device, const SdpaProblem& p) {
  SdpaOperands x;
  x.q = poisoned(device, p.dtype, elements_needed(p.q, p.batch, p.n_heads, p.seq_len, p.head_dim));
  x.k = poisoned(device, p.dtype,
                 elements_needed(p.k, p.batch, p.n_kv_heads, p.kv_capacity, p.head_dim));
  x.v = poisoned(device, p.dtype,
                 elements_needed(p.v, p.batch, p.n_kv_heads, p.kv_capacity, p.value_dim));
  x.out = poisoned(device, p.out_dtype(),
                   elements_needed(p.out, p.batch, p.n_heads, p.seq_len, p.value_dim));
  if (p.return_lse) x.lse = poisoned(device, DType::f32, p.batch * p.n_heads * p.seq_len);
  if (p.mask.has_value()) x.mask = poisoned(device, p.mask->dtype, mask_elements(p, *p.mask));
  if (p.sinks.has_value()) x.sinks = poisoned(device, p.sinks->dtype, head_elements(p, *p.sinks));
  if (p.alibi_slopes.has_value()) {
    x.alibi_slopes = poisoned(device, DType::f32, head_elements(p, *p.alibi_slopes));
  }
  return x;
}

SdpaOperands random_operands(std::mt19937& rng, const Device& device, const SdpaProblem& p) {
  Dice dice(rng);
  const auto family = static_cast<Family>(dice.between(0, static_cast<int>(Family::count) - 1));
  Filler fill(rng, family, p.scale);
  const SdpaOperands x = poisoned_operands(device, p);
  if (p.mask.has_value()) fill_mask(rng, p, x.mask);
  if (p.sinks.has_value()) fill_head_numbers(rng, p, *p.sinks, x.sinks, 3);
  if (p.alibi_slopes.has_value()) {
    fill_head_numbers(rng, p, *p.alibi_slopes, x.alibi_slopes, 0.1f);
  }
  const bool is_poisoned = (p.mask.has_value() || has_begin(p)) && dice.one_in(2);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_kv_heads; ++h) {
      for (std::int64_t j = p.sequence_kv_start(b); j < p.sequence_kv_len(b); ++j) {
        if (is_poisoned && !is_seen(p, x, b, h, j)) continue;
        const std::size_t k = element_of(p.k, b, h, j);
        const std::size_t v = element_of(p.v, b, h, j);
        for (std::int64_t d = 0; d < p.head_dim; ++d) {
          set_element(x.k, k + static_cast<std::size_t>(d), fill.k());
        }
        for (std::int64_t d = 0; d < p.value_dim; ++d) {
          set_element(x.v, v + static_cast<std::size_t>(d), fill.v());
        }
      }
    }
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      for (std::int64_t i = 0; i < p.seq_len; ++i) {
        const std::size_t q = element_of(p.q, b, h, i);
        const bool copies = fill.copies_keys() && p.sequence_kv_len(b) > 0;
        const std::size_t k = copies ? element_of(p.k, b, h / (p.n_heads / p.n_kv_heads),
                                                  dice.between(0, p.sequence_kv_len(b) - 1))
                                     : 0;
        for (std::int64_t d = 0; d < p.head_dim; ++d) {
          const auto e = static_cast<std::size_t>(d);
          const float copied = copies ? get_element(x.k, k + e) * 1.5f : NAN;  // of a poisoned slot
          set_element(x.q, q + e, std::isnan(copied) ? fill.q() : copied);
        }
      }
    }
  }
  return x;
}

}  // namespace metal_sdpa::test
