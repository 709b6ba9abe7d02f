// Shapes around the edges of tiles, spans and vectors; any layout; lengths and positions.
#include "problem_maker.h"

#include <algorithm>
#include <limits>

#include "cpu/isa.h"
#include "feature_maker.h"

namespace metal_sdpa::fuzz {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

/// Multiply-adds that an input may ask for: a few milliseconds under sanitizers.
constexpr std::int64_t kMostWork = 400000;

/// A broadcast cache of 2^31 keys is a good problem, but not one to run.
constexpr std::int64_t kMostHostileWork = 20 * kMostWork;

std::int64_t saturated(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kMost : product;
}

std::int64_t head_dim(ByteReader& bytes) {
  constexpr std::int64_t kEdges[] = {8,   64,  1,   2,   3,   7,   15,  16,   17,
                                     31,  32,  33,  48,  63,  65,  80,  96,   127,
                                     128, 129, 255, 256, 257, 512, 576, 1023, 1024};
  return bytes.one_in(3) ? bytes.between(1, 200) : bytes.pick(kEdges);
}

std::int64_t rows(ByteReader& bytes) {
  constexpr std::int64_t kEdges[] = {1,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16,
                                     17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129};
  return bytes.one_in(3) ? bytes.between(1, 150) : bytes.pick(kEdges);
}

std::int64_t keys(ByteReader& bytes) {
  constexpr std::int64_t kEdges[] = {16,  1,    2,    3,    15,   17,   31,   32,  33,  63,
                                     64,  65,   127,  128,  129,  255,  256,  257, 511, 512,
                                     513, 1023, 1024, 1025, 2047, 2048, 2049, 4097};
  return bytes.one_in(3) ? bytes.between(1, 600) : bytes.pick(kEdges);
}

void make_shape(ByteReader& bytes, SdpaProblem& p) {
  constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
  constexpr std::int64_t kGroups[] = {1, 1, 2, 3, 4, 7, 8};
  p.dtype = bytes.pick(kDTypes);
  p.seq_len = rows(bytes);
  p.kv_capacity = keys(bytes);
  p.head_dim = head_dim(bytes);
  p.value_dim = bytes.one_in(3) ? head_dim(bytes) : p.head_dim;
  p.n_kv_heads = bytes.between(1, 3);
  p.n_heads = p.n_kv_heads * bytes.pick(kGroups);
  p.batch = bytes.between(1, 3);
  // What is too much work loses a factor at a time.
  while (work_of(p) > kMostWork) {
    std::int64_t* const largest =
        std::max({&p.batch, &p.n_kv_heads, &p.seq_len, &p.head_dim, &p.value_dim, &p.kv_capacity},
                 [](const std::int64_t* a, const std::int64_t* b) { return *a < *b; });
    const std::int64_t group = p.n_heads / p.n_kv_heads;
    *largest = (*largest + 1) / 2;
    p.n_heads = p.n_kv_heads * group;
  }
}

void make_lengths(ByteReader& bytes, SdpaProblem& p) {
  constexpr float kScales[] = {1.0f, 0.125f, 0.0f, -0.3f, 1e-3f, 2.0f};
  p.scale = bytes.pick(kScales);
  // Of the longest rows and the widest values here a score just stays under FLT_MAX.
  if (p.head_dim <= 64 && bytes.one_in(8)) p.scale = 2.5e35f;
  p.causal = bytes.between(0, 1) == 1;
  p.return_lse = bytes.between(0, 1) == 1;
  p.kv_len = bytes.one_in(3) ? bytes.between(0, p.kv_capacity) : p.kv_capacity;
  if (bytes.one_in(3)) {
    for (std::int64_t b = 0; b < p.batch; ++b) {
      p.kv_lengths.push_back(bytes.between(0, p.kv_capacity));
    }
  }
  constexpr std::int64_t kStarts[] = {0, -1, 5, std::int64_t{1} << 62, -(std::int64_t{1} << 62)};
  if (bytes.one_in(3)) {
    p.q_start = bytes.one_in(2) ? bytes.pick(kStarts) : bytes.between(-200, 700);
  }
  if (bytes.one_in(5)) {
    for (std::int64_t b = 0; b < p.batch; ++b) p.q_starts.push_back(bytes.between(-200, 700));
  }
  constexpr const char* kKernels[] = {"", "", "sdpa", "sdpa_decode", "sdpa_prefill"};
  p.kernel = bytes.pick(kKernels);
}

/// Any order of the axes, gaps between rows, reversed and (inputs only) broadcast axes.
TensorLayout make_layout(ByteReader& bytes, std::array<std::int64_t, 3> counts, std::int64_t width,
                         bool is_input, BlockShape& block) {
  std::array<int, 3> order{2, 1, 0};  // the innermost axis first
  if (bytes.one_in(3)) std::swap(order[0], order[1]);
  if (bytes.one_in(3)) std::swap(order[1], order[2]);
  std::array<std::int64_t, 3> strides{};
  std::int64_t span = width + (bytes.one_in(3) ? bytes.between(1, 9) : 0);
  std::int64_t low = 0;
  std::int64_t high = width - 1;
  for (const int axis : order) {
    const auto a = static_cast<std::size_t>(axis);
    if (bytes.one_in(6)) span += bytes.between(1, 7);
    std::int64_t stride = span;
    if (is_input && bytes.one_in(12)) {
      stride = 0;
    } else {
      span = stride * counts[a];
    }
    if (bytes.one_in(8)) stride = -stride;
    (stride < 0 ? low : high) += stride * (counts[a] - 1);
    strides[a] = stride;
  }
  constexpr std::int64_t kAny[] = {0, -1, kMost, kLeast, std::int64_t{1} << 40};
  for (std::size_t a = 0; a < 3; ++a) {
    if (counts[a] == 1 && bytes.one_in(8)) strides[a] = bytes.pick(kAny);  // never used
  }
  constexpr int kLeads[] = {0, 0, 1, 3, 5, 8};
  constexpr int kBefores[] = {0, 0, 0, 1, 16};
  block.elements = high - low + 1;
  block.lead = bytes.pick(kLeads);
  block.before = bytes.pick(kBefores);
  return {-low, strides[0], strides[1], strides[2]};
}

void make_layouts(ByteReader& bytes, FuzzCase& c) {
  SdpaProblem& p = c.problem;
  p.q = make_layout(bytes, {p.batch, p.n_heads, p.seq_len}, p.head_dim, true, c.blocks[0]);
  p.k = make_layout(bytes, {p.batch, p.n_kv_heads, p.kv_capacity}, p.head_dim, true, c.blocks[1]);
  p.v = make_layout(bytes, {p.batch, p.n_kv_heads, p.kv_capacity}, p.value_dim, true, c.blocks[2]);
  p.out = make_layout(bytes, {p.batch, p.n_heads, p.seq_len}, p.value_dim, false, c.blocks[3]);
  c.blocks[4].elements = p.batch * p.n_heads * p.seq_len;
  c.blocks[4].lead = static_cast<int>(bytes.between(0, 1));
}

void make_values(ByteReader& bytes, FuzzCase& c) {
  constexpr Values kValues[] = {Values::normal,   Values::wide, Values::shifted,
                                Values::integers, Values::wild, Values::equal};
  const std::int64_t last = 5;
  c.values = kValues[bytes.between(0, last)];
  c.v_values = kValues[bytes.between(0, last)];
  c.seed = static_cast<std::uint32_t>(bytes.between(0, 65535));
}

void make_way(ByteReader& bytes, FuzzCase& c) {
  constexpr Way kWays[] = {Way::direct,    Way::direct,   Way::encoded,
                           Way::committed, Way::replayed, Way::updated};
  c.way = bytes.pick(kWays);
  c.recorded_kv_len = bytes.between(1, c.problem.kv_capacity);
  c.options.threads = static_cast<int>(bytes.between(1, 3));
  c.options.isa = bytes.pick(isa_names());
  if (c.way == Way::updated) {  // an update sets one length for all
    c.problem.kv_lengths.clear();
    c.problem.kv_len = std::max<std::int64_t>(c.problem.kv_len, 1);
  }
}

std::vector<std::int64_t*> numbers_of(SdpaProblem& p) {
  std::vector<std::int64_t*> numbers{&p.batch,       &p.n_heads,  &p.n_kv_heads, &p.seq_len,
                                     &p.kv_capacity, &p.head_dim, &p.value_dim,  &p.kv_len};
  for (TensorLayout* layout : {&p.q, &p.k, &p.v, &p.out}) {
    numbers.insert(numbers.end(), {&layout->offset, &layout->batch_stride, &layout->head_stride,
                                   &layout->row_stride});
  }
  return numbers;
}

void make_hostile(ByteReader& bytes, SdpaProblem& p) {
  constexpr std::int64_t kOdd[] = {0,
                                   -1,
                                   2,
                                   3,
                                   kMost,
                                   kMost - 1,
                                   kLeast,
                                   kLeast + 1,
                                   std::int64_t{1} << 31,
                                   (std::int64_t{1} << 31) - 1,
                                   std::int64_t{1} << 32,
                                   std::int64_t{1} << 40,
                                   std::int64_t{1} << 62,
                                   -(std::int64_t{1} << 62)};
  constexpr float kScales[] = {std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity(), 0.5f};
  constexpr DType kDTypes[] = {DType::u8, DType::u16, DType::i32, DType::f32, DType::f16};
  const std::int64_t odd = bytes.pick(kOdd);
  switch (bytes.between(0, 7)) {
    case 0:
      p.scale = bytes.pick(kScales);
      return;
    case 1:
      p.kv_lengths.assign(static_cast<std::size_t>(bytes.between(0, 4)), odd);
      return;
    case 2:
      p.q_starts.assign(static_cast<std::size_t>(bytes.between(0, 4)), odd);
      return;
    case 3:
      p.dtype = bytes.pick(kDTypes);
      return;
    case 4:
      p.kernel = "no such kernel";
      return;
    default:
      std::int64_t& number = *bytes.pick(numbers_of(p));
      // a step beside the right number as often as one far off; past an end it wraps
      const std::uint64_t step = bytes.one_in(2) ? 1 : ~std::uint64_t{0};
      number = bytes.one_in(2)
                   ? odd
                   : static_cast<std::int64_t>(static_cast<std::uint64_t>(number) + step);
  }
}

std::string text_of(const TensorLayout& layout) {
  std::string text = "{";
  for (const std::int64_t number :
       {layout.offset, layout.batch_stride, layout.head_stride, layout.row_stride}) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(number);
  }
  return text + "}";
}

