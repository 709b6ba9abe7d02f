// New keys and values go to their slots of a cache, in place.
#pragma once

#include <cstdint>

#include "metal_sdpa/buffer.h"
#include "metal_sdpa/device.h"
#include "metal_sdpa/encoder.h"
#include "metal_sdpa/export.h"
#include "metal_sdpa/kernel_registry.h"

namespace metal_sdpa {

/// Element [t][h][d] of new rows: offset + t * token_stride + h * head_stride + d.
struct TokenLayout {
  std::int64_t offset = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

/// Element [page][i][h][d] of a cache in pages: offset + page * page_stride + i * slot_stride +
/// h * head_stride + d. Slots before heads (NHD) and heads before slots (HND) are both such.
struct PageLayout {
  std::int64_t offset = 0;
  std::int64_t page_stride = 0;
  std::int64_t slot_stride = 0;
  std::int64_t head_stride = 0;
};

/// k_new [T, Hkv, D] and v_new [T, Hkv, Dv] go to slots [T] of k_cache [n_pages, page_size, Hkv, D]
/// and v_cache [n_pages, page_size, Hkv, Dv]; slot = page * page_size + place in it. A contiguous
/// cache [B, S, Hkv, D] is one of B pages of S slots. A slot of -1 leaves its token out.
struct METAL_SDPA_API WriteKvProblem {
  DType dtype = DType::f32;  ///< of all four: f32, f16 or bf16
  std::int64_t tokens = 0;   ///< T
  std::int64_t heads = 1;    ///< Hkv
  std::int64_t head_dim = 1;
  std::int64_t value_dim = 1;
  std::int64_t n_pages = 1;
  std::int64_t page_size = 1;
  TokenLayout k_new, v_new;
  PageLayout k_cache, v_cache;
  /// Whether slots are looked at when the call is made. A replay reads them anew, unchecked: one
  /// out of range is left out, of two equal ones either may win.
  bool check_slots = true;

  /// Packed row-major layouts; the caches with slots before heads.
  void set_packed_layouts();
};

struct WriteKvOperands {
  Buffer k_new, v_new, k_cache, v_cache;
  Buffer slots;  ///< i32 [T]
};

/// Validates, records and returns; the caller commits. InvalidArgument, before anything is written:
/// slots out of range or twice the same, memory that is too short, caches that overlap each other
/// or the new rows.
METAL_SDPA_API void encode_write_kv(CommandEncoder& encoder, const KernelRegistry& registry,
                                    const Device& device, const WriteKvOperands& operands,
                                    const WriteKvProblem& problem);

/// The same with the device's own registry; runs and waits.
///
///   WriteKvProblem write;
///   write.tokens = 3;  write.heads = 8;  write.head_dim = write.value_dim = 128;
///   write.n_pages = 100;  write.page_size = 16;
///   write.set_packed_layouts();
///   write_kv(device, {k_new, v_new, k_cache, v_cache, slots}, write);
METAL_SDPA_API void write_kv(const Device& device, const WriteKvOperands& operands,
                             const WriteKvProblem& problem);

}  // namespace metal_sdpa
