// Dispatches by hand: a verdict of our own first, in 128-bit numbers, then the library's.
#include "by_hand.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "memory_block.h"
#include "report.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa::fuzz {
namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr std::int64_t kNone = -1;
constexpr std::int64_t kOut = 3;
constexpr std::int64_t kParams = 4;
constexpr std::int64_t kMaxInlineBytes = 4096;
constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();

struct HandCase {
  DType dtype = DType::f32;
  SdpaParamsBlock params{};
  GridSize grid;
  GridSize size{SDPA_TILE_Q, 1, 1};
  std::array<BlockShape, 4> blocks;  ///< q, k, v, out
  std::int64_t missing = kNone;      ///< a binding that is left out
  std::int64_t surplus = kNone;      ///< an index that is bound besides
  std::int64_t shared = kNone;       ///< an input that is bound to the output's memory
  std::int64_t inlined = kNone;      ///< a tensor that is bound as bytes
  std::int64_t odd = kNone;          ///< a tensor that starts a byte further on
  std::int64_t params_bytes = sizeof(SdpaParamsBlock);
  std::int64_t params_lead = 0;   ///< bytes before the block, in a Buffer
  bool params_in_buffer = false;  ///< the block is written between encode and commit
  bool is_captured = false;
  std::uint32_t seed = 0;
};

Wide tensor_elements(const HandCase& c, std::size_t index) {
  const SdpaParamsBlock& p = c.params;
  const bool is_key = index == 1 || index == 2;
  return Wide{c.grid.x} * (is_key ? p.n_kv_heads : p.n_heads) *
         (is_key ? p.kv_capacity : p.seq_len) * p.head_dim;
}

std::uint32_t tiles_of(const SdpaParamsBlock& p) {
  return p.seq_len / SDPA_TILE_Q + (p.seq_len % SDPA_TILE_Q == 0 ? 0 : 1);
}

/// A dispatch that fits.
HandCase make_good(ByteReader& bytes) {
  constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
  HandCase c;
  const auto number = [&](std::int64_t low, std::int64_t high) {
    return static_cast<std::uint32_t>(bytes.between(low, high));
  };
  c.dtype = bytes.pick(kDTypes);
  SdpaParamsBlock& p = c.params;
  p.n_kv_heads = number(1, 3);
  p.n_heads = p.n_kv_heads * number(1, 3);
  p.head_dim = number(1, 40);
  p.seq_len = number(1, 40);
  p.kv_capacity = number(1, 40);
  p.kv_seq_len = number(0, p.kv_capacity);
  p.scale = 0.25f;
  p.do_causal = number(0, 1);
  c.grid = {number(1, 3), p.n_heads, tiles_of(p)};
  for (std::size_t i = 0; i < c.blocks.size(); ++i) {
    c.blocks[i].elements = static_cast<std::int64_t>(tensor_elements(c, i));
    c.blocks[i].lead = static_cast<int>(bytes.between(0, 3));
    c.blocks[i].before = bytes.one_in(4) ? 7 : 0;
  }
  c.params_in_buffer = bytes.one_in(3);
  c.is_captured = bytes.one_in(3);
  c.seed = number(0, 255);
  return c;
}

/// One of the numbers is another.
void change_number(ByteReader& bytes, HandCase& c) {
  constexpr std::uint32_t kNumbers[] = {
      0,        1,        2,        3,         4,         5,    8,        16,
      31,       32,       33,       64,        1024,      1025, 1u << 16, 1u << 20,
      1u << 24, 1u << 30, 1u << 31, kMost / 2, kMost - 1, kMost};
  SdpaParamsBlock& p = c.params;
  std::uint32_t* const fields[] = {&p.n_heads, &p.n_kv_heads, &p.head_dim,
                                   &p.seq_len, &p.kv_seq_len, &p.kv_capacity,
                                   &c.grid.x,  &c.grid.y,     &c.grid.z};
  std::uint32_t& field = *bytes.pick(fields);
  field = bytes.one_in(2) ? bytes.pick(kNumbers) : field + (bytes.one_in(2) ? 1 : kMost);
}

/// Powers of two whose products lie around 2^64, or past it, where they would be 0.
void make_sizes_huge(ByteReader& bytes, HandCase& c) {
  const auto power = [&](std::int64_t low, std::int64_t high) {
    return std::uint32_t{1} << bytes.between(low, high);
  };
  SdpaParamsBlock& p = c.params;
  p.n_heads = p.n_kv_heads = power(5, 31);
  p.head_dim = power(0, 10);
  p.seq_len = power(5, 31);
  p.kv_capacity = power(5, 31);
  c.grid = {power(0, 31), 1, 1};
}

