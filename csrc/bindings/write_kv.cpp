// write_kv(): new keys and values go to their slots of a caller's cache.
#include "metal_sdpa/write_kv.h"

#include "array.h"
#include "bindings.h"
#include "gil.h"
#include "hidden_state.h"
#include "interrupts.h"
#include "sdpa_problem.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kCall = "write_kv";
constexpr const char* kDTypes = "f32, f16 or bf16";

void import_rows(const char* name, nb::handle object, int ndim, const char* extents, Array& array) {
  const Argument argument{kCall, name};
  import_array(argument, object.ptr(), Lifetime::borrowed, kDTypes, array);
  refuse_traced(kCall, {{name, object.ptr(), array.type.framework}});
  const bool holds_bits = array.dtype == DType::u16 && array.type.framework == Framework::numpy;
  if (holds_bits) array.dtype = DType::bf16;
  if (array.dtype != DType::f32 && array.dtype != DType::f16 && array.dtype != DType::bf16) {
    fail_dtype(argument, dtype_name(array.dtype), kDTypes);
  }
  if (array.ndim != ndim) {
    fail_argument(kCall, ": ", name, ": shape ", array.shape_list(), " has ", array.ndim,
                  " dimensions, takes ", extents);
  }
  const int last = ndim - 1;
  if (array.empty || array.shape[last] <= 1 || array.strides[last] == 1) return;
  fail_argument(kCall, ": ", name, ": the last dimension has a stride of ", array.strides[last],
                " elements, takes 1");
}

void require_extent(const char* name, const char* extent, std::int64_t got, const char* other,
                    std::int64_t wanted) {
  if (got == wanted) return;
  fail_argument(kCall, ": ", name, ": ", extent, " ", got, ", but ", other, " has ", wanted);
}

void require_like(const char* name, const Array& array, const Array& first) {
  if (array.dtype != first.dtype) {
    fail(ErrorCode::unsupported_dtype, kCall, ": ", name, ": dtype ", dtype_name(array.dtype),
         ", but k_new has ", dtype_name(first.dtype));
  }
  if (array.on_metal == first.on_metal) return;
  fail_argument(kCall, ": ", name, ": is in ", array.on_metal ? "Metal" : "host",
                " memory, but k_new is not");
}

/// The four arrays of a call: new rows [T, Hkv, D], caches [n_pages, page, Hkv, D] or, with heads
/// first, [n_pages, Hkv, page, D].
struct KvArrays {
  Array k_new, v_new, k_cache, v_cache;
  bool heads_first = false;

  int head_axis() const { return heads_first ? 1 : 2; }
  int slot_axis() const { return heads_first ? 2 : 1; }
};

void check_arrays(const KvArrays& x) {
  const auto check = [&](const char* new_name, const Array& rows, const char* cache_name,
                         const Array& cache) {
    require_like(new_name, rows, x.k_new);
    require_like(cache_name, cache, x.k_new);
    require_extent(new_name, "tokens", rows.shape[0], "k_new", x.k_new.shape[0]);
    require_extent(new_name, "heads", rows.shape[1], "k_new", x.k_new.shape[1]);
    require_extent(cache_name, "heads", cache.shape[x.head_axis()], "k_new", x.k_new.shape[1]);
    require_extent(cache_name, "head_dim", cache.shape[3], new_name, rows.shape[2]);
    require_extent(cache_name, "pages", cache.shape[0], "k_cache", x.k_cache.shape[0]);
    require_extent(cache_name, "slots a page", cache.shape[x.slot_axis()], "k_cache",
                   x.k_cache.shape[x.slot_axis()]);
    if (cache.read_only) fail_argument(kCall, ": ", cache_name, ": is read-only");
    if (cache.copied) {
      fail_argument(kCall, ": ", cache_name, ": gives a copy of its memory, takes one to share");
    }
  };
  check("k_new", x.k_new, "k_cache", x.k_cache);
  check("v_new", x.v_new, "v_cache", x.v_cache);
}

