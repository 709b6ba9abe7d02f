// Sequences put together, and taken apart again.
#include "joint_batch.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/band.h"
#include "problems.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

constexpr std::uint8_t kPattern = 0x3c;

std::size_t element_of(const TensorLayout& layout, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<std::size_t>(layout.offset + b * layout.batch_stride + h * layout.head_stride +
                                  i * layout.row_stride);
}

void copy_elements(const Buffer& to, std::size_t at, const Buffer& from, std::size_t begin,
                   std::int64_t count) {
  const std::size_t size = dtype_size(to.dtype());
  std::memcpy(static_cast<char*>(to.data()) + at * size,
              static_cast<const char*>(from.data()) + begin * size,
              static_cast<std::size_t>(count) * size);
}

std::int64_t rounded_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// A layout of [batches, heads, rows, width], with room between rows, heads and batches.
TensorLayout layout_of(const JointLayout& how, std::int64_t heads, std::int64_t rows,
                       std::int64_t width) {
  const std::int64_t unit = how.aligned_to;
  TensorLayout layout;
  layout.offset = unit == 1 ? 3 : 0;
  const std::int64_t wide = rounded_up(width + 1, unit);
  layout.row_stride = how.heads_inside ? heads * wide : wide;
  layout.head_stride = how.heads_inside ? wide : rows * wide;
  layout.batch_stride = heads * rows * wide + unit;
  return layout;
}

Buffer poisoned(const Device& device, DType dtype, std::int64_t elements) {
  const Buffer buffer = device.empty({std::max<std::int64_t>(elements, 1)}, dtype);
  fill_bytes(buffer, 0xff);
  return buffer;
}

std::int64_t extent(const TensorLayout& layout, std::int64_t batches) {
  return layout.offset + std::max<std::int64_t>(batches, 1) * layout.batch_stride;
}

class Joiner {
 public:
  Joiner(std::mt19937& rng, const Device& device, const JointLayout& how,
         std::vector<LoneSequence>& sequences)
      : rng_(rng), device_(device), how_(how), sequences_(sequences) {
    p_ = sequences[0].problem;
    p_.batch = static_cast<std::int64_t>(sequences.size());
    p_.seq_len = p_.kv_capacity = 0;
    p_.query_len.reset();
    for (const LoneSequence& one : sequences) {
      p_.seq_len = std::max(p_.seq_len, one.problem.seq_len);
      p_.kv_capacity = std::max(p_.kv_capacity, one.problem.kv_capacity);
      p_.kv_lengths.push_back(one.problem.kv_len);
      p_.kv_starts.push_back(one.problem.kv_start);
      p_.query_lengths.push_back(one.problem.sequence_query_len(0));
    }
    const auto none = [](std::int64_t start) { return start == 0; };
    if (std::all_of(p_.kv_starts.begin(), p_.kv_starts.end(), none)) p_.kv_starts.clear();
  }

  JointBatch join() {
    place_queries();
    place_keys();
    join_numbers();
    return {p_, x_};
  }