void make_hostile(ByteReader& bytes, HandCase& c) {
  constexpr float kScales[] = {std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity()};
  switch (bytes.between(0, 14)) {
    case 0:
      c.params.scale = bytes.pick(kScales);
      return;
    case 1:
      c.missing = bytes.between(0, kParams);
      return;
    case 2:
      c.surplus = bytes.between(kParams + 1, 30);
      return;
    case 3:
      c.shared = bytes.between(0, kOut - 1);
      return;
    case 4:
      c.inlined = bytes.between(0, kOut);
      return;
    case 5:
      c.params_bytes = bytes.between(1, 64);
      return;
    case 6:
      c.params_lead = bytes.between(1, 7);
      c.params_in_buffer = true;
      return;
    case 7:
      c.size.x = static_cast<std::uint32_t>(bytes.between(1, 64));
      return;
    case 8: {
      BlockShape& block = c.blocks[static_cast<std::size_t>(bytes.between(0, kOut))];
      block.elements = std::max<std::int64_t>(block.elements - bytes.between(1, 3), 1);
      return;
    }
    case 9:
      c.odd = bytes.between(0, kOut);
      return;
    case 10:
      make_sizes_huge(bytes, c);
      return;
    default:
      change_number(bytes, c);
  }
}

/// Bytes that are bound to a tensor's index.
Wide bound_bytes(const HandCase& c, std::size_t index) {
  const bool is_output = c.shared == static_cast<std::int64_t>(index);
  const auto elements = static_cast<Wide>(c.blocks[is_output ? kOut : index].elements);
  return elements * dtype_size(c.dtype);
}

bool parameters_fit(const HandCase& c) {
  const SdpaParamsBlock& p = c.params;
  return p.n_heads > 0 && p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0 && p.head_dim >= 1 &&
         p.head_dim <= 1024 && p.kv_seq_len <= p.kv_capacity && std::isfinite(p.scale) &&
         c.grid.x >= 1 && c.grid.y >= 1 && c.grid.z >= 1 && c.grid.y <= p.n_heads &&
         c.grid.z <= tiles_of(p);
}

bool bindings_fit(const HandCase& c) {
  if (c.missing != kNone || c.surplus != kNone) return false;
  if (c.odd != kNone && c.odd != c.inlined) return false;  // bytes are a copy, which is aligned
  if (c.inlined == kOut) return false;
  if (c.inlined != kNone && bound_bytes(c, static_cast<std::size_t>(c.inlined)) > kMaxInlineBytes) {
    return false;
  }
  return c.params_bytes >= static_cast<std::int64_t>(sizeof(SdpaParamsBlock)) &&
         c.params_lead % 4 == 0;
}

/// What design and README say of such a dispatch, in numbers that do not overflow.
bool fits(const HandCase& c) {
  const bool is_tile = c.size.x == SDPA_TILE_Q && c.size.y == 1 && c.size.z == 1;
  if (!is_tile || !bindings_fit(c) || !parameters_fit(c)) return false;
  for (std::size_t i = 0; i < c.blocks.size(); ++i) {
    if (tensor_elements(c, i) * dtype_size(c.dtype) > bound_bytes(c, i)) return false;
  }
  // both start at the same byte, and the output has one
  return c.shared == kNone || c.shared == c.inlined ||
         tensor_elements(c, static_cast<std::size_t>(c.shared)) == 0;
}

std::string text_of_case(const HandCase& c) {
  const SdpaParamsBlock& p = c.params;
  const auto list = [](std::initializer_list<std::uint32_t> numbers) {
    std::string text;
    for (const std::uint32_t number : numbers)
      text += (text.empty() ? "" : ", ") + std::to_string(number);
    return text;
  };
  std::string text = std::string("// by hand, ") + dtype_name(c.dtype) +
                     (fits(c) ? ", fits\n" : ", must be refused\n");
  text += "SdpaParamsBlock params{" +
          list({p.n_heads, p.n_kv_heads, p.head_dim, p.seq_len, p.kv_seq_len}) + ", " +
          std::to_string(p.scale) + "f, " + list({p.kv_capacity, p.do_causal}) + "};\n";
  text += "threadgroups {" + list({c.grid.x, c.grid.y, c.grid.z}) + "}, threadgroup_size {" +
          list({c.size.x, c.size.y, c.size.z}) + "}\n";
  constexpr const char* kNames[] = {"q", "k", "v", "out"};
  for (std::size_t i = 0; i < c.blocks.size(); ++i) {
    text += std::string("// ") + kNames[i] + ": " + std::to_string(c.blocks[i].elements) +
            " elements, " + std::to_string(c.blocks[i].lead) + " off the allocator's alignment, " +
            std::to_string(c.blocks[i].before) + " before the view\n";
  }
  const auto index = [&text](const char* what, std::int64_t value) {
    if (value != kNone) text += std::string("// ") + what + " " + std::to_string(value) + "\n";
  };
  index("not bound: buffer", c.missing);
  index("bound besides: buffer", c.surplus);
  index("bound to the output's memory: buffer", c.shared);
  index("bound as bytes: buffer", c.inlined);
  index("starts a byte further on: buffer", c.odd);
  return text + "// parameters: " + std::to_string(c.params_bytes) + " bytes" +
         (c.params_in_buffer ? " in a buffer, from byte " + std::to_string(c.params_lead) : "") +
         (c.is_captured ? "; captured and replayed\n" : "\n");
}

