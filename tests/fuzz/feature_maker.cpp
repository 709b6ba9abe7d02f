// Windows around the lengths, masks of any layout and type, numbers a head.
#include "feature_maker.h"

#include <limits>

namespace metal_sdpa::fuzz {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

std::int64_t side(ByteReader& bytes) {
  constexpr std::int64_t kEdges[] = {0, 1, 15, 16, 63, 64, 127, 255, 256, kMost};
  return bytes.one_in(2) ? bytes.pick(kEdges) : bytes.between(0, 300);
}

void make_visibility(ByteReader& bytes, SdpaProblem& p) {
  if (bytes.one_in(3)) p.window_left = side(bytes);
  if (bytes.one_in(4)) p.window_right = side(bytes);
  if (bytes.one_in(4)) p.kv_start = bytes.between(0, p.kv_capacity);
  if (bytes.one_in(6)) {
    for (std::int64_t b = 0; b < p.batch; ++b) {
      p.kv_starts.push_back(bytes.between(0, p.kv_capacity));
    }
  }
  if (bytes.one_in(5)) p.query_len = bytes.between(0, p.seq_len);
  if (bytes.one_in(6)) {
    for (std::int64_t b = 0; b < p.batch; ++b) {
      p.query_lengths.push_back(bytes.between(0, p.seq_len));
    }
  }
  if (!bytes.one_in(6)) return;
  p.key_offset = bytes.between(-300, 300);
  p.key_stride = bytes.between(1, 5);
  if (!p.q_start.has_value()) p.q_start = bytes.between(-200, 1500);
}

/// Axes of stride 0, of a whole mask's stride, or turned round.
MaskLayout make_mask(ByteReader& bytes, const SdpaProblem& p, BlockShape& block) {
  constexpr DType kDTypes[] = {DType::u8, DType::u8, DType::f32, DType::f16, DType::bf16};
  MaskLayout mask;
  mask.dtype = bytes.pick(kDTypes);
  std::int64_t span = 1 + (bytes.one_in(4) ? bytes.between(1, 3) : 0);
  std::int64_t high = 0;
  const auto axis = [&](std::int64_t count) {
    if (bytes.one_in(4)) return std::int64_t{0};
    const std::int64_t stride = span;
    span *= count;
    high += stride * (count - 1);
    if (!bytes.one_in(6)) return stride;
    mask.offset += stride * (count - 1);
    return -stride;
  };
  mask.key_stride = axis(p.kv_capacity);
  mask.row_stride = axis(p.seq_len);
  mask.head_stride = axis(p.n_heads);
  mask.batch_stride = axis(p.batch);
  constexpr int kLeads[] = {0, 0, 1, 3, 5};
  block.elements = high + 1;
  block.lead = bytes.pick(kLeads);
  return mask;
}

HeadLayout make_heads(ByteReader& bytes, const SdpaProblem& p, bool has_batches,
                      BlockShape& block) {
  HeadLayout heads;
  heads.head_stride = bytes.one_in(4) ? 0 : bytes.between(1, 3);
  const std::int64_t row = heads.head_stride * (p.n_heads - 1) + 1;
  heads.batch_stride = has_batches && bytes.one_in(2) ? row : 0;
  block.elements = row + heads.batch_stride * (p.batch - 1);
  block.lead = static_cast<int>(bytes.between(0, 1));
  return heads;
}

std::vector<std::int64_t*> numbers_of(SdpaProblem& p) {
  std::vector<std::int64_t*> numbers{&p.window_left, &p.window_right, &p.kv_start, &p.key_offset,
                                     &p.key_stride};
  if (p.mask.has_value()) {
    numbers.insert(numbers.end(), {&p.mask->offset, &p.mask->batch_stride, &p.mask->head_stride,
                                   &p.mask->row_stride, &p.mask->key_stride});
  }
  for (std::optional<HeadLayout>* heads : {&p.alibi_slopes, &p.sinks}) {
    if (!heads->has_value()) continue;
    HeadLayout& layout = **heads;
    numbers.insert(numbers.end(), {&layout.offset, &layout.batch_stride, &layout.head_stride});
  }
  return numbers;
}

std::string text_of(const std::vector<std::int64_t>& list) {
  std::string text = "{";
  for (const std::int64_t number : list) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(number);
  }
  return text + "}";
}

}  // namespace

