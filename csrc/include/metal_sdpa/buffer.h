// A typed view of device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "metal_sdpa/dtype.h"
#include "metal_sdpa/error.h"
#include "metal_sdpa/export.h"

namespace metal_sdpa {

class Storage;

/// Dimensions of a tensor, outermost first.
using Shape = std::vector<std::int64_t>;

namespace detail {
template <typename T>
struct HostDType;
template <>
struct HostDType<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct HostDType<std::uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct HostDType<std::uint16_t> {
  static constexpr DType value = DType::u16;
};
template <>
struct HostDType<std::uint32_t> {
  static constexpr DType value = DType::u32;
};
template <>
struct HostDType<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct HostDType<std::int64_t> {
  static constexpr DType value = DType::i64;
};
}  // namespace detail

/// A handle: copies share the memory. Metadata is safe to read from any thread. Memory stays alive
/// while a handle, an encoder or a graph refers to it.
class METAL_SDPA_API Buffer {
 public:
  /// An empty handle; every use but assignment and `valid` is InvalidArgument.
  Buffer() = default;

  /// A view of `byte_len` bytes of `storage` from `byte_offset`. The range must lie inside.
  Buffer(std::shared_ptr<Storage> storage, std::size_t byte_offset, std::size_t byte_len,
         DType dtype, Shape shape);

  bool valid() const noexcept { return storage_ != nullptr; }
  DType dtype() const noexcept { return dtype_; }
  const Shape& shape() const noexcept { return shape_; }
  /// Bytes of this view, not of the allocation behind it.
  std::size_t byte_len() const noexcept { return byte_len_; }
  /// Distance from the start of the allocation to the view.
  std::size_t byte_offset() const noexcept { return byte_offset_; }
  /// Product of `shape`.
  std::size_t element_count() const noexcept { return element_count_; }
  bool read_only() const noexcept;

  /// A flat view [n_elements] from `byte_offset` of this view; a slice of a slice adds offsets.
  /// InvalidArgument where the offset is no multiple of the element size or the range leaves
  /// this view.
  Buffer slice_view(std::size_t byte_offset, std::size_t n_elements) const;

  /// The same bytes with another shape; the element count must stay.
  Buffer reshape(Shape shape) const;

  /// First byte of the view in host memory, nullptr where the device shares none with the host.
  /// Does not wait for work in flight.
  void* data() const noexcept;

  /// Element pointer; InvalidArgument where T does not match dtype (uint16_t also takes f16, bf16).
  template <typename T>
  T* host() const {
    check_host_type(detail::HostDType<T>::value);
    return static_cast<T*>(data());
  }

  /// Where the view starts in the address space that aliasing and hazard checks use.
  std::uint64_t address() const noexcept;

  const std::shared_ptr<Storage>& storage() const noexcept { return storage_; }

 private:
  void check_host_type(DType wanted) const;

  std::shared_ptr<Storage> storage_;
  std::size_t byte_offset_ = 0;
  std::size_t byte_len_ = 0;
  std::size_t element_count_ = 0;
  DType dtype_ = DType::u8;
  Shape shape_;
};

}  // namespace metal_sdpa