/// Memory of a case, with exact ends.
struct HandMemory {
  explicit HandMemory(const HandCase& c)
      : tensors{MemoryBlock(c.blocks[0], c.dtype), MemoryBlock(c.blocks[1], c.dtype),
                MemoryBlock(c.blocks[2], c.dtype), MemoryBlock(c.blocks[3], c.dtype)},
        params(static_cast<std::size_t>(c.params_lead + c.params_bytes)) {
    std::mt19937 rng(c.seed);
    for (int i = 0; i < 3; ++i) tensors[static_cast<std::size_t>(i)].fill(Values::normal, rng);
  }

  std::array<MemoryBlock, 4> tensors;
  std::vector<std::uint8_t> params;
};

InlineBytes bytes_of(const std::uint8_t* data, std::size_t n) {
  const auto* first = reinterpret_cast<const std::byte*>(data);
  return {first, first + n};
}

Binding bind_tensor(const HandCase& c, const Device& device, const HandMemory& memory,
                    std::uint32_t index) {
  const bool is_output = c.shared == index;
  const MemoryBlock& block = memory.tensors[is_output ? kOut : index];
  const std::size_t n_bytes = static_cast<std::size_t>(block.elements()) * block.element_size();
  if (c.inlined == index) return {index, bytes_of(block.view_data(), n_bytes)};
  if (c.odd != index) return {index, block.buffer(device)};
  const auto left = static_cast<std::int64_t>(n_bytes) - 1;
  const HostMemory odd{block.view_data() + 1, n_bytes - 1, false, nullptr};
  return {index, device.wrap(odd, DType::u8, {left})};
}

std::vector<Binding> bind_all(const HandCase& c, const Device& device, HandMemory& memory) {
  std::vector<Binding> bindings;
  for (std::uint32_t i = 0; i < kParams; ++i) {
    if (c.missing != i) bindings.push_back(bind_tensor(c, device, memory, i));
  }
  if (c.missing != kParams) {
    const HostMemory all{memory.params.data(), memory.params.size(), false, nullptr};
    const Buffer buffer =
        device.wrap(all, DType::u8, {static_cast<std::int64_t>(memory.params.size())});
    const Buffer view = buffer.slice_view(static_cast<std::size_t>(c.params_lead),
                                          static_cast<std::size_t>(c.params_bytes));
    const auto* block = reinterpret_cast<const std::uint8_t*>(&c.params);
    InlineBytes bytes = bytes_of(block, sizeof(c.params));
    bytes.resize(static_cast<std::size_t>(c.params_bytes));
    bindings.push_back(c.params_in_buffer ? Binding{kParams, view} : Binding{kParams, bytes});
  }
  if (c.surplus != kNone) {
    bindings.push_back({static_cast<std::uint32_t>(c.surplus), InlineBytes(208)});
  }
  return bindings;
}

void run_by_hand(const HandCase& c, const Device& device, HandMemory& memory) {
  const KernelRegistry registry(device);
  constexpr const char* kKernels[] = {"sdpa", "sdpa_f16", "sdpa_bf16"};
  const std::size_t kernel = c.dtype == DType::f32 ? 0 : c.dtype == DType::f16 ? 1 : 2;
  CommandEncoder encoder = device.command_encoder();
  if (c.is_captured) encoder.begin_capture();
  encoder.encode_threadgroups(registry.get_pipeline(kKernels[kernel]), bind_all(c, device, memory),
                              c.grid, c.size);
  if (c.is_captured) encoder.end_capture().replay(encoder);
  const std::size_t n = std::min(sizeof(c.params), static_cast<std::size_t>(c.params_bytes));
  std::memcpy(memory.params.data() + c.params_lead, &c.params, n);
  encoder.commit_and_wait();
}