 private:
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng_);
  }

  std::int64_t joint_batch_index(std::size_t b) const {
    return how_.packed_queries ? 0 : static_cast<std::int64_t>(b);
  }

  void place_queries() {
    std::int64_t total = 0;
    if (how_.packed_queries) {
      for (const std::int64_t rows : p_.query_lengths) {
        total += between(0, 2);
        p_.q_rows.push_back(total);
        total += rows;
      }
      p_.q_total = total + between(0, 2);
    }
    const std::int64_t rows = how_.packed_queries ? p_.q_total : p_.seq_len;
    const std::int64_t batches = how_.packed_queries ? 1 : p_.batch;
    p_.q = layout_of(how_, p_.n_heads, rows, p_.head_dim);
    p_.out = layout_of(how_, p_.n_heads, rows, p_.value_dim);
    x_.q = poisoned(device_, p_.dtype, extent(p_.q, batches));
    x_.out = poisoned(device_, p_.out_dtype(), extent(p_.out, batches));
    x_.lse = poisoned(device_, DType::f32, batches * p_.n_heads * rows);
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      const LoneSequence& one = sequences_[b];
      for (std::int64_t h = 0; h < p_.n_heads; ++h) {
        for (std::int64_t i = 0; i < one.problem.sequence_query_len(0); ++i) {
          copy_elements(x_.q, element_of(p_.q, joint_batch_index(b), h, first_row(p_, b) + i),
                        one.operands.q, element_of(one.problem.q, 0, h, i), p_.head_dim);
        }
      }
    }
  }

 public:
  static std::int64_t first_row(const SdpaProblem& p, std::size_t b) {
    return p.has_packed_queries() ? p.q_rows[b] : 0;
  }

 private:
  void place_keys() {
    switch (how_.keys) {
      case KeyPlaces::dense:
        make_keys(p_.batch, p_.kv_capacity);
        break;
      case KeyPlaces::packed:
        place_packed_keys();
        break;
      case KeyPlaces::paged:
        place_pages();
        break;
    }
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      for (std::int64_t j = 0; j < sequences_[b].problem.kv_len; ++j) copy_key(b, j);
    }
  }

  void place_packed_keys() {
    std::int64_t total = 0;
    for (const std::int64_t keys : p_.kv_lengths) {
      total += between(0, 2);
      p_.kv_rows.push_back(total);
      total += keys;
    }
    p_.kv_total = total + between(0, 2);
    make_keys(1, p_.kv_total);
  }

  void make_keys(std::int64_t batches, std::int64_t rows) {
    if (how_.one_tensor) {
      const std::int64_t both = p_.head_dim + p_.value_dim;
      p_.k = p_.v = layout_of(how_, p_.n_kv_heads, rows, both);
      p_.v.offset += p_.head_dim;
      x_.k = x_.v = poisoned(device_, p_.dtype, extent(p_.k, batches) + both);
      return;
    }
    p_.k = layout_of(how_, p_.n_kv_heads, rows, p_.head_dim);
    p_.v = layout_of(how_, p_.n_kv_heads, rows, p_.value_dim);
    x_.k = poisoned(device_, p_.dtype, extent(p_.k, batches));
    x_.v = poisoned(device_, p_.dtype, extent(p_.v, batches));
  }

  void share_first_keys() {
    const LoneSequence& first = sequences_[0];
    for (std::size_t b = 1; b < sequences_.size(); ++b) {
      const LoneSequence& one = sequences_[b];
      const std::int64_t keys = how_.shared_pages * how_.page_len;
      for (std::int64_t j = 0; j < std::min({keys, one.problem.kv_len, first.problem.kv_len});
           ++j) {
        for (std::int64_t h = 0; h < p_.n_kv_heads; ++h) {
          copy_elements(one.operands.k, element_of(one.problem.k, 0, h, j), first.operands.k,
                        element_of(first.problem.k, 0, h, j), p_.head_dim);
          copy_elements(one.operands.v, element_of(one.problem.v, 0, h, j), first.operands.v,
                        element_of(first.problem.v, 0, h, j), p_.value_dim);
        }
      }
    }
  }

  std::int64_t pages_of(std::size_t b) const {
    return rounded_up(p_.kv_lengths[b], how_.page_len) / how_.page_len;
  }

  /// Page `n` of sequence b may be that of the first sequence.
  bool is_shared(std::size_t b, std::int64_t n) const {
    return b > 0 && n < how_.shared_pages && (n + 1) * how_.page_len <= p_.kv_lengths[0];
  }

  void place_pages() {
    share_first_keys();
    std::int64_t needed = 0;
    std::int64_t most = 0;
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      needed += pages_of(b);
      most = std::max(most, pages_of(b));
    }
    PageTable pages;
    pages.dtype = how_.table_dtype;
    pages.page_len = how_.page_len;
    pages.n_pages = needed + 3;
    std::vector<std::int64_t> free(static_cast<std::size_t>(pages.n_pages));
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), rng_);
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      std::vector<std::int64_t>& own = pages_.emplace_back();
      for (std::int64_t n = 0; n < pages_of(b); ++n) {
        if (is_shared(b, n)) {
          own.push_back(pages_[0][static_cast<std::size_t>(n)]);
          continue;
        }
        own.push_back(free.back());
        free.pop_back();
      }
    }
    pages.offset = 1;
    pages.entry_stride = between(1, 2);
    if (how_.table_of_starts) {
      for (std::size_t b = 0; b < sequences_.size(); ++b) {
        pages.starts.push_back(pages.n_entries);
        pages.n_entries += pages_of(b) + between(0, 1);
      }
      pages.n_entries += 1;
    } else {
      pages.n_entries = most + between(0, 2);
      pages.sequence_stride = pages.n_entries * pages.entry_stride + between(0, 3);
    }
    p_.pages = pages;
    p_.kv_capacity = std::max<std::int64_t>(most * how_.page_len, p_.kv_capacity);
    make_keys(pages.n_pages, how_.page_len);
    write_table();
  }

  void write_table() {
    const PageTable& pages = *p_.pages;
    const std::int64_t entries = (p_.batch + 1) * (pages.sequence_stride + 1) +
                                 pages.n_entries * pages.entry_stride + pages.offset + 1;
    x_.block_table = device_.empty({entries}, pages.dtype);
    for (std::int64_t at = 0; at < entries; ++at) {
      constexpr std::int64_t kWild[] = {-1, std::numeric_limits<std::int32_t>::max(),
                                        std::numeric_limits<std::int32_t>::min(), -7};
      put_entry(at, kWild[static_cast<std::size_t>(between(0, 3))]);
    }
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      const SdpaBand band = visible_band(sequences_[b].problem, 0);
      if (band.begin >= band.end) continue;
      const std::int64_t first = first_entry(pages, static_cast<std::int64_t>(b));
      for (std::int64_t n = band.begin / pages.page_len; n <= (band.end - 1) / pages.page_len;
           ++n) {
        put_entry(first + n * pages.entry_stride, pages_[b][static_cast<std::size_t>(n)]);
      }
    }
  }

  void put_entry(std::int64_t at, std::int64_t value) {
    const auto index = static_cast<std::size_t>(at);
    if (p_.pages->dtype == DType::i64) {
      x_.block_table.host<std::int64_t>()[index] = value;
    } else {
      x_.block_table.host<std::int32_t>()[index] = static_cast<std::int32_t>(value);
    }
  }

  void copy_key(std::size_t b, std::int64_t j) {
    const LoneSequence& one = sequences_[b];
    std::int64_t batch = static_cast<std::int64_t>(b);
    std::int64_t row = j;
    if (how_.keys == KeyPlaces::packed) {
      batch = 0;
      row += p_.kv_rows[b];
    } else if (how_.keys == KeyPlaces::paged) {
      batch = pages_[b][static_cast<std::size_t>(j / how_.page_len)];
      row = j % how_.page_len;
    }
    for (std::int64_t h = 0; h < p_.n_kv_heads; ++h) {
      copy_elements(x_.k, element_of(p_.k, batch, h, row), one.operands.k,
                    element_of(one.problem.k, 0, h, j), p_.head_dim);
      copy_elements(x_.v, element_of(p_.v, batch, h, row), one.operands.v,
                    element_of(one.problem.v, 0, h, j), p_.value_dim);
    }
  }

  void join_numbers() {
    if (p_.mask.has_value()) join_masks();
    if (p_.sinks.has_value()) x_.sinks = sequences_[0].operands.sinks;
    if (!p_.alibi_slopes.has_value()) return;
    p_.alibi_slopes = HeadLayout{DType::f32, 0, p_.n_heads, 1};
    x_.alibi_slopes = device_.empty({p_.batch * p_.n_heads}, DType::f32);
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      copy_elements(x_.alibi_slopes, b * static_cast<std::size_t>(p_.n_heads),
                    sequences_[b].operands.alibi_slopes, 0, p_.n_heads);
    }
  }

  void join_masks() {
    const std::int64_t rows = how_.packed_queries ? p_.q_total : p_.seq_len;
    const std::int64_t batches = how_.packed_queries ? 1 : p_.batch;
    const DType dtype = p_.mask->dtype;
    const std::int64_t width = p_.kv_capacity;
    // A batch stride of packed rows means nothing.
    p_.mask = MaskLayout{
        dtype, 0, how_.packed_queries ? 12345 : p_.n_heads * rows * width, rows * width, width, 1};
    x_.mask = poisoned(device_, dtype, batches * p_.n_heads * rows * width);
    if (dtype == DType::u8) fill_bytes(x_.mask, 1);
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      const LoneSequence& one = sequences_[b];
      const TensorLayout to{0, p_.mask->batch_stride, p_.mask->head_stride, width};
      const TensorLayout from{0, 0, one.problem.mask->head_stride, one.problem.mask->row_stride};
      for (std::int64_t h = 0; h < p_.n_heads; ++h) {
        for (std::int64_t i = 0; i < one.problem.sequence_query_len(0); ++i) {
          copy_elements(x_.mask, element_of(to, joint_batch_index(b), h, first_row(p_, b) + i),
                        one.operands.mask, element_of(from, 0, h, i), one.problem.kv_capacity);
        }
      }
    }
  }

  std::mt19937& rng_;
  const Device& device_;
  const JointLayout& how_;
  std::vector<LoneSequence>& sequences_;
  SdpaProblem p_;
  SdpaOperands x_;
  std::vector<std::vector<std::int64_t>> pages_;
};