std::string text_of(const std::vector<std::int64_t>& list) {
  std::string text = "{";
  for (const std::int64_t number : list) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(number);
  }
  return text + "}";
}

}  // namespace

const char* way_name(Way way) {
  constexpr const char* kNames[] = {"direct",   "encoded", "committed",
                                    "replayed", "updated", "captured"};
  return kNames[static_cast<int>(way)];
}

std::int64_t work_of(const SdpaProblem& p) {
  std::int64_t width = 0;
  if (__builtin_add_overflow(p.head_dim, p.value_dim, &width)) return kMost;
  return saturated(saturated(saturated(p.batch, p.n_heads), saturated(p.seq_len, p.kv_capacity)),
                   width);
}

FuzzCase make_case(ByteReader& bytes) {
  FuzzCase c;
  make_shape(bytes, c.problem);
  c.dtype = c.problem.dtype;
  make_lengths(bytes, c.problem);
  make_way(bytes, c);
  make_values(bytes, c);
  make_layouts(bytes, c);
  make_features(bytes, c);
  c.is_hostile = bytes.one_in(4);
  if (c.is_hostile) make_hostile(bytes, c.problem);
  if (c.is_hostile && bytes.one_in(3)) make_hostile(bytes, c.problem);
  if (c.is_hostile && bytes.one_in(3)) make_features_hostile(bytes, c.problem);
  if (work_of(c.problem) > kMostHostileWork) c.way = Way::captured;
  return c;
}