/// Elements of the output that the grid covers.
std::vector<bool> covered_elements(const HandCase& c, std::int64_t elements) {
  const SdpaParamsBlock& p = c.params;
  std::vector<bool> covered(static_cast<std::size_t>(elements));
  const std::uint32_t rows = std::min(p.seq_len, c.grid.z * SDPA_TILE_Q);
  for (std::uint32_t b = 0; b < c.grid.x; ++b) {
    for (std::uint32_t h = 0; h < c.grid.y; ++h) {
      const std::size_t first = (std::size_t{b} * p.n_heads + h) * p.seq_len * p.head_dim;
      for (std::size_t i = 0; i < std::size_t{rows} * p.head_dim; ++i) covered[first + i] = true;
    }
  }
  return covered;
}

/// The same by sdpa(), bit for bit.
void check_result(const HandCase& c, const Device& device, const HandMemory& memory) {
  const MemoryBlock& out = memory.tensors[kOut];
  const std::vector<bool> covered = covered_elements(c, out.elements());
  if (!out.holds_pattern(covered)) fail_case("bytes outside of the grid's rows were written");
  const bool has_twin = c.params.kv_capacity != 0 && c.shared == kNone;
  if (!has_twin) return;
  SdpaProblem p;
  p.kernel = "sdpa";
  p.dtype = c.dtype;
  p.batch = c.grid.x;
  p.n_heads = c.params.n_heads;
  p.n_kv_heads = c.params.n_kv_heads;
  p.seq_len = c.params.seq_len;
  p.kv_capacity = c.params.kv_capacity;
  p.kv_len = c.params.kv_seq_len;
  p.head_dim = p.value_dim = c.params.head_dim;
  p.scale = c.params.scale;
  p.causal = c.params.do_causal != 0;
  p.set_packed_layouts();
  const MemoryBlock want(c.blocks[kOut], c.dtype);
  sdpa(device,
       {memory.tensors[0].buffer(device),
        memory.tensors[1].buffer(device),
        memory.tensors[2].buffer(device),
        want.buffer(device),
        {}},
       p);
  for (std::size_t i = 0; i < covered.size(); ++i) {
    const std::size_t at = i * out.element_size();
    if (!covered[i] ||
        std::memcmp(out.view_data() + at, want.view_data() + at, out.element_size()) == 0)
      continue;
    fail_case("element " + std::to_string(i) + " of out is not what sdpa() gives");
  }
}

}  // namespace

void try_by_hand(ByteReader& bytes) {
  HandCase c = make_good(bytes);
  for (std::int64_t n = bytes.between(0, 3); n > 0; --n) make_hostile(bytes, c);
  describe_case(text_of_case(c));
  HandMemory memory(c);
  const Device device("cpu");
  const bool must_run = fits(c);
  try {
    run_by_hand(c, device, memory);
  } catch (const Error& error) {
    if (must_run) fail_case(std::string("refused, though it fits: ") + error.what());
    const bool is_typed =
        error.code() == ErrorCode::invalid_argument || error.code() == ErrorCode::command_buffer;
    if (!is_typed) fail_case(std::string("refused by another error: ") + error.what());
    const MemoryBlock& out = memory.tensors[kOut];
    const std::vector<bool> none(static_cast<std::size_t>(out.elements()));
    if (!out.holds_pattern(none)) fail_case(std::string("refused, but written: ") + error.what());
    return;
  }
  if (!must_run) fail_case("accepted, though it does not fit");
  check_result(c, device, memory);
}

void try_names(ByteReader& bytes) {
  constexpr const char* kStems[] = {"sdpa", "sdpa_decode", "sdpa_prefill", "sdpa_merge"};
  constexpr const char* kTypes[] = {"", "_f16", "_bf16"};
  constexpr const char* kSuffixes[] = {"",        ".baseline",    ".avx2",
                                       ".avx512", ".avx512_bf16", ".neon"};
  constexpr const char* kLibraries[] = {"", "metal_sdpa", "native", "no such library"};
  const std::string stem = bytes.pick(kStems);
  const std::string suffix = bytes.pick(kSuffixes);
  const std::string name = stem + bytes.pick(kTypes) + suffix;
  const std::string library = bytes.pick(kLibraries);
  FunctionConstants constants;
  if (bytes.one_in(3)) {
    constants.push_back({static_cast<std::uint32_t>(bytes.between(0, 7)), true});
  }
  describe_case("get_pipeline(\"" + name + "\", " + std::to_string(constants.size()) +
                " constants, \"" + library + "\")\n");
  const KernelRegistry registry{Device("cpu")};
  const bool is_public =
      stem == "sdpa" && suffix.empty() && (library.empty() || library == "metal_sdpa");
  try {
    registry.get_pipeline(name, constants, library);
  } catch (const Error& error) {
    if (is_public) fail_case(std::string("refused: ") + error.what());
    return;
  }
  if (!is_public) fail_case("an internal kernel is given by name");
}

}  // namespace metal_sdpa::fuzz
