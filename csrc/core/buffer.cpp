// Buffer views: extents, slices, host access.
#include "metal_sdpa/buffer.h"

#include <utility>

#include "core/backend.h"
#include "core/layout.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

std::size_t checked_count(const Shape& shape, DType dtype, const char* call) {
  std::uint64_t count = 1;
  for (const std::int64_t extent : shape) {
    if (extent < 0) fail_argument(call, ": shape: ", shape, " has a negative extent");
    if (__builtin_mul_overflow(count, static_cast<std::uint64_t>(extent), &count)) {
      fail_argument(call, ": shape: ", shape, " has more elements than 64 bits count");
    }
  }
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, dtype_size(dtype), &bytes)) {
    fail_argument(call, ": shape: ", shape, " needs more bytes than 64 bits count");
  }
  return count;
}

}  // namespace

std::size_t shape_byte_len(const Shape& shape, DType dtype, const char* call) {
  return checked_count(shape, dtype, call) * dtype_size(dtype);
}

Buffer::Buffer(std::shared_ptr<Storage> storage, std::size_t byte_offset, std::size_t byte_len,
               DType dtype, Shape shape)
    : storage_(std::move(storage)),
      byte_offset_(byte_offset),
      byte_len_(byte_len),
      dtype_(dtype),
      shape_(std::move(shape)) {
  if (storage_ == nullptr) fail_argument("Buffer: storage: got none");
  element_count_ = checked_count(shape_, dtype, "Buffer");
  if (element_count_ * dtype_size(dtype) > byte_len) {
    fail_argument("Buffer: shape: ", shape_, " of ", dtype_name(dtype), " needs ",
                  element_count_ * dtype_size(dtype), " bytes, but the view has ", byte_len);
  }
  if (byte_offset > storage_->byte_len || byte_len > storage_->byte_len - byte_offset) {
    fail_argument("Buffer: bytes ", byte_offset, " to ", byte_offset, " + ", byte_len,
                  " leave the allocation of ", storage_->byte_len, " bytes");
  }
}

bool Buffer::read_only() const noexcept { return storage_ != nullptr && storage_->read_only; }

Buffer Buffer::slice_view(std::size_t byte_offset, std::size_t n_elements) const {
  if (!valid()) fail_argument("slice_view: the buffer is empty");
  const std::size_t size = dtype_size(dtype_);
  if (byte_offset % size != 0) {
    fail_argument("slice_view: byte_offset: ", byte_offset, " is no multiple of the ", size,
                  " bytes of a ", dtype_name(dtype_));
  }
  if (n_elements == 0) fail_argument("slice_view: n_elements: 0, takes at least 1");
  const bool inside = byte_offset <= byte_len_ && n_elements <= (byte_len_ - byte_offset) / size;
  if (!inside) {
    fail_argument("slice_view: ", n_elements, " elements of ", dtype_name(dtype_), " from byte ",
                  byte_offset, " leave the view of ", byte_len_, " bytes");
  }
  return Buffer(storage_, byte_offset_ + byte_offset, n_elements * size, dtype_,
                {static_cast<std::int64_t>(n_elements)});
}

Buffer Buffer::reshape(Shape shape) const {
  if (!valid()) fail_argument("reshape: the buffer is empty");
  const std::size_t count = checked_count(shape, dtype_, "reshape");
  if (count != element_count_) {
    fail_argument("reshape: shape: ", shape, " has ", count, " elements, but the buffer has ",
                  element_count_);
  }
  return Buffer(storage_, byte_offset_, byte_len_, dtype_, std::move(shape));
}

void* Buffer::data() const noexcept {
  if (storage_ == nullptr || storage_->host == nullptr) return nullptr;
  return static_cast<char*>(storage_->host) + byte_offset_;
}

std::uint64_t Buffer::address() const noexcept {
  return storage_ == nullptr ? 0 : storage_->address + byte_offset_;
}

void Buffer::check_host_type(DType wanted) const {
  if (!valid()) fail_argument("Buffer: host view of an empty buffer");
  const bool bits = wanted == DType::u16 && (dtype_ == DType::f16 || dtype_ == DType::bf16);
  if (wanted == dtype_ || bits) return;
  fail(ErrorCode::unsupported_dtype, "Buffer: host view of ", dtype_name(wanted),
       ", but the buffer holds ", dtype_name(dtype_));
}

}  // namespace metal_sdpa