WriteKvProblem problem_of(const KvArrays& x) {
  WriteKvProblem problem;
  problem.dtype = x.k_new.dtype;
  problem.tokens = x.k_new.shape[0];
  problem.heads = x.k_new.shape[1];
  problem.head_dim = x.k_new.shape[2];
  problem.value_dim = x.v_new.shape[2];
  problem.n_pages = x.k_cache.shape[0];
  problem.page_size = x.k_cache.shape[x.slot_axis()];
  return problem;
}

TokenLayout token_layout(const Array& array, std::int64_t offset) {
  if (array.empty) return {};
  return {offset, array.strides[0], array.strides[1]};
}

PageLayout page_layout(const KvArrays& x, const Array& array, std::int64_t offset) {
  if (array.empty) return {};
  return {offset, array.strides[0], array.strides[x.slot_axis()], array.strides[x.head_axis()]};
}

/// The slots [T] of an i32 array, in memory of the device.
Buffer slots_buffer(const Device& device, const Array& slots, std::int64_t tokens) {
  if (tokens == 0) return {};
  Buffer buffer = device.empty({tokens}, DType::i32);
  auto* to = static_cast<std::int32_t*>(buffer.data());
  const auto* from = static_cast<const std::int32_t*>(slots.data);
  for (std::int64_t t = 0; t < tokens; ++t) to[t] = from[t * slots.strides[0]];
  return buffer;
}

void write(nb::handle k_new, nb::handle v_new, nb::handle k_cache, nb::handle v_cache,
           nb::handle slots, bool heads_first, bool check_slots) {
  KvArrays x;
  x.heads_first = heads_first;
  const char* cache_extents = heads_first ? "[n_pages, Hkv, page, D]" : "[n_pages, page, Hkv, D]";
  import_rows("k_new", k_new, 3, "[T, Hkv, D]", x.k_new);
  import_rows("v_new", v_new, 3, "[T, Hkv, Dv]", x.v_new);
  import_rows("k_cache", k_cache, 4, cache_extents, x.k_cache);
  import_rows("v_cache", v_cache, 4, cache_extents, x.v_cache);
  check_arrays(x);
  Array slot_array;
  import_array({kCall, "slots"}, slots.ptr(), Lifetime::borrowed, "i32", slot_array);
  if (slot_array.dtype != DType::i32) fail_dtype({kCall, "slots"}, "i64", "i32");
  require_extent("slots", "tokens", slot_array.shape[0], "k_new", x.k_new.shape[0]);

  const Device device(x.k_new.on_metal ? "metal" : "cpu");
  WriteKvProblem problem = problem_of(x);
  problem.check_slots = check_slots;
  std::int64_t offsets[4] = {};
  const WriteKvOperands operands{wrap_elements(device, {kCall, "k_new"}, x.k_new, offsets[0]),
                                 wrap_elements(device, {kCall, "v_new"}, x.v_new, offsets[1]),
                                 wrap_elements(device, {kCall, "k_cache"}, x.k_cache, offsets[2]),
                                 wrap_elements(device, {kCall, "v_cache"}, x.v_cache, offsets[3]),
                                 slots_buffer(device, slot_array, problem.tokens)};
  problem.k_new = token_layout(x.k_new, offsets[0]);
  problem.v_new = token_layout(x.v_new, offsets[1]);
  problem.k_cache = page_layout(x, x.k_cache, offsets[2]);
  problem.v_cache = page_layout(x, x.v_cache, offsets[3]);
  without_gil([&] { write_kv(device, operands, problem); });
}

}  // namespace

void bind_write_kv(nb::module_& module) {
  module.def("write_kv", &write, nb::arg("k_new"), nb::arg("v_new"), nb::arg("k_cache"),
             nb::arg("v_cache"), nb::arg("slots"), nb::arg("heads_first"), nb::arg("check_slots"),
             nb::sig("def write_kv(k_new: Array, v_new: Array, k_cache: Array, v_cache: Array, "
                     "slots: NDArray[Any], heads_first: bool, check_slots: bool) -> None"),
             "metal_sdpa.write_kv with slots as int32 [T].");
}

}  // namespace metal_sdpa::python
