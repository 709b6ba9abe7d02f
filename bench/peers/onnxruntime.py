"""ONNX Runtime's contrib operators: GroupQueryAttention with the cache bound in place, and
MultiHeadAttention, each as a model of one node."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from ..data import Inputs, aligned_empty
from ..shapes import Case
from .base import Bound, Peer, UnsupportedCaseError, fold_queries, folded_mask, needs_mask

ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16,
              "int32": TensorProto.INT32}  # fmt: skip
LOG_NOTHING = 4
IR_VERSION = 10

Arrays = dict[str, np.ndarray]


def one_node_session(
    op: str, inputs: Arrays, outputs: Arrays, threads: int, **attributes: object
) -> ort.InferenceSession:
    """A session whose model is one contrib operator with these inputs and outputs."""
    names = list(inputs)
    if "attention_bias" in inputs:
        names[3:3] = ["", ""]  # the projection bias and the padding mask, left out
    node = helper.make_node(op, names, list(outputs), domain="com.microsoft", **attributes)

    def values(arrays: Arrays):
        return [
            helper.make_tensor_value_info(name, ONNX_TYPES[array.dtype.name], array.shape)
            for name, array in arrays.items()
        ]

    graph = helper.make_graph([node], op, values(inputs), values(outputs))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_NOTHING
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def bind_in_place(session: ort.InferenceSession, inputs: Arrays, outputs: Arrays):
    """A call that reads and writes these arrays where they are."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    keep_alive = (inputs, outputs)

    def call() -> None:
        session.run_with_iobinding(binding)

    call.keep_alive = keep_alive
    return call


def rows_of_heads(array: np.ndarray) -> np.ndarray:
    """[B, H, L, D] laid out as [B, L, H * D]."""
    B, H, L, D = array.shape
    out = aligned_empty((B, L, H * D), array.dtype)
    out.reshape(B, L, H, D)[:] = array.transpose(0, 2, 1, 3)
    return out


def heads_of_rows(array: np.ndarray, H: int) -> np.ndarray:
    """[B, L, H * D] seen as [B, H, L, D]."""
    B, L, HD = array.shape
    return array.reshape(B, L, H, HD // H).transpose(0, 2, 1, 3)


class OnnxRuntime(Peer):
    name = "ONNX Runtime"
    version = ort.__version__
    features = frozenset({"window", "softcap", "bias"})

    def variants(self, case: Case) -> list[str]:
        if case.dtype == "bf16":
            raise UnsupportedCaseError("the CPU provider has no bfloat16 attention")
        variants = []
        if case.causal or case.L == 1:
            variants.append("GroupQueryAttention")
        if case.feature.bias:
            if case.dtype != "f32" or case.L != case.S:
                raise UnsupportedCaseError("takes a bias in f32 with L = S alone")
            return ["MultiHeadAttention"]
        if case.dtype == "f32" and not case.feature.needs:
            if case.L == case.S or not case.causal:
                variants.append("MultiHeadAttention")
            if case.L <= 64 and case.L < case.S:
                variants.append("MultiHeadAttention, folded")
        if not variants:
            raise UnsupportedCaseError(
                "MultiHeadAttention is f32 only and GroupQueryAttention always causal"
            )
        return variants

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        binders = {
            "GroupQueryAttention": self._group_query,
            "MultiHeadAttention": self._multi_head,
            "MultiHeadAttention, folded": self._folded,
        }
        try:
            return binders[variant](inputs)
        except Exception as error:
            raise UnsupportedCaseError(f"{variant}: {error}") from error

    def _group_query(self, inputs: Inputs) -> Bound:
        """The new keys are the last L of the cache, which the operator writes where they already
        are: past and present are the same memory."""
        case = inputs.case
        q = rows_of_heads(inputs.q)
        out = aligned_empty(q.shape, q.dtype)
        lengths = np.full(case.B, case.S - 1, dtype=np.int32)
        total = np.array([case.S], dtype=np.int32)
        session = None
        calls = []
        for k, v in inputs.caches:
            new_k, new_v = (rows_of_heads(cache[:, :, case.S - case.L :]) for cache in (k, v))
            arrays = {"query": q, "key": new_k, "value": new_v, "past_key": k, "past_value": v,
                      "seqlens_k": lengths, "total_sequence_length": total}  # fmt: skip
            outputs = {"output": out, "present_key": k, "present_value": v}
            session = session or one_node_session(
                "GroupQueryAttention", arrays, outputs, self.threads,
                num_heads=case.Hq, kv_num_heads=case.Hkv, scale=inputs.scale,
                local_window_size=case.feature.window or -1,
                softcap=case.feature.softcap)  # fmt: skip
            calls.append(bind_in_place(session, arrays, outputs))
        calls[0]()
        return Bound(calls, lambda: heads_of_rows(out, case.Hq))

    def _multi_head(self, inputs: Inputs) -> Bound:
        """Without grouped queries; K and V are repeated for each query head beforehand."""
        case = inputs.case
        q = rows_of_heads(inputs.q)
        out = aligned_empty(q.shape, q.dtype)
        session = None
        calls = []
        for cache in inputs.caches:
            k, v = (rows_of_heads(np.repeat(array, case.group, axis=1)) for array in cache)
            arrays = {"query": q, "key": k, "value": v}
            if inputs.bias is not None:
                arrays["attention_bias"] = inputs.bias[None, None]
            session = session or one_node_session(
                "MultiHeadAttention", arrays, {"output": out}, self.threads,
                num_heads=case.Hq, scale=inputs.scale,
                unidirectional=int(needs_mask(case)))  # fmt: skip
            calls.append(bind_in_place(session, arrays, {"output": out}))
        calls[0]()
        return Bound(calls, lambda: heads_of_rows(out, case.Hq))

    def _folded(self, inputs: Inputs) -> Bound:
        """Cross attention with the query heads of a KV head as its rows."""
        case = inputs.case
        q = rows_of_heads(fold_queries(inputs.q, case.Hkv))
        out = aligned_empty(q.shape, q.dtype)
        bias: Arrays = {}
        if needs_mask(case):
            seen = folded_mask(case)
            mask = np.where(seen, np.float32(0), np.finfo(np.float32).min).astype(np.float32)
            bias = {"attention_bias": mask.reshape(1, 1, *seen.shape)}
        session = None
        calls = []
        for k, v in inputs.caches:
            arrays = {"query": q, "key": k, "value": v, **bias}
            session = session or one_node_session(
                "MultiHeadAttention", arrays, {"output": out}, self.threads,
                num_heads=case.Hkv, scale=inputs.scale)  # fmt: skip
            calls.append(bind_in_place(session, arrays, {"output": out}))
        calls[0]()
        return Bound(calls, lambda: heads_of_rows(out, case.Hkv).reshape(inputs.q.shape))
