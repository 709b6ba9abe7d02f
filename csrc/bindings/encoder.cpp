// CommandEncoder and OpKind.
#include "metal_sdpa/encoder.h"

#include <nanobind/stl/shared_ptr.h>

#include <cstring>

#include "bindings.h"
#include "convert.h"
#include "core/backend.h"
#include "device.h"
#include "errors.h"
#include "interrupts.h"
#include "metal_sdpa/graph.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kEncode = "encode_threadgroups";

/// The entries of a sequence argument.
std::vector<nb::object> entries(Argument argument, nb::handle value, const char* wanted) {
  const nb::object list = entries_of(value);
  if (!list.is_valid()) fail_type(argument, value, wanted);
  std::vector<nb::object> found;
  for (const nb::handle entry : nb::borrow<nb::list>(list)) found.push_back(nb::borrow(entry));
  return found;
}

std::vector<nb::object> entries_of_size(Argument argument, nb::handle value, std::size_t size,
                                        const char* wanted) {
  std::vector<nb::object> found = entries(argument, value, wanted);
  if (found.size() != size) {
    fail_argument(argument.call, ": ", argument.name, ": got ", found.size(), " entries, takes ",
                  wanted);
  }
  return found;
}

InlineBytes to_bytes(Argument argument, nb::handle value, const char* wanted) {
  Py_buffer view;
  if (PyObject_GetBuffer(value.ptr(), &view, PyBUF_SIMPLE) != 0) {
    drop_python_error();
    fail_type(argument, value, wanted);
  }
  const auto* first = static_cast<const std::byte*>(view.buf);
  InlineBytes bytes(first, first + view.len);
  PyBuffer_Release(&view);
  return bytes;
}

std::vector<Binding> to_bindings(nb::handle value) {
  constexpr Argument argument{kEncode, "bindings"};
  constexpr const char* kWanted = "a sequence of (index, Buffer or bytes)";
  std::vector<Binding> bindings;
  for (const nb::object& entry : entries(argument, value, kWanted)) {
    const std::vector<nb::object> pair = entries_of_size(argument, entry, 2, kWanted);
    Binding binding;
    binding.index = static_cast<std::uint32_t>(to_int_between(argument, pair[0], 0, UINT32_MAX));
    if (nb::isinstance<Buffer>(pair[1])) {
      binding.value = nb::cast<Buffer&>(pair[1]);
    } else {
      binding.value = to_bytes(argument, pair[1], kWanted);
    }
    bindings.push_back(std::move(binding));
  }
  return bindings;
}

std::vector<ThreadgroupMemory> to_threadgroup_memory(nb::handle value) {
  constexpr Argument argument{kEncode, "threadgroup_memory"};
  constexpr const char* kWanted = "a sequence of (index, bytes)";
  std::vector<ThreadgroupMemory> memory;
  if (value.is_none()) return memory;
  for (const nb::object& entry : entries(argument, value, kWanted)) {
    const std::vector<nb::object> pair = entries_of_size(argument, entry, 2, kWanted);
    memory.push_back(
        {static_cast<std::uint32_t>(to_int_between(argument, pair[0], 0, UINT32_MAX)),
         static_cast<std::uint32_t>(to_int_between(argument, pair[1], 0, UINT32_MAX))});
  }
  return memory;
}

DeclaredRanges to_ranges(Argument argument, nb::handle value) {
  constexpr const char* kWanted = "None or a sequence of (Buffer, offset, length)";
  if (value.is_none()) return std::nullopt;
  std::vector<BufferRange> ranges;
  for (const nb::object& entry : entries(argument, value, kWanted)) {
    const std::vector<nb::object> parts = entries_of_size(argument, entry, 3, kWanted);
    ranges.push_back({to_object<Buffer>(argument, parts[0], kWanted), to_size(argument, parts[1]),
                      to_size(argument, parts[2])});
  }
  return ranges;
}

void encode_threadgroups(CommandEncoder& encoder, nb::handle pipeline, nb::handle bindings,
                         nb::handle threadgroups, nb::handle threadgroup_size,
                         nb::handle threadgroup_memory, nb::handle reads, nb::handle writes) {
  if (!nb::isinstance<Pipeline>(pipeline)) {
    fail_type({kEncode, "pipeline"}, pipeline, "a Pipeline");
  }
  DispatchOptions options;
  options.threadgroup_memory = to_threadgroup_memory(threadgroup_memory);
  options.reads = to_ranges({kEncode, "reads"}, reads);
  options.writes = to_ranges({kEncode, "writes"}, writes);
  encoder.encode_threadgroups(nb::cast<std::shared_ptr<Pipeline>>(pipeline), to_bindings(bindings),
                              to_grid({kEncode, "threadgroups"}, threadgroups),
                              to_grid({kEncode, "threadgroup_size"}, threadgroup_size), options);
}