bool same_elements(const Buffer& a, std::size_t at, const Buffer& b, std::size_t begin,
                   std::int64_t count) {
  const std::size_t size = dtype_size(a.dtype());
  return std::memcmp(static_cast<const char*>(a.data()) + at * size,
                     static_cast<const char*>(b.data()) + begin * size,
                     static_cast<std::size_t>(count) * size) == 0;
}

/// Takes a row out of what is looked at for writes past the rows: it has been compared.
void blot_out(const Buffer& buffer, std::size_t at, std::int64_t count) {
  const std::size_t size = dtype_size(buffer.dtype());
  std::memset(static_cast<char*>(buffer.data()) + at * size, kPattern,
              static_cast<std::size_t>(count) * size);
}

bool is_pattern(const Buffer& buffer) {
  const std::vector<std::uint8_t> bytes = bytes_of(buffer);
  return std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t b) { return b == kPattern; });
}

/// A row out of use, which a problem that is not packed has to write.
bool is_empty_row(const JointBatch& joint, std::size_t out, std::size_t lse, std::int64_t h) {
  const SdpaProblem& p = joint.problem;
  for (std::int64_t d = 0; d < p.value_dim; ++d) {
    if (get_element(joint.operands.out, out + static_cast<std::size_t>(d)) != 0) return false;
  }
  const float nothing = p.sinks.has_value()
                            ? get_element(joint.operands.sinks, static_cast<std::size_t>(h))
                            : -std::numeric_limits<float>::infinity();
  return joint.operands.lse.host<float>()[lse] == nothing;
}

}  // namespace

