// Parameters of an engine: a verdict of our own in 128-bit numbers, then the library's.
#include "front_end.h"

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "memory_block.h"
#include "report.h"

namespace metal_sdpa::fuzz {
namespace {

__extension__ typedef __int128 Wide;

constexpr std::int64_t kMostExtent = std::numeric_limits<std::int32_t>::max();

struct ParamsCase {
  DType dtype = DType::f32;
  SdpaParams params;
  std::int64_t batch = 1;
  std::array<BlockShape, 4> blocks;  ///< q, k, v, out
  std::uint32_t seed = 0;
};

std::int64_t capacity_of(const SdpaParams& p) {
  return p.kv_capacity == 0 ? p.kv_seq_len : p.kv_capacity;
}

/// Elements of a packed tensor whose extents are at most kMostExtent: at most 2^124.
Wide tensor_elements(const ParamsCase& c, std::size_t index) {
  const SdpaParams& p = c.params;
  const bool is_key = index == 1 || index == 2;
  return Wide{c.batch} * (is_key ? p.n_kv_heads : p.n_heads) *
         (is_key ? capacity_of(p) : p.seq_len) * p.head_dim;
}

ParamsCase make_good(ByteReader& bytes) {
  constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
  ParamsCase c;
  c.dtype = bytes.pick(kDTypes);
  SdpaParams& p = c.params;
  p.n_kv_heads = bytes.between(1, 3);
  p.n_heads = p.n_kv_heads * bytes.between(1, 4);
  p.head_dim = bytes.between(1, 80);
  p.seq_len = bytes.between(1, 20);
  p.kv_seq_len = bytes.between(1, 60);
  p.kv_capacity = bytes.one_in(2) ? 0 : p.kv_seq_len + bytes.between(0, 9);
  p.scale = 0.25f;
  p.do_causal = bytes.one_in(2);
  c.batch = bytes.between(1, 3);
  for (std::size_t i = 0; i < c.blocks.size(); ++i) {
    c.blocks[i].elements = static_cast<std::int64_t>(tensor_elements(c, i));
    c.blocks[i].lead = static_cast<int>(bytes.between(0, 3));
    c.blocks[i].before = bytes.one_in(4) ? 7 : 0;
  }
  c.seed = static_cast<std::uint32_t>(bytes.between(0, 255));
  return c;
}

void make_hostile(ByteReader& bytes, ParamsCase& c) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kOdd[] = {0,
                                   -1,
                                   1,
                                   2,
                                   3,
                                   1024,
                                   1025,
                                   kMostExtent,
                                   kMostExtent - 1,
                                   kMostExtent + 1,
                                   std::int64_t{1} << 32,
                                   kMost,
                                   -kMost - 1};
  SdpaParams& p = c.params;
  std::int64_t* const numbers[] = {&p.n_heads,    &p.n_kv_heads,  &p.head_dim, &p.seq_len,
                                   &p.kv_seq_len, &p.kv_capacity, &c.batch};
  if (bytes.one_in(8)) p.scale = std::numeric_limits<float>::infinity();
  if (bytes.one_in(4)) {
    std::int64_t& elements = c.blocks[static_cast<std::size_t>(bytes.between(0, 3))].elements;
    if (elements > 1) --elements;
    return;
  }
  *bytes.pick(numbers) = bytes.pick(kOdd);
}

bool is_extent(std::int64_t value) { return value >= 1 && value <= kMostExtent; }

bool fits(const ParamsCase& c) {
  const SdpaParams& p = c.params;
  for (const std::int64_t extent :
       {p.n_heads, p.n_kv_heads, p.head_dim, p.seq_len, p.kv_seq_len, c.batch}) {
    if (!is_extent(extent)) return false;
  }
  if (p.n_heads % p.n_kv_heads != 0 || p.head_dim > 1024 || !std::isfinite(p.scale)) return false;
  if (p.kv_capacity != 0 && (p.kv_capacity < p.kv_seq_len || p.kv_capacity > kMostExtent)) {
    return false;
  }
  for (std::size_t i = 0; i < c.blocks.size(); ++i) {
    if (tensor_elements(c, i) > c.blocks[i].elements) return false;
  }
  return true;
}

std::string text_of_case(const ParamsCase& c) {
  const SdpaParams& p = c.params;
  std::string text = std::string("// encode_sdpa of ") + dtype_name(c.dtype) +
                     (fits(c) ? ", fits\n" : ", must be refused\n") + "SdpaParams params{";
  for (const std::int64_t number : {p.n_heads, p.n_kv_heads, p.head_dim, p.seq_len, p.kv_seq_len}) {
    text += std::to_string(number) + ", ";
  }
  text += std::to_string(p.scale) + "f, " + std::to_string(p.kv_capacity) + ", " +
          (p.do_causal ? "true" : "false") + "}; batch_size " + std::to_string(c.batch) + "\n";
  for (const BlockShape& block : c.blocks) {
    text += "// " + std::to_string(block.elements) + " elements, " + std::to_string(block.lead) +
            " off the allocator's alignment, " + std::to_string(block.before) +
            " before the view\n";
  }
  return text;
}

SdpaProblem problem_of(const ParamsCase& c) {
  SdpaProblem p;
  p.dtype = c.dtype;
  p.batch = c.batch;
  p.n_heads = c.params.n_heads;
  p.n_kv_heads = c.params.n_kv_heads;
  p.seq_len = c.params.seq_len;
  p.kv_capacity = capacity_of(c.params);
  p.kv_len = c.params.kv_seq_len;
  p.head_dim = p.value_dim = c.params.head_dim;
  p.scale = c.params.scale;
  p.causal = c.params.do_causal;
  p.set_packed_layouts();
  return p;
}

}  // namespace

void try_params(ByteReader& bytes) {
  ParamsCase c = make_good(bytes);
  for (std::int64_t n = bytes.between(0, 2); n > 0; --n) make_hostile(bytes, c);
  describe_case(text_of_case(c));
  const Device device("cpu");
  const KernelRegistry registry(device);
  const MemoryBlock out(c.blocks[3], c.dtype);
  const MemoryBlock want(c.blocks[3], c.dtype);
  std::array<MemoryBlock, 3> inputs{MemoryBlock(c.blocks[0], c.dtype),
                                    MemoryBlock(c.blocks[1], c.dtype),
                                    MemoryBlock(c.blocks[2], c.dtype)};
  std::mt19937 rng(c.seed);
  for (MemoryBlock& input : inputs) input.fill(Values::normal, rng);
  const Buffer q = inputs[0].buffer(device);
  const Buffer k = inputs[1].buffer(device);
  const Buffer v = inputs[2].buffer(device);
  CommandEncoder encoder = device.command_encoder();
  try {
    encode_sdpa(encoder, registry, device, q, k, v, out.buffer(device), c.params, c.batch);
  } catch (const Error& error) {
    if (fits(c)) fail_case(std::string("refused, though it fits: ") + error.what());
    encoder.commit_and_wait();
    if (out.bytes() != want.bytes()) fail_case("refused, but written");
    return;
  }
  if (!fits(c)) fail_case("accepted, though it does not fit");
  encoder.commit_and_wait();
  sdpa(device, {q, k, v, want.buffer(device), {}}, problem_of(c));
  if (out.bytes() != want.bytes()) fail_case("encode_sdpa and sdpa differ");
}

}  // namespace metal_sdpa::fuzz
