// Random attention problems.
#include "problems.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

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

/// Elements from the buffer's start to the layout's last.
std::int64_t elements_needed(const TensorLayout& layout, std::int64_t batch, std::int64_t heads,
                             std::int64_t rows, std::int64_t width) {
  const auto reach = [](std::int64_t count, std::int64_t stride) {
    return stride > 0 ? (count - 1) * stride : 0;
  };
  return layout.offset + reach(batch, layout.batch_stride) + reach(heads, layout.head_stride) +
         reach(rows, layout.row_stride) + width;
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

SdpaOperands poisoned_operands(const Device& device, const SdpaProblem& p) {
  SdpaOperands x;
  x.q = poisoned(device, p.dtype, elements_needed(p.q, p.batch, p.n_heads, p.seq_len, p.head_dim));
  x.k = poisoned(device, p.dtype,
                 elements_needed(p.k, p.batch, p.n_kv_heads, p.kv_capacity, p.head_dim));
  x.v = poisoned(device, p.dtype,
                 elements_needed(p.v, p.batch, p.n_kv_heads, p.kv_capacity, p.value_dim));
  x.out =
      poisoned(device, p.dtype, elements_needed(p.out, p.batch, p.n_heads, p.seq_len, p.value_dim));
  if (p.return_lse) x.lse = poisoned(device, DType::f32, p.batch * p.n_heads * p.seq_len);
  return x;
}

SdpaOperands random_operands(std::mt19937& rng, const Device& device, const SdpaProblem& p) {
  Dice dice(rng);
  const auto family = static_cast<Family>(dice.between(0, static_cast<int>(Family::count) - 1));
  Filler fill(rng, family, p.scale);
  const SdpaOperands x = poisoned_operands(device, p);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_kv_heads; ++h) {
      for (std::int64_t j = 0; j < p.sequence_kv_len(b); ++j) {
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
          set_element(x.q, q + e, copies ? get_element(x.k, k + e) * 1.5f : fill.q());
        }
      }
    }
  }
  return x;
}

}  // namespace metal_sdpa::test