std::vector<LoneSequence> lone_sequences(std::mt19937& rng, const Device& device,
                                         const SdpaProblem& shared,
                                         const std::vector<SequenceLengths>& lengths) {
  std::vector<LoneSequence> sequences;
  for (const SequenceLengths& one : lengths) {
    SdpaProblem p = shared;
    p.batch = 1;
    p.seq_len = std::max<std::int64_t>(one.rows, 1);
    if (one.rows == 0) p.query_len = 0;
    p.kv_len = one.keys;
    p.kv_capacity = std::max<std::int64_t>(one.keys, 1);
    p.kv_start = std::min(one.kv_start, one.keys);
    p.return_lse = true;
    p.set_packed_layouts();
    if (p.mask.has_value()) {
      const std::int64_t rows = p.seq_len * p.kv_capacity;
      p.mask = MaskLayout{p.mask->dtype, 0, p.n_heads * rows, rows, p.kv_capacity, 1};
    }
    if (p.alibi_slopes.has_value()) p.alibi_slopes = HeadLayout{DType::f32, 0, p.n_heads, 1};
    if (p.sinks.has_value()) p.sinks = HeadLayout{p.sinks->dtype, 0, 0, 1};
    sequences.push_back({p, random_operands(rng, device, p)});
    sequences.back().operands.sinks = sequences[0].operands.sinks;
  }
  return sequences;
}

JointBatch joint_batch(std::mt19937& rng, const Device& device, const JointLayout& layout,
                       std::vector<LoneSequence>& sequences) {
  return Joiner(rng, device, layout, sequences).join();
}

void fill_outputs(const SdpaOperands& operands) {
  fill_bytes(operands.out, kPattern);
  if (operands.lse.byte_len() > 0) fill_bytes(operands.lse, kPattern);
}

bool has_lone_bits(const JointBatch& joint, const std::vector<LoneSequence>& sequences) {
  const SdpaProblem& p = joint.problem;
  const SdpaOperands& x = joint.operands;
  const bool is_packed = p.has_packed_queries();
  bool right = true;
  for (std::size_t b = 0; b < sequences.size(); ++b) {
    const LoneSequence& one = sequences[b];
    const std::int64_t rows = one.problem.sequence_query_len(0);
    const std::int64_t batch = is_packed ? 0 : static_cast<std::int64_t>(b);
    const std::int64_t first = Joiner::first_row(p, b);
    const std::int64_t lse_rows = is_packed ? p.q_total : p.seq_len;
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      for (std::int64_t i = 0; i < (is_packed ? rows : p.seq_len); ++i) {
        const std::size_t out = element_of(p.out, batch, h, first + i);
        const auto lse = static_cast<std::size_t>((batch * p.n_heads + h) * lse_rows + first + i);
        if (i < rows) {
          const auto lone_lse = static_cast<std::size_t>(h * one.problem.seq_len + i);
          right = right &&
                  same_elements(x.out, out, one.operands.out, element_of(one.problem.out, 0, h, i),
                                p.value_dim) &&
                  same_elements(x.lse, lse, one.operands.lse, lone_lse, 1);
        } else {
          right = right && is_empty_row(joint, out, lse, h);
        }
        blot_out(x.out, out, p.value_dim);
        blot_out(x.lse, lse, 1);
      }
    }
  }
  return right && is_pattern(x.out) && is_pattern(x.lse);
}

}  // namespace metal_sdpa::test