void bind_op_kind(nb::module_& module) {
  nb::enum_<OpKind>(module, "OpKind",
                    "What a dispatch computes; `Graph.reorder` moves only rms_norm, elem_mul and "
                    "elem_add.")
      .value("rms_norm", OpKind::rms_norm)
      .value("elem_mul", OpKind::elem_mul)
      .value("elem_add", OpKind::elem_add)
      .value("sdpa", OpKind::sdpa)
      .value("softmax", OpKind::softmax)
      .value("other", OpKind::other);
}

void bind_recording(nb::class_<CommandEncoder>& encoder) {
  encoder
      .def("encode_threadgroups", &encode_threadgroups, nb::arg("pipeline").none(),
           nb::arg("bindings").none(), nb::arg("threadgroups").none(),
           nb::arg("threadgroup_size").none(), nb::kw_only(),
           nb::arg("threadgroup_memory") = nb::none(), nb::arg("reads") = nb::none(),
           nb::arg("writes") = nb::none(),
           nb::sig("def encode_threadgroups(self, pipeline: Pipeline, "
                   "bindings: Sequence[tuple[int, Buffer | BytesLike]], "
                   "threadgroups: int | Sequence[int], threadgroup_size: int | Sequence[int], *, "
                   "threadgroup_memory: Sequence[tuple[int, int]] | None = None, "
                   "reads: Sequence[tuple[Buffer, int, int]] | None = None, "
                   "writes: Sequence[tuple[Buffer, int, int]] | None = None) -> None"),
           "Records one dispatch, behind a barrier where its ranges conflict with dispatches since "
           "the last one.\n\n`bindings` are (index, Buffer or bytes up to 4096); "
           "`threadgroup_memory` is (index, bytes).\n`reads` and `writes` are (Buffer, offset, "
           "length) in bytes: None is undeclared and conflicts with\neverything, [] touches "
           "nothing. InvalidArgument for a bad index or range, an index bound twice, a\nbuffer of "
           "another device, a zero or too large grid, bytes over the limit.")
      .def(
          "set_op_kind",
          [](CommandEncoder& self, nb::handle kind) {
            if (!nb::isinstance<OpKind>(kind))
              fail_type({"set_op_kind", "kind"}, kind, "an OpKind");
            self.set_op_kind(nb::cast<OpKind>(kind));
          },
          nb::arg("kind").none(), nb::sig("def set_op_kind(self, kind: OpKind) -> None"),
          "Tags the next encode, and only that one.")
      .def("memory_barrier", &CommandEncoder::memory_barrier,
           "Everything before it completes before anything after it starts.")
      .def_prop_ro("barrier_count", &CommandEncoder::barrier_count,
                   "Barriers placed so far, by hand or by the hazard tracker; those of a capture "
                   "do not count.")
      .def("begin_capture", &CommandEncoder::begin_capture,
           "From here on encodes are recorded into a graph and nothing is encoded.")
      .def("end_capture", &CommandEncoder::end_capture, "The Graph of what was recorded.")
      .def_prop_ro("capturing", &CommandEncoder::capturing, "Whether a capture is open.");
}

}  // namespace

void bind_encoder(nb::module_& module) {
  bind_op_kind(module);
  nb::class_<CommandEncoder> encoder(
      module, "CommandEncoder",
      "Records dispatches into one command buffer, places barriers, commits.\n\nOne-shot and for "
      "one thread at a time. A call in the wrong state is InvalidArgument. An encoder\nthat is "
      "dropped uncommitted is discarded.");
  encoder
      .def(
          "__init__",
          [](CommandEncoder* self, nb::handle device) {
            new (self) CommandEncoder(to_device({"CommandEncoder", "device"}, device));
          },
          nb::arg("device").none(), nb::sig("def __init__(self, device: Device | str) -> None"))
      .def(
          "commit", [](CommandEncoder& self) { without_gil([&self] { self.commit(); }); },
          "Hands the command buffer to the device's in-order queue and returns.")
      .def(
          "wait_until_completed",
          [](CommandEncoder& self) { without_gil([&self] { self.wait_until_completed(); }); },
          "Waits for it; raises its error (CommandBufferError).")
      .def(
          "commit_and_wait",
          [](CommandEncoder& self) { without_gil([&self] { self.commit_and_wait(); }); },
          "commit and wait_until_completed; on the calling thread where the CPU queue is idle.")
      .def_prop_ro("gpu_time_s", &CommandEncoder::gpu_time_s,
                   "Seconds that the device spent on it; InvalidArgument before it is completed.")
      .def_prop_ro(
          "device", [](const CommandEncoder& self) { return self.device(); },
          nb::sig("def device(self) -> Device"));
  bind_recording(encoder);
}

}  // namespace metal_sdpa::python
