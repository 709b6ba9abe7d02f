// Buffer: metadata, views, and host access through NumPy and DLPack.
#include "metal_sdpa/buffer.h"

#include "bindings.h"
#include "convert.h"
#include "export.h"

namespace metal_sdpa::python {
namespace {

nb::tuple shape_tuple(const Shape& shape) {
  nb::list extents;
  for (const std::int64_t extent : shape) extents.append(extent);
  return nb::tuple(extents);
}

/// The array interface's name of the dtype; bfloat16, which it has not, shows its bits.
const char* typestr(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "<f4";
    case DType::f16:
      return "<f2";
    case DType::bf16:
    case DType::u16:
      return "<u2";
    case DType::u8:
      return "|u1";
    case DType::u32:
      return "<u4";
    case DType::i32:
      return "<i4";
    case DType::i64:
      return "<i8";
  }
  return "";
}

nb::dict array_interface(const Buffer& buffer) {
  if (buffer.data() == nullptr) {
    fail(ErrorCode::unsupported, "numpy: the device shares this buffer's memory with no host");
  }
  nb::dict interface;
  interface["version"] = 3;
  interface["shape"] = shape_tuple(buffer.shape());
  interface["typestr"] = typestr(buffer.dtype());
  interface["data"] =
      nb::make_tuple(reinterpret_cast<std::uintptr_t>(buffer.data()), buffer.read_only());
  return interface;
}

/// The array holds the Python Buffer, and with it the memory.
nb::object numpy_view(nb::handle self) {
  const nb::object array = nb::module_::import_("numpy").attr("asarray")(self);
  if (nb::cast<Buffer&>(self).dtype() != DType::bf16) return array;
  try {
    return array.attr("view")(nb::module_::import_("ml_dtypes").attr("bfloat16"));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_ImportError)) throw;
  }
  return array;
}

std::string describe(const Buffer& buffer) {
  return text_of("Buffer(", dtype_name(buffer.dtype()), ", shape=", buffer.shape(),
                 ", byte_offset=", buffer.byte_offset(), ")");
}

}  // namespace

void bind_buffer(nb::module_& module) {
  nb::class_<Buffer>(module, "Buffer",
                     "A typed view of device memory. Views share the memory and keep it alive.\n\n"
                     "`numpy()` and `__dlpack__` do not wait for work in flight: host access while "
                     "the device\nworks is the caller's error.")
      .def_prop_ro("dtype", &Buffer::dtype, "DType of the elements.")
      .def_prop_ro(
          "shape", [](const Buffer& self) { return shape_tuple(self.shape()); },
          nb::sig("def shape(self) -> tuple[int, ...]"), "Extents, outermost first; row-major.")
      .def_prop_ro("byte_len", &Buffer::byte_len,
                   "Bytes of this view, not of the allocation behind it.")
      .def_prop_ro("byte_offset", &Buffer::byte_offset,
                   "Bytes from the start of the allocation to this view.")
      .def_prop_ro("element_count", &Buffer::element_count, "Product of `shape`.")
      .def_prop_ro("read_only", &Buffer::read_only, "Whether nothing may write it.")
      .def(
          "slice_view",
          [](const Buffer& self, nb::handle byte_offset, nb::handle n_elements) {
            return self.slice_view(to_size({"slice_view", "byte_offset"}, byte_offset),
                                   to_size({"slice_view", "n_elements"}, n_elements));
          },
          nb::arg("byte_offset").none(), nb::arg("n_elements").none(),
          nb::sig("def slice_view(self, byte_offset: int, n_elements: int) -> Buffer"),
          "A flat view [n_elements] from `byte_offset` of this view; a slice of a slice adds "
          "offsets.\n\nInvalidArgument where the offset is no multiple of the element size or the "
          "range leaves this view.")
      .def(
          "reshape",
          [](const Buffer& self, nb::handle shape) {
            return self.reshape(to_shape({"reshape", "shape"}, shape));
          },
          nb::arg("shape").none(), nb::sig("def reshape(self, shape: Sequence[int]) -> Buffer"),
          "The same bytes with another shape; the element count must stay.")
      .def(
          "numpy", &numpy_view, nb::sig("def numpy(self) -> NDArray[Any]"),
          "A NumPy array over the memory, without a copy. bf16 is ml_dtypes.bfloat16 where that is "
          "installed,\nelse uint16 bits.")
      .def_prop_ro("__array_interface__", &array_interface,
                   nb::sig("def __array_interface__(self) -> dict[str, Any]"))
      .def(
          "__dlpack__",
          [](const Buffer& self, nb::handle, nb::handle max_version, nb::handle dl_device,
             nb::handle copy) { return dlpack_capsule(self, max_version, dl_device, copy); },
          nb::kw_only(), nb::arg("stream") = nb::none(), nb::arg("max_version") = nb::none(),
          nb::arg("dl_device") = nb::none(), nb::arg("copy") = nb::none(),
          nb::sig("def __dlpack__(self, *, stream: Any = None, "
                  "max_version: tuple[int, int] | None = None, "
                  "dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> Any"),
          "A DLPack capsule over the memory, without a copy.")
      .def("__dlpack_device__", &dlpack_device,
           nb::sig("def __dlpack_device__(self) -> tuple[int, int]"),
           "(1, 0) for host memory, (8, 0) for Metal.")
      .def("__repr__", &describe);
}

}  // namespace metal_sdpa::python
