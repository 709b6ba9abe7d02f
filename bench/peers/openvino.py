"""OpenVINO's CPU plugin: its ScaledDotProductAttention operator, and the MatMul, SoftMax, MatMul
graph that the plugin fuses into one kernel. Shapes are static and tensors are bound in place."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import openvino as ov
from openvino import opset13 as op

from ..data import Inputs, aligned_empty
from ..shapes import Case
from .base import Bound, Peer, UnsupportedCaseError, fold_queries, folded_mask, needs_mask

TYPES = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16}
# The plugin multiplies f16 in f32 unless the processor has instructions for it.
PRECISIONS = {"f32": "f32", "f16": "f32", "bf16": "bf16"}


def to_tensor(array: np.ndarray) -> ov.Tensor:
    """The same memory as a tensor."""
    if array.dtype.name == "bfloat16":
        return ov.Tensor(array.view(np.uint16), ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


def constant(array: np.ndarray, dtype: ov.Type):
    node = op.constant(array)
    return node if dtype == ov.Type.f32 else op.convert(node, dtype)


def repeat_heads(node, case: Case):
    """K or V [B, Hkv, S, D] repeated in the graph for each query head."""
    if case.group == 1:
        return node
    grouped = [case.B, case.Hkv, case.group, case.S, case.D]
    wide = op.broadcast(op.unsqueeze(node, op.constant([2])), op.constant(grouped))
    return op.reshape(wide, op.constant([case.B, case.Hq, case.S, case.D]), False)


def build_model(case: Case, scale: float, variant: str) -> ov.Model:
    dtype = TYPES[case.dtype]
    folded = variant == "folded"
    q_shape = (case.B, case.Hkv, case.group * case.L) if folded else (case.B, case.Hq, case.L)
    q = op.parameter([*q_shape, case.D], dtype)
    k = op.parameter([case.B, case.Hkv, case.S, case.D], dtype)
    v = op.parameter([case.B, case.Hkv, case.S, case.D], dtype)
    keys, values = (k, v) if folded else (repeat_heads(k, case), repeat_heads(v, case))
    scale_node = constant(np.float32(scale), dtype)
    mask = None
    if needs_mask(case):
        seen = folded_mask(case) if folded else folded_mask(case)[: case.L]
        mask = constant(np.where(seen, 0, -np.inf).astype(np.float32)[None, None], dtype)
    if variant == "sdpa":
        extra = [] if mask is None else [mask, scale_node]  # its own scale is D ** -0.5, too
        out = op.scaled_dot_product_attention(q, keys, values, *extra)
    else:
        scores = op.multiply(op.matmul(q, keys, False, True), scale_node)
        scores = scores if mask is None else op.add(scores, mask)
        out = op.matmul(op.softmax(scores, -1), values, False, False)
    return ov.Model([out], [q, k, v], "attention")


class OpenVino(Peer):
    name = "OpenVINO"
    version = version("openvino")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._core = ov.Core()

    def variants(self, case: Case) -> list[str]:
        if case.S > 32768:
            raise UnsupportedCaseError("the plugin materialises the repeated heads and the scores")
        return ["folded"] if case.L <= 64 and case.group > 1 else ["sdpa", "mha"]

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        case = inputs.case
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[case.dtype],
        }
        model = build_model(case, inputs.scale, variant)
        try:
            compiled = self._core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise UnsupportedCaseError(f"{variant}: {error}") from error
        q = fold_queries(inputs.q, case.Hkv) if variant == "folded" else inputs.q
        out = aligned_empty(q.shape, q.dtype)
        out_tensor, q_tensor = to_tensor(out), to_tensor(q)

        def call_with(k: np.ndarray, v: np.ndarray):
            request = compiled.create_infer_request()
            for index, tensor in enumerate((q_tensor, to_tensor(k), to_tensor(v))):
                request.set_input_tensor(index, tensor)
            request.set_output_tensor(0, out_tensor)
            return request.infer

        calls = [call_with(k, v) for k, v in inputs.caches]
        calls[0]()
        return Bound(calls, lambda: out.reshape(inputs.q.shape))
