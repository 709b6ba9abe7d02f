// The engine's front end: SdpaParams and encode_sdpa.
#include "bindings.h"
#include "convert.h"
#include "interrupts.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kParams = "SdpaParams";
constexpr const char* kEncode = "encode_sdpa";

SdpaParams make_params(nb::handle n_heads, nb::handle n_kv_heads, nb::handle head_dim,
                       nb::handle seq_len, nb::handle kv_seq_len, nb::handle scale,
                       nb::handle kv_capacity, nb::handle do_causal) {
  SdpaParams params;
  params.n_heads = to_int64({kParams, "n_heads"}, n_heads);
  params.n_kv_heads = to_int64({kParams, "n_kv_heads"}, n_kv_heads);
  params.head_dim = to_int64({kParams, "head_dim"}, head_dim);
  params.seq_len = to_int64({kParams, "seq_len"}, seq_len);
  params.kv_seq_len = to_int64({kParams, "kv_seq_len"}, kv_seq_len);
  params.scale = static_cast<float>(to_double({kParams, "scale"}, scale));
  params.kv_capacity = to_int64({kParams, "kv_capacity"}, kv_capacity);
  params.do_causal = to_bool({kParams, "do_causal"}, do_causal);
  return params;
}

std::string describe(const SdpaParams& p) {
  return text_of(kParams, "(n_heads=", p.n_heads, ", n_kv_heads=", p.n_kv_heads,
                 ", head_dim=", p.head_dim, ", seq_len=", p.seq_len, ", kv_seq_len=", p.kv_seq_len,
                 ", scale=", p.scale, ", kv_capacity=", p.kv_capacity,
                 ", do_causal=", p.do_causal ? "True" : "False", ")");
}

/// The class, a subclass of Python's included, and the arguments that make another like it.
nb::tuple reduce(nb::handle self) {
  const SdpaParams& p = nb::cast<const SdpaParams&>(self);
  return nb::make_tuple(self.type(),
                        nb::make_tuple(p.n_heads, p.n_kv_heads, p.head_dim, p.seq_len, p.kv_seq_len,
                                       p.scale, p.kv_capacity, p.do_causal));
}

using ParamsClass = nb::class_<SdpaParams>;

template <std::int64_t SdpaParams::* Field>
void bind_extent(ParamsClass& params, const char* name, const char* setter, const char* doc) {
  params.def_prop_rw(
      name, [](const SdpaParams& self) { return self.*Field; },
      [name](SdpaParams& self, nb::handle value) {
        self.*Field = to_int64({kParams, name}, value);
      },
      nb::for_setter(nb::arg("value").none()), nb::for_setter(nb::sig(setter)), doc);
}

void bind_params(nb::module_& module) {
  ParamsClass params(module, kParams,
                     "One attention problem of an engine: packed row-major q and output\n[batch, "
                     "n_heads, seq_len, head_dim], k and v [batch, n_kv_heads, kv_capacity, "
                     "head_dim].");
  params.def(
      "__init__",
      [](SdpaParams* self, nb::handle n_heads, nb::handle n_kv_heads, nb::handle head_dim,
         nb::handle seq_len, nb::handle kv_seq_len, nb::handle scale, nb::handle kv_capacity,
         nb::handle do_causal) {
        new (self) SdpaParams(make_params(n_heads, n_kv_heads, head_dim, seq_len, kv_seq_len, scale,
                                          kv_capacity, do_causal));
      },
      nb::arg("n_heads").none(), nb::arg("n_kv_heads").none(), nb::arg("head_dim").none(),
      nb::arg("seq_len").none(), nb::arg("kv_seq_len").none(), nb::arg("scale").none() = 1.0,
      nb::arg("kv_capacity").none() = 0, nb::arg("do_causal").none() = true,
      nb::sig("def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, seq_len: int, "
              "kv_seq_len: int, scale: float = 1.0, kv_capacity: int = 0, "
              "do_causal: bool = True) -> None"));
  bind_extent<&SdpaParams::n_heads>(params, "n_heads", "def n_heads(self, value: int, /) -> None",
                                    "Hq, a multiple of n_kv_heads.");
  bind_extent<&SdpaParams::n_kv_heads>(params, "n_kv_heads",
                                       "def n_kv_heads(self, value: int, /) -> None", "Hkv.");
  bind_extent<&SdpaParams::head_dim>(params, "head_dim",
                                     "def head_dim(self, value: int, /) -> None", "D.");
  bind_extent<&SdpaParams::seq_len>(params, "seq_len", "def seq_len(self, value: int, /) -> None",
                                    "L, queries a sequence.");
  bind_extent<&SdpaParams::kv_seq_len>(
      params, "kv_seq_len", "def kv_seq_len(self, value: int, /) -> None", "Keys in use.");
  bind_extent<&SdpaParams::kv_capacity>(params, "kv_capacity",
                                        "def kv_capacity(self, value: int, /) -> None",
                                        "Rows of k and v a head; 0 means kv_seq_len.");
  params
      .def_prop_rw(
          "scale", [](const SdpaParams& self) { return self.scale; },
          [](SdpaParams& self, nb::handle value) {
            self.scale = static_cast<float>(to_double({kParams, "scale"}, value));
          },
          nb::for_setter(nb::arg("value").none()),
          nb::for_setter(nb::sig("def scale(self, value: float, /) -> None")), "Of the scores.")
      .def_prop_rw(
          "do_causal", [](const SdpaParams& self) { return self.do_causal; },
          [](SdpaParams& self, nb::handle value) {
            self.do_causal = to_bool({kParams, "do_causal"}, value);
          },
          nb::for_setter(nb::arg("value").none()),
          nb::for_setter(nb::sig("def do_causal(self, value: bool, /) -> None")),
          "Query i stands at kv_seq_len - seq_len + i (signed) and sees keys up to there.")
      .def("validate", &SdpaParams::validate,
           "InvalidArgument, naming the field, unless every device could run it.")
      .def("__reduce__", &reduce, nb::sig("def __reduce__(self) -> tuple[Any, ...]"),
           "For copy and pickle.")
      .def("__repr__", &describe);
}