void make_features(ByteReader& bytes, FuzzCase& c) {
  SdpaProblem& p = c.problem;
  if (bytes.one_in(2)) return;
  make_visibility(bytes, p);
  constexpr float kCaps[] = {30.0f, 1.0f, 1e-3f, 1e4f, 50.0f};
  if (bytes.one_in(4)) p.softcap = bytes.pick(kCaps);
  if (bytes.one_in(3)) p.mask = make_mask(bytes, p, c.blocks[5]);
  if (bytes.one_in(4)) p.sinks = make_heads(bytes, p, false, c.blocks[6]);
  if (bytes.one_in(4)) p.alibi_slopes = make_heads(bytes, p, true, c.blocks[7]);
  if (p.sinks.has_value() && bytes.one_in(2)) p.sinks->dtype = p.dtype;
  p.out_f32 = bytes.one_in(6);
}

void make_features_hostile(ByteReader& bytes, SdpaProblem& p) {
  constexpr std::int64_t kOdd[] = {0,
                                   -1,
                                   -2,
                                   kMost,
                                   kLeast,
                                   std::int64_t{1} << 31,
                                   std::int64_t{1} << 60,
                                   (std::int64_t{1} << 60) + 1,
                                   -(std::int64_t{1} << 60),
                                   std::int64_t{1} << 62};
  constexpr float kCaps[] = {-1.0f, std::numeric_limits<float>::infinity(),
                             std::numeric_limits<float>::quiet_NaN(), 1e-40f, 3e38f};
  const std::int64_t odd = bytes.pick(kOdd);
  switch (bytes.between(0, 4)) {
    case 0:
      p.softcap = bytes.pick(kCaps);
      return;
    case 1:
      p.kv_starts.assign(static_cast<std::size_t>(bytes.between(0, 4)), odd);
      return;
    case 2:
      p.query_lengths.assign(static_cast<std::size_t>(bytes.between(0, 4)), odd);
      return;
    default:
      *bytes.pick(numbers_of(p)) = odd;
  }
}

std::string text_of_features(const SdpaProblem& p) {
  std::string text;
  const auto number = [&](const char* name, std::int64_t value, std::int64_t usual) {
    if (value == usual) return;
    text += std::string("p.") + name + " = " + std::to_string(value) + "; ";
  };
  const auto list = [&](const char* name, const std::vector<std::int64_t>& values) {
    if (!values.empty()) text += std::string("p.") + name + " = " + text_of(values) + "; ";
  };
  number("window_left", p.window_left, -1);
  number("window_right", p.window_right, -1);
  number("kv_start", p.kv_start, 0);
  number("query_len", p.query_len.value_or(-1), -1);
  number("key_offset", p.key_offset, 0);
  number("key_stride", p.key_stride, 1);
  number("out_f32", p.out_f32, 0);
  list("kv_starts", p.kv_starts);
  list("query_lengths", p.query_lengths);
  if (p.softcap != 0) text += "p.softcap = " + std::to_string(p.softcap) + "f; ";
  if (p.mask.has_value()) {
    text += std::string("p.mask = MaskLayout{DType::") + dtype_name(p.mask->dtype) + ", " +
            text_of({p.mask->offset, p.mask->batch_stride, p.mask->head_stride, p.mask->row_stride,
                     p.mask->key_stride}) +
            "}; ";
  }
  const auto heads = [&](const char* name, const std::optional<HeadLayout>& layout) {
    if (!layout.has_value()) return;
    text += std::string("p.") + name + " = HeadLayout{DType::" + dtype_name(layout->dtype) + ", " +
            text_of({layout->offset, layout->batch_stride, layout->head_stride}) + "}; ";
  };
  heads("alibi_slopes", p.alibi_slopes);
  heads("sinks", p.sinks);
  return text.empty() ? text : text + "\n";
}

}  // namespace metal_sdpa::fuzz
