// New rows of K and V go to their slots of a cache in pages: element for element, so that only the
// size of an element counts.
#include <metal_stdlib>

#include "write_kv_args.h"

namespace metal_sdpa {

template <typename T>
inline void copy_row(device const T* from, device T* to, uint count, uint thread_index) {
  for (uint d = thread_index; d < count; d += WRITE_KV_THREADS) to[d] = from[d];
}

inline long new_row(constant WriteKvStrides& stride, long token, long head) {
  return stride.new_offset + token * stride.new_token + head * stride.new_head;
}

inline long cache_row(constant WriteKvStrides& stride, long page, long place, long head) {
  return stride.cache_offset + page * stride.cache_page + place * stride.cache_slot +
         head * stride.cache_head;
}

}  // namespace metal_sdpa

/// Threadgroups (T, Hkv, 1) of WRITE_KV_THREADS threads.
template <typename T>
[[kernel]] void write_kv(device const T* new_k [[buffer(WRITE_KV_BUFFER_NEW_K)]],
                         device const T* new_v [[buffer(WRITE_KV_BUFFER_NEW_V)]],
                         device T* k_cache [[buffer(WRITE_KV_BUFFER_K_CACHE)]],
                         device T* v_cache [[buffer(WRITE_KV_BUFFER_V_CACHE)]],
                         device const int* slots [[buffer(WRITE_KV_BUFFER_SLOTS)]],
                         constant WriteKvArgs& args [[buffer(WRITE_KV_BUFFER_ARGS)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]]) {
  using namespace metal_sdpa;
  const long slot = long(slots[group.x]);
  if (slot < 0 || slot >= args.n_slots) return;
  const long page = slot / args.page_size;
  const long place = slot - page * args.page_size;
  const long token = long(group.x), head = long(group.y);
  copy_row(new_k + new_row(args.k, token, head), k_cache + cache_row(args.k, page, place, head),
           args.head_dim, thread_index);
  copy_row(new_v + new_row(args.v, token, head), v_cache + cache_row(args.v, page, place, head),
           args.value_dim, thread_index);
}

#define WRITE_KV_INSTANTIATE(name, type) \
  template [[host_name(name)]] [[kernel]] decltype(write_kv<type>) write_kv<type>;
WRITE_KV_INSTANTIATE("write_kv_16", ushort)
WRITE_KV_INSTANTIATE("write_kv_32", uint)
#undef WRITE_KV_INSTANTIATE