void encode(nb::handle encoder, nb::handle registry, nb::handle device, nb::handle q, nb::handle k,
            nb::handle v, nb::handle output, nb::handle params, nb::handle batch_size) {
  auto& target = to_object<CommandEncoder>({kEncode, "encoder"}, encoder, "a CommandEncoder");
  auto& kernels = to_object<KernelRegistry>({kEncode, "registry"}, registry, "a KernelRegistry");
  auto& owner = to_object<Device>({kEncode, "device"}, device, "a Device");
  const Buffer& q_buffer = to_object<Buffer>({kEncode, "q"}, q, "a Buffer");
  const Buffer& k_buffer = to_object<Buffer>({kEncode, "k"}, k, "a Buffer");
  const Buffer& v_buffer = to_object<Buffer>({kEncode, "v"}, v, "a Buffer");
  const Buffer& out_buffer = to_object<Buffer>({kEncode, "output"}, output, "a Buffer");
  const auto& problem = to_object<SdpaParams>({kEncode, "params"}, params, "SdpaParams");
  const std::int64_t batch = to_int64({kEncode, "batch_size"}, batch_size);
  without_gil([&] {
    encode_sdpa(target, kernels, owner, q_buffer, k_buffer, v_buffer, out_buffer, problem, batch);
  });
}

void encode_problem(nb::handle encoder, nb::handle registry, nb::handle device, nb::handle operands,
                    nb::handle problem) {
  auto& target = to_object<CommandEncoder>({kEncode, "encoder"}, encoder, "a CommandEncoder");
  auto& kernels = to_object<KernelRegistry>({kEncode, "registry"}, registry, "a KernelRegistry");
  auto& owner = to_object<Device>({kEncode, "device"}, device, "a Device");
  const auto& memory = to_object<SdpaOperands>({kEncode, "operands"}, operands, "SdpaOperands");
  const auto& posed = to_object<SdpaProblem>({kEncode, "problem"}, problem, "an SdpaProblem");
  without_gil([&] { encode_sdpa(target, kernels, owner, memory, posed); });
}

}  // namespace

void bind_encode_sdpa(nb::module_& module) {
  bind_params(module);
  module.def(
      "encode_sdpa", &encode, nb::arg("encoder").none(), nb::arg("registry").none(),
      nb::arg("device").none(), nb::arg("q").none(), nb::arg("k").none(), nb::arg("v").none(),
      nb::arg("output").none(), nb::arg("params").none(), nb::arg("batch_size").none(),
      nb::sig("def encode_sdpa(encoder: CommandEncoder, registry: KernelRegistry, device: Device, "
              "q: Buffer, k: Buffer, v: Buffer, output: Buffer, params: SdpaParams, "
              "batch_size: int) -> None"),
      "Validates, plans and records attention; the caller commits.\n\nq and output [batch_size, "
      "n_heads, seq_len, head_dim], k and v [batch_size, n_kv_heads, kv_capacity,\nhead_dim], "
      "packed row-major, all f32, f16 or bf16. Nothing is recorded where a check fails.");
  module.def("encode_sdpa", &encode_problem, nb::arg("encoder").none(), nb::arg("registry").none(),
             nb::arg("device").none(), nb::arg("operands").none(), nb::arg("problem").none(),
             nb::sig("def encode_sdpa(encoder: CommandEncoder, registry: KernelRegistry, "
                     "device: Device, operands: SdpaOperands, problem: SdpaProblem) -> None"),
             "The same with layouts, lengths, lse and every feature. The memory stays alive until "
             "the work is\ndone.");
}

}  // namespace metal_sdpa::python
