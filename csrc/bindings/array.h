// An array of somebody else's, described without a copy.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>

#include "array_type.h"
#include "convert.h"
#include "metal_sdpa/dtype.h"

namespace metal_sdpa::python {

struct Array {
  static constexpr int kMaxDims = 8;

  ArrayType type;
  void* data = nullptr;           ///< first element; on Metal the id<MTLBuffer>
  std::uint64_t byte_offset = 0;  ///< into the MTLBuffer
  bool on_metal = false;
  bool read_only = false;
  bool copied = false;   ///< the producer's copy: what is written into it nobody sees
  bool boolean = false;  ///< u8 whose bytes are 0 or 1
  bool empty = false;    ///< an extent is 0; `strides` mean nothing then, and `data` may be null
  DType dtype = DType::f32;
  int ndim = 0;
  std::int64_t elements = 0;  ///< when it was described
  std::int64_t shape[kMaxDims] = {};
  std::int64_t strides[kMaxDims] = {};  ///< in elements
  std::shared_ptr<void> owner;          ///< keeps the memory alive; null where the call borrows it

  Shape shape_list() const { return Shape(shape, shape + ndim); }
};

/// What a call takes. `text` ends the error for a dtype that has no DType.
struct TakenDTypes {
  const char* text;
  bool booleans = false;  ///< described as u8 with `Array::boolean`

  TakenDTypes(const char* dtypes, bool takes_booleans = false)
      : text(dtypes), booleans(takes_booleans) {}
};

/// How long the memory must stay: while the caller holds the object, or as long as `owner`.
enum class Lifetime { borrowed, owned };

/// Reads what `object` says of its memory, which is that of NumPy or comes through DLPack.
/// Errors: InvalidArgument for objects that are
/// no arrays, UnsupportedDType (what `dtypes` leaves out, byte-swapped), Unsupported
/// (other devices, sparse layouts, what refuse_hidden_state refuses).
void import_array(Argument argument, PyObject* object, Lifetime lifetime, const TakenDTypes& dtypes,
                  Array& array);

/// InvalidArgument where the array has other memory now than when it was described: an object of an
/// unknown class runs code of the caller's as it is read.
void refuse_changed(Argument argument, PyObject* object, const Array& array);

/// The two ways in; `array.type` is set.
void import_numpy(Argument argument, PyObject* object, Lifetime lifetime, const TakenDTypes& dtypes,
                  Array& array);
void import_dlpack(Argument argument, PyObject* object, Lifetime lifetime,
                   const TakenDTypes& dtypes, Array& array);

/// UnsupportedDType: `call: name: dtype TEXT, takes DTYPES`.
[[noreturn]] void fail_dtype(Argument argument, std::string_view text, const char* dtypes);

/// Holds a reference to `object` until the last copy goes, on whatever thread.
std::shared_ptr<void> hold_object(PyObject* object);

/// Makes the attribute names that imports look up; once, when the module is made.
void init_arrays();

/// Interned names of attributes.
struct ArrayNames {
  PyObject* array_struct = nullptr;
  PyObject* dtype = nullptr;
  PyObject* type = nullptr;
  PyObject* name = nullptr;  ///< __name__
  PyObject* requires_grad = nullptr;
};
const ArrayNames& array_names() noexcept;

}  // namespace metal_sdpa::python
