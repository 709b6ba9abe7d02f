"""OpenVINO's CPU plugin, in the ways of openvino_models.py; tensors are bound in place."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import openvino as ov

from ..data import Inputs, aligned_empty
from ..shapes import Case
from . import openvino_models as models
from .base import Bound, Peer, needs_mask

# The plugin multiplies f16 in f32 unless the processor has instructions for it.
PRECISIONS = {"f32": "f32", "f16": "f32", "bf16": "bf16"}
STATEFUL_FROM = 512  # keys: below, the key that each call appends would change the case

BUILDERS = {
    "parts": models.parts_model,
    "operator": models.operator_model,
    "grouped": models.grouped_model,
    "folded": models.folded_model,
    "stateful": models.stateful_model,
}


def to_tensor(array: np.ndarray) -> ov.Tensor:
    """The same memory as a tensor, which does not keep the array alive."""
    if array.dtype.name == "bfloat16":
        return ov.Tensor(array.view(np.uint16), ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


class OpenVino(Peer):
    name = "OpenVINO"
    version = version("openvino")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._core = ov.Core()

    def variants(self, case: Case) -> list[str]:
        if case.L > 64:
            # The operator's causal attribute aligns the first query with the first key.
            fits = case.L == case.S or not needs_mask(case)
            return ["parts", "operator"] if fits else ["parts"]
        variants = ["grouped", "folded"] if case.group > 1 else ["parts"]
        if case.L == 1 and case.S >= STATEFUL_FROM:
            variants.append("stateful")
        return variants

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        case = inputs.case
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[case.dtype],
            "KV_CACHE_PRECISION": case.dtype,
        }
        model = BUILDERS[variant](case, inputs.scale)
        compiled = self._core.compile_model(model, "CPU", settings)
        if variant == "stateful":
            return self._bind_stateful(inputs, compiled)
        q_shape = tuple(model.inputs[0].partial_shape.get_max_shape())
        if variant == "operator":
            q_shape = inputs.q.shape
        q = inputs.q.reshape(q_shape)
        out = aligned_empty(q.shape, q.dtype)
        out_tensor, q_tensor = to_tensor(out), to_tensor(q)

        def call_with(k: np.ndarray, v: np.ndarray):
            if variant == "grouped":
                k, v = np.expand_dims(k, 2), np.expand_dims(v, 2)
            request = compiled.create_infer_request()
            for index, tensor in enumerate((q_tensor, to_tensor(k), to_tensor(v))):
                request.set_input_tensor(index, tensor)
            request.set_output_tensor(0, out_tensor)
            return request.infer

        calls = [call_with(k, v) for k, v in inputs.caches]
        return Bound(calls, lambda: out.reshape(inputs.q.shape))

    @staticmethod
    def _bind_stateful(inputs: Inputs, compiled: ov.CompiledModel) -> Bound:
        """Each cache is the state of a request of its own; its last key and value are what the
        first call appends. Later calls append them again, so S grows by one a call."""
        f32 = np.dtype(np.float32)
        q = ov.Tensor(inputs.q.astype(f32))
        beams = ov.Tensor(np.arange(inputs.case.B, dtype=np.int32))

        def request_with(k: np.ndarray, v: np.ndarray) -> ov.InferRequest:
            request = compiled.create_infer_request()
            past = {"past_k": k, "past_v": v}
            for state in request.query_state():
                state.state = ov.Tensor(past[state.name][:, :, :-1].astype(f32))
            new_k, new_v = (ov.Tensor(cache[:, :, -1:].astype(f32)) for cache in (k, v))
            for index, tensor in enumerate((q, new_k, new_v, beams)):
                request.set_input_tensor(index, tensor)
            return request

        requests = [request_with(k, v) for k, v in inputs.caches]
        calls = [request.infer for request in requests]
        return Bound(calls, lambda: requests[0].get_output_tensor(0).data)
