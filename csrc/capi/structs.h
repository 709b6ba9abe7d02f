// Structs that begin with their size: read from callers of older and newer headers, and filled.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/text.h"
#include "metal_sdpa/c.h"

namespace metal_sdpa::capi {

/// The size of a struct in the first version of the interface. One that grows keeps it in a
/// specialisation.
template <typename T>
inline constexpr std::size_t kFirstSize = sizeof(T);

// No struct is near it; a size beyond is memory that was never set.
inline constexpr std::size_t kMaxStructSize = 4096;

// What fields are unless it is 0.
inline void set_defaults(metal_sdpa_device_options&) {}
inline void set_defaults(metal_sdpa_operands&) {}
inline void set_defaults(metal_sdpa_write_kv_operands&) {}
inline void set_defaults(metal_sdpa_merge_operands&) {}
inline void set_defaults(metal_sdpa_merge_problem& problem) { problem.batch = 1; }
void set_defaults(metal_sdpa_problem& problem);
void set_defaults(metal_sdpa_page_table& table);
void set_defaults(metal_sdpa_write_kv_problem& problem);

inline void require_given(const char* call, const char* name, const void* given) {
  if (given == nullptr) fail_argument(call, ": ", name, ": got NULL");
}

inline void check_struct_size(const char* call, const char* name, std::size_t size,
                              std::size_t first_size) {
  if (size >= first_size && size <= kMaxStructSize) return;
  fail_argument(call, ": ", name, ": struct_size ", size, ", takes ", first_size,
                " or more, as the struct's init function sets it");
}

/// The struct with this library's fields; those that the caller's header lacks have defaults.
template <typename T>
T read_struct(const char* call, const char* name, const T* given) {
  require_given(call, name, given);
  const std::size_t size = given->struct_size;
  check_struct_size(call, name, size, kFirstSize<T>);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] == 0) continue;
    fail(ErrorCode::unsupported, call, ": ", name, ": byte ", i, " is set, but version ",
         METAL_SDPA_VERSION, " of the library knows ", sizeof(T), " bytes of the struct");
  }
  T read{};
  set_defaults(read);
  std::memcpy(&read, given, std::min(size, sizeof(T)));
  read.struct_size = size;
  return read;
}

/// Gives back what read_struct gave, changed.
template <typename T>
void write_back(const T& read, T* given) {
  std::memcpy(given, &read, std::min(read.struct_size, sizeof(T)));
}

/// Fills `struct_size` bytes: this library's fields, zeros behind them.
template <typename T>
void fill_struct(const char* call, const char* name, T filled, T* to, std::size_t struct_size) {
  require_given(call, name, to);
  check_struct_size(call, name, struct_size, kFirstSize<T>);
  std::memset(static_cast<void*>(to), 0, struct_size);
  filled.struct_size = struct_size;
  write_back(filled, to);
}

template <typename T>
void init_struct(const char* call, const char* name, T* to, std::size_t struct_size) {
  T defaults{};
  set_defaults(defaults);
  fill_struct(call, name, defaults, to, struct_size);
}

}  // namespace metal_sdpa::capi
