// Checks of a packed launch: parameters, grid, sizes, places.
#include "core/packed_launch.h"

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "core/backend.h"
#include "core/text.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa {
namespace {

constexpr std::array<const char*, 5> kBufferNames{"q", "k", "v", "output", "parameters"};
constexpr std::uint64_t kParamsAlignment = alignof(SdpaParamsBlock);

std::string named(std::size_t index) {
  return text_of("buffer ", index, " (", kBufferNames[index], ")");
}

/// False where 64 bits do not hold the product.
bool product(std::initializer_list<std::uint64_t> factors, std::uint64_t& result) {
  result = 1;
  for (const std::uint64_t factor : factors) {
    if (__builtin_mul_overflow(result, factor, &result)) return false;
  }
  return true;
}

std::string parameter_fault(const PackedLaunch& launch, const SdpaParamsBlock& params) {
  if (params.n_heads == 0 || params.n_kv_heads == 0 || params.n_heads % params.n_kv_heads != 0) {
    return text_of("parameters: n_heads ", params.n_heads, ", n_kv_heads ", params.n_kv_heads,
                   ", takes a positive multiple");
  }
  if (params.head_dim == 0 || params.head_dim > launch.max_head_dim) {
    return text_of("parameters: head_dim ", params.head_dim, ", takes 1 to ", launch.max_head_dim);
  }
  if (params.kv_seq_len > params.kv_capacity) {
    return text_of("parameters: kv_seq_len ", params.kv_seq_len, ", but kv_capacity is ",
                   params.kv_capacity);
  }
  if (!std::isfinite(params.scale)) {
    return text_of("parameters: scale ", params.scale, ", takes a finite number");
  }
  return {};
}

std::string grid_fault(const GridSize& grid, const SdpaParamsBlock& params) {
  const std::uint64_t tiles =
      (static_cast<std::uint64_t>(params.seq_len) + SDPA_TILE_Q - 1) / SDPA_TILE_Q;
  if (grid.y > params.n_heads) {
    return text_of("threadgroups: y ", grid.y, ", but the parameters have ", params.n_heads,
                   " heads");
  }
  if (grid.z > tiles) {
    return text_of("threadgroups: z ", grid.z, ", but the parameters have ", params.seq_len,
                   " rows, which are ", tiles, " tiles of ", SDPA_TILE_Q);
  }
  return {};
}

std::string place_fault(const PackedLaunch& launch) {
  for (std::size_t i = 0; i < launch.buffers.size(); ++i) {
    const std::uint64_t alignment =
        i == SDPA_BUFFER_PARAMS ? kParamsAlignment : launch.element_size;
    if (launch.buffers[i].address % alignment != 0) {
      return text_of(named(i), ": starts off a multiple of ", alignment, " bytes");
    }
  }
  return {};
}

/// Whether the first `a_bytes` and `b_bytes` bytes of two bindings share any. Both lie within them.
bool overlap(const BoundBytes& a, std::uint64_t a_bytes, const BoundBytes& b,
             std::uint64_t b_bytes) {
  if (a.address == 0 || b.address == 0) return false;
  return a.address < b.address + b_bytes && b.address < a.address + a_bytes;
}

std::string memory_fault(const PackedLaunch& launch, const SdpaParamsBlock& params) {
  const std::uint64_t batch = launch.threadgroups.x;
  std::uint64_t q_bytes = 0;
  std::uint64_t kv_bytes = 0;
  const bool counted =
      product({batch, params.n_heads, params.seq_len, params.head_dim, launch.element_size},
              q_bytes) &&
      product({batch, params.n_kv_heads, params.kv_capacity, params.head_dim, launch.element_size},
              kv_bytes);
  if (!counted) return "parameters: their tensors are larger than 64 bits count";
  const std::array<std::uint64_t, 5> needed{q_bytes, kv_bytes, kv_bytes, q_bytes,
                                            sizeof(SdpaParamsBlock)};
  for (std::size_t i = 0; i < needed.size(); ++i) {
    if (launch.buffers[i].byte_len >= needed[i]) continue;
    return text_of(named(i), ": ", launch.buffers[i].byte_len,
                   " bytes, smaller than the parameters say: with the grid ", needed[i]);
  }
  for (std::size_t i = 0; i < needed.size(); ++i) {
    if (i == SDPA_BUFFER_OUT) continue;
    if (overlap(launch.buffers[SDPA_BUFFER_OUT], q_bytes, launch.buffers[i], needed[i])) {
      return text_of(named(SDPA_BUFFER_OUT), ": overlaps ", named(i));
    }
  }
  return {};
}

const DispatchBinding* find_binding(const Dispatch& dispatch, std::size_t index) {
  for (const DispatchBinding& binding : dispatch.bindings) {
    if (binding.index == index) return &binding;
  }
  return nullptr;
}

BoundBytes bound_bytes(const DispatchBinding& binding) {
  if (binding.storage == nullptr) return {0, binding.byte_len};
  return {binding.storage->address + binding.byte_offset, binding.byte_len};
}

/// Everything about the bindings that does not depend on the parameters.
std::string binding_fault(const Dispatch& dispatch, PackedLaunch& launch) {
  for (std::size_t i = 0; i < launch.buffers.size(); ++i) {
    const DispatchBinding* binding = find_binding(dispatch, i);
    if (binding == nullptr) return text_of("bindings: ", named(i), " is missing");
    launch.buffers[i] = bound_bytes(*binding);
  }
  if (dispatch.bindings.size() != launch.buffers.size()) return "bindings: takes buffers 0 to 4";
  const DispatchBinding& out = *find_binding(dispatch, SDPA_BUFFER_OUT);
  if (out.storage == nullptr) {
    return text_of("bindings: ", named(SDPA_BUFFER_OUT), " is inline bytes, takes a Buffer");
  }
  if (out.storage->read_only) return text_of("bindings: ", named(SDPA_BUFFER_OUT), " is read-only");
  if (launch.buffers[SDPA_BUFFER_PARAMS].byte_len < sizeof(SdpaParamsBlock)) {
    return text_of("bindings: ", named(SDPA_BUFFER_PARAMS), ": ",
                   launch.buffers[SDPA_BUFFER_PARAMS].byte_len, " bytes, takes ",
                   sizeof(SdpaParamsBlock));
  }
  return place_fault(launch);
}

std::string dispatch_fault(const Dispatch& dispatch, PackedLaunch& launch) {
  if (dispatch.pipeline->has_internal_constants) {
    return "pipeline: its function constants are internal, takes the one without any";
  }
  const GridSize& size = dispatch.threadgroup_size;
  if (size.x != SDPA_TILE_Q || size.y != 1 || size.z != 1) {
    return text_of("threadgroup_size: [", size.x, ", ", size.y, ", ", size.z, "], takes [",
                   SDPA_TILE_Q, ", 1, 1]");
  }
  std::string fault = binding_fault(dispatch, launch);
  if (!fault.empty()) return fault;
  const InlineBytes& bytes = find_binding(dispatch, SDPA_BUFFER_PARAMS)->bytes;
  const bool is_late = bytes.empty() || dispatch.pipeline->checks_parameters;
  if (is_late) return {};  // those in a Buffer may change until the dispatch runs
  SdpaParamsBlock params;
  std::memcpy(&params, bytes.data(), sizeof(params));
  return packed_launch_fault(launch, params);
}

}  // namespace

std::optional<DType> packed_kernel_dtype(std::string_view function) {
  if (function == "sdpa") return DType::f32;
  if (function == "sdpa_f16") return DType::f16;
  if (function == "sdpa_bf16") return DType::bf16;
  return std::nullopt;
}

std::string packed_launch_fault(const PackedLaunch& launch, const SdpaParamsBlock& params) {
  std::string fault = parameter_fault(launch, params);
  if (fault.empty()) fault = grid_fault(launch.threadgroups, params);
  if (fault.empty()) fault = place_fault(launch);
  if (fault.empty()) fault = memory_fault(launch, params);
  return fault;
}

void check_packed_dispatch(const Dispatch& dispatch, DType dtype, std::uint32_t max_head_dim,
                           const char* call) {
  PackedLaunch launch;
  launch.element_size = dtype_size(dtype);
  launch.max_head_dim = max_head_dim;
  launch.threadgroups = dispatch.threadgroups;
  const std::string fault = dispatch_fault(dispatch, launch);
  if (!fault.empty()) fail_argument(call, ": ", dispatch.pipeline->name, ": ", fault);
}

}  // namespace metal_sdpa
