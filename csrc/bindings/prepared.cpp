// prepare() and Prepared.
#include "metal_sdpa/prepared.h"

#include "bindings.h"
#include "convert.h"
#include "parameters.h"
#include "prepared_call.h"

namespace metal_sdpa::python {
namespace {

KeyRows keys_of(nb::handle call) {
  const std::string name = to_text({"prepare", "call"}, call);
  if (const std::optional<KeyRows> keys = find_call(name)) return *keys;
  fail_argument("prepare: call: \"", name, "\", takes \"sdpa\", \"sdpa_varlen\" or \"sdpa_paged\"");
}

/// Python takes it over.
PreparedCall* prepare(const nb::args& given, const nb::kwargs& options) {
  if (given.size() == 0) {
    PyErr_SetString(PyExc_TypeError, "prepare: call: is missing");
    nb::raise_python_error();
  }
  const KeyRows keys = keys_of(given[0]);
  std::vector<PyObject*> values;
  for (std::size_t i = 1; i < given.size(); ++i) values.push_back(nb::handle(given[i]).ptr());
  const auto n_positional = static_cast<Py_ssize_t>(values.size());
  nb::list names;
  nb::handle kv_capacity;
  for (const auto& [key, value] : options) {
    if (PyUnicode_CompareWithASCIIString(key.ptr(), "kv_capacity") == 0) {
      kv_capacity = value;
      continue;
    }
    names.append(key);
    values.push_back(value.ptr());
  }
  const nb::tuple keywords(names);
  const SdpaCall call =
      parse_sdpa_call(call_name(keys), keys, values.data(), n_positional, keywords.ptr());
  const bool has_capacity = kv_capacity.is_valid() && !kv_capacity.is_none();
  return new PreparedCall(call, has_capacity ? kv_capacity.ptr() : nullptr);
}

Buffer scratch_buffer(const char* call, nb::handle scratch) {
  if (scratch.is_none()) return {};
  return to_object<Buffer>({call, "scratch"}, scratch, "a Buffer or None");
}

nb::object run(const PreparedCall& self, nb::handle q, nb::handle k, nb::handle v, nb::handle out,
               nb::handle mask, nb::handle sinks, nb::handle alibi_slopes, nb::handle scratch) {
  return self.run({q, k, v, out, mask, sinks, alibi_slopes}, scratch_buffer("run", scratch));
}

void encode(const PreparedCall& self, nb::handle encoder, nb::handle registry, nb::handle operands,
            nb::handle scratch) {
  auto& target = to_object<CommandEncoder>({"encode", "encoder"}, encoder, "a CommandEncoder");
  auto& kernels = to_object<KernelRegistry>({"encode", "registry"}, registry, "a KernelRegistry");
  const auto& memory = to_object<SdpaOperands>({"encode", "operands"}, operands, "SdpaOperands");
  self.encode(target, kernels, memory, scratch_buffer("encode", scratch));
}

std::string describe(const PreparedCall& self) {
  const SdpaProblem problem = self.problem();
  return text_of("Prepared(\"", self.name(), "\", batch=", problem.batch,
                 ", n_heads=", problem.n_heads, ", kv_capacity=", self.kv_capacity(), ")");
}

}  // namespace

void bind_prepared(nb::module_& module) {
  nb::class_<PreparedCall>(
      module, "Prepared",
      "A call that is checked and planned once and run on the arrays of many layers; from "
      "prepare().\nSafe from any thread; a run that is under way keeps the schedule that it began "
      "with. Of "
      "two update() at\nonce, one may undo what the other changed.")
      .def("run", &run, nb::arg("q").none(), nb::arg("k").none(), nb::arg("v").none(),
           nb::arg("out").none() = nb::none(), nb::kw_only(), nb::arg("mask").none() = nb::none(),
           nb::arg("sinks").none() = nb::none(), nb::arg("alibi_slopes").none() = nb::none(),
           nb::arg("scratch").none() = nb::none(),
           nb::sig("def run(self, q: ArrayT, k: Array, v: Array, out: ArrayT | None = None, *, "
                   "mask: Array | None = None, sinks: Array | None = None, "
                   "alibi_slopes: Array | None = None, scratch: Buffer | None = None) -> Any"),
           "The prepared call on these arrays; waits. Returns what that call does, with its "
           "bits.\n\nDtypes, shapes and strides are those prepared for; so is `out`, where one "
           "was given then.\nmask, sinks and alibi_slopes: this layer's; default: those prepared "
           "with. `scratch`: a Buffer of\nscratch_bytes or more that nothing else uses "
           "meanwhile.\n\nErrors: InvalidArgument for arrays that differ from those prepared "
           "for; those of the call.")
      .def("encode", &encode, nb::arg("encoder").none(), nb::arg("registry").none(),
           nb::arg("operands").none(), nb::kw_only(), nb::arg("scratch").none() = nb::none(),
           nb::sig("def encode(self, encoder: CommandEncoder, registry: KernelRegistry, "
                   "operands: SdpaOperands, *, scratch: Buffer | None = None) -> None"),
           "Records the call on Buffers laid out like the arrays prepared for; in a capture it is "
           "a node as\nencode_sdpa() makes it. Without a block_table in `operands` the prepared "
           "one is read.")
      .def("update", &PreparedCall::update, nb::arg("changes"),
           nb::sig("def update(self, *, kv_lengths: int | Sequence[int] | Array = ..., "
                   "block_table: Array = ..., "
                   "q_start: int | Sequence[int] | Array | None = ..., causal: bool = ..., "
                   "window: int | tuple[int | None, int | None] | None = ..., "
                   "kv_starts: int | Sequence[int] | Array = ..., "
                   "query_lengths: int | Sequence[int] | Array | None = ..., "
                   "key_offset: int = ..., key_stride: int = ...) -> None"),
           "Moves to the next step: plans anew for other lengths, starts or windows, within "
           "kv_capacity; what\nis not given stays. block_table: another array of the same dtype, "
           "shape and strides. Without one the\nprepared array, which may have been written to, "
           "is checked again.\n\nInvalidArgument, and nothing changes, for what the call does not "
           "take.")
      .def_prop_ro("kv_capacity", &PreparedCall::kv_capacity,
                   "Keys that update() may bring a sequence to.")
      .def_prop_ro(
          "scratch_bytes", &PreparedCall::scratch_bytes,
          "Bytes of a `scratch` that are enough until the next update(), which may want more: read "
          "it again then.\n0: none is used.")
      .def_prop_ro("problem", &PreparedCall::problem, "A copy of the problem as it is now.")
      .def_prop_ro("plan", &PreparedCall::plan, "What runs, in words.")
      .def("__repr__", &describe);
  module.def(
      "prepare", &prepare, nb::arg("arguments"), nb::arg("options"), nb::rv_policy::take_ownership,
      nb::sig("def prepare(call: Literal[\"sdpa\", \"sdpa_varlen\", \"sdpa_paged\"], /, "
              "*arguments: Any, kv_capacity: int | None = None, **options: Any) -> Prepared"),
      "Checks and plans a call once, for all layers of an engine's step. Nothing runs.\n\n"
      "`arguments` and `options` are those of the call that `call` names. Of q, k, v and out only "
      "dtypes,\nshapes and strides are kept; masks, sinks, slopes and the block table stay in use. "
      "kv_capacity: keys\nthat update() may bring a sequence to. Default: as many as k, or the "
      "block table, reaches, and the\nmask.\n\n"
      "    step = prepare(\"sdpa_paged\", q, k_pages, v_pages, block_table, kv_lengths)\n"
      "    for layer in layers:\n"
      "        step.run(layer.q, layer.k_pages, layer.v_pages, layer.out)\n"
      "    step.update(kv_lengths=kv_lengths + 1)\n\n"
      "Page numbers are checked here and in update(), not in run(). On Metal a table in host "
      "memory "
      "is\ncopied then: what is written into it afterwards counts from the next "
      "update().\n\nErrors: those of the call.");
}

}  // namespace metal_sdpa::python
