// Rows are copied byte by byte: nothing is converted.
#include "cpu/write_kv.h"

#include <cstring>

#include "shaders/write_kv_args.h"

namespace metal_sdpa::cpu {
namespace {

struct Place {
  sdpa_i64 token;
  sdpa_i64 head;
  sdpa_i64 page;
  sdpa_i64 slot;  ///< of the page
};

template <typename T>
void copy_row(const WriteKvStrides& stride, const Place& at, const T* from, T* to,
              std::size_t count) {
  from += stride.new_offset + at.token * stride.new_token + at.head * stride.new_head;
  to += stride.cache_offset + at.page * stride.cache_page + at.slot * stride.cache_slot +
        at.head * stride.cache_head;
  std::memcpy(to, from, count * sizeof(T));
}

}  // namespace

template <typename T>
void write_kv_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const WriteKvArgs& args = launch.value<WriteKvArgs>(WRITE_KV_BUFFER_ARGS);
  const auto* slots = launch.buffer<const sdpa_i32>(WRITE_KV_BUFFER_SLOTS);
  const std::uint64_t tokens = launch.threadgroups.x;
  if (stop.stop_requested()) return;
  for (std::uint64_t group = work.begin; group < work.end; ++group) {
    const sdpa_i64 slot = slots[group % tokens];
    if (slot < 0 || slot >= args.n_slots) continue;
    const Place at{static_cast<sdpa_i64>(group % tokens), static_cast<sdpa_i64>(group / tokens),
                   slot / args.page_size, slot % args.page_size};
    copy_row(args.k, at, launch.buffer<const T>(WRITE_KV_BUFFER_NEW_K),
             launch.buffer<T>(WRITE_KV_BUFFER_K_CACHE), args.head_dim);
    copy_row(args.v, at, launch.buffer<const T>(WRITE_KV_BUFFER_NEW_V),
             launch.buffer<T>(WRITE_KV_BUFFER_V_CACHE), args.value_dim);
  }
}

template void write_kv_kernel<std::uint16_t>(const NativeLaunch&, WorkRange, StopToken&);
template void write_kv_kernel<std::uint32_t>(const NativeLaunch&, WorkRange, StopToken&);

}  // namespace metal_sdpa::cpu
