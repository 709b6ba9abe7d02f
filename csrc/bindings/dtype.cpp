// DType.
#include "metal_sdpa/dtype.h"

#include "bindings.h"
#include "convert.h"

namespace metal_sdpa::python {

void bind_dtype(nb::module_& module) {
  nb::enum_<DType>(module, "DType", "Element type of a buffer.")
      .value("f32", DType::f32, "IEEE 754 binary32")
      .value("f16", DType::f16, "IEEE 754 binary16")
      .value("bf16", DType::bf16, "bfloat16: the upper half of a binary32")
      .value("u8", DType::u8)
      .value("u16", DType::u16)
      .value("u32", DType::u32)
      .value("i32", DType::i32)
      .value("i64", DType::i64)
      .def_prop_ro("itemsize", &dtype_size, "Bytes of one element.");
  module.def(
      "as_dtype", [](nb::handle dtype) { return to_dtype({"as_dtype", "dtype"}, dtype); },
      nb::arg("dtype").none(),
      "The DType of a name (\"f32\", \"float32\") or of a dtype of NumPy, ml_dtypes, torch, JAX or "
      "MLX.\n\nUnsupportedDType for any other.");
}

}  // namespace metal_sdpa::python