std::string text_of_case(const FuzzCase& c) {
  const SdpaProblem& p = c.problem;
  const auto number = [](const char* name, std::int64_t value) {
    return std::string("p.") + name + " = " + std::to_string(value) + "; ";
  };
  std::string text = std::string("Device device(\"cpu\", {") + std::to_string(c.options.threads) +
                     ", \"" + c.options.isa + "\"});  // " + way_name(c.way) +
                     (c.is_hostile ? ", hostile\n" : "\n");
  text += std::string("SdpaProblem p; p.dtype = DType::") + dtype_name(p.dtype) +
          "; p.kernel = \"" + p.kernel + "\";\n";
  text += number("batch", p.batch) + number("n_heads", p.n_heads) +
          number("n_kv_heads", p.n_kv_heads) + number("seq_len", p.seq_len) + "\n";
  text += number("kv_capacity", p.kv_capacity) + number("head_dim", p.head_dim) +
          number("value_dim", p.value_dim) + number("kv_len", p.kv_len) + "\n";
  text += number("causal", p.causal) + number("return_lse", p.return_lse) +
          "p.scale = " + std::to_string(p.scale) + "f;\n";
  if (p.q_start.has_value()) text += number("q_start", *p.q_start) + "\n";
  if (!p.kv_lengths.empty()) text += "p.kv_lengths = " + text_of(p.kv_lengths) + ";\n";
  if (!p.q_starts.empty()) text += "p.q_starts = " + text_of(p.q_starts) + ";\n";
  text += text_of_features(p);
  text += "p.q = " + text_of(p.q) + "; p.k = " + text_of(p.k) + ";\np.v = " + text_of(p.v) +
          "; p.out = " + text_of(p.out) + ";\n";
  if (c.way == Way::updated)
    text += "// captured at kv_len " + std::to_string(c.recorded_kv_len) + "\n";
  constexpr const char* kNames[] = {"q", "k", "v", "out", "lse", "mask", "sinks", "slopes"};
  for (std::size_t i = 0; i < c.blocks.size(); ++i) {
    const BlockShape& block = c.blocks[i];
    text += std::string("// ") + kNames[i] + ": " + std::to_string(block.elements) +
            (i < 4 ? std::string(" elements of ") + dtype_name(c.dtype) : " elements") + ", " +
            std::to_string(block.lead) + " elements off the allocator's alignment, " +
            std::to_string(block.before) + " before the view\n";
  }
  return text + "// q, k " + values_name(c.values) + ", v " + values_name(c.v_values) + ", seed " +
         std::to_string(c.seed) + "\n";
}

const std::vector<std::string>& isa_names() {
  static const auto* const names = [] {
    auto* found = new std::vector<std::string>;
    for (const cpu::Isa isa : cpu::supported_isas()) {
      if (cpu::isa_allowed(isa)) found->emplace_back(cpu::isa_name(isa));
    }
    return found;
  }();
  return *names;
}

}  // namespace metal_sdpa::fuzz
