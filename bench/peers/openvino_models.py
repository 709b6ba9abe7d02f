"""Attention as graphs of OpenVINO: one builder for each way that its CPU plugin has a kernel for.

Each takes a case and its scale and returns a model with inputs q, k, v (and more, as it says).
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset6, opset13

from ..shapes import Case
from .base import folded_mask, needs_mask

TYPES = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16}
NEW_AXIS = 2  # of [B, Hkv, S, D]: the query heads that share a KV head


def constant(array: np.ndarray, dtype: ov.Type):
    node = opset13.constant(array)
    return node if dtype == ov.Type.f32 else opset13.convert(node, dtype)


def additive_mask(case: Case, folded: bool):
    """0 where a query sees a key and -inf elsewhere, or None where all see all."""
    if not needs_mask(case):
        return None
    seen = folded_mask(case) if folded else folded_mask(case)[: case.L]
    return constant(np.where(seen, 0, -np.inf).astype(np.float32), TYPES[case.dtype])


def fused_from_parts(case: Case, scale: float, q, k, v, folded: bool = False):
    """MatMul, SoftMax, MatMul, which the plugin turns into one kernel."""
    scores = opset13.matmul(q, k, False, True)
    scores = opset13.multiply(scores, constant(np.float32(scale), TYPES[case.dtype]))
    mask = additive_mask(case, folded)
    scores = scores if mask is None else opset13.add(scores, mask)
    return opset13.matmul(opset13.softmax(scores, -1), v, False, False)


def repeat_heads(node, case: Case):
    """[B, Hkv, S, D] of any length S as [B, Hq, S, D]: the pattern in which the plugin recognises
    grouped queries."""
    if case.group == 1:
        return node
    length = opset13.gather(
        opset13.shape_of(node), opset13.constant([2]), opset13.constant(np.int64(0))
    )
    head, tail = [case.B, case.Hkv, case.group], [case.D]
    shape = opset13.concat([opset13.constant(head), length, opset13.constant(tail)], 0)
    wide = opset13.unsqueeze(node, opset13.constant([NEW_AXIS]))
    wide = opset13.broadcast(wide, shape, broadcast_spec="BIDIRECTIONAL")
    return opset13.reshape(wide, opset13.constant([0, case.Hq, -1, case.D]), True)


def parts_model(case: Case, scale: float) -> ov.Model:
    """Static shapes, K and V repeated in the graph for each query head."""
    dtype = TYPES[case.dtype]
    q = opset13.parameter([case.B, case.Hq, case.L, case.D], dtype)
    k, v = (opset13.parameter([case.B, case.Hkv, case.S, case.D], dtype) for _ in range(2))
    out = fused_from_parts(case, scale, q, repeat_heads(k, case), repeat_heads(v, case))
    return ov.Model([out], [q, k, v], "parts")


def operator_model(case: Case, scale: float) -> ov.Model:
    """ScaledDotProductAttention with lengths that are known at the call only: then the plugin keeps
    the operator, and masks by its attribute. Its own scale is D ** -0.5."""
    dtype = TYPES[case.dtype]
    q = opset13.parameter(ov.PartialShape([case.B, case.Hq, -1, case.D]), dtype)
    kv_shape = ov.PartialShape([case.B, case.Hkv, -1, case.D])
    k, v = (opset13.parameter(kv_shape, dtype) for _ in range(2))
    out = opset13.scaled_dot_product_attention(
        q, repeat_heads(k, case), repeat_heads(v, case), causal=needs_mask(case)
    )
    return ov.Model([out], [q, k, v], "operator")


def grouped_model(case: Case, scale: float) -> ov.Model:
    """q [B, Hkv, G, L, D] against k and v [B, Hkv, 1, S, D], repeated by the MatMul itself."""
    dtype = TYPES[case.dtype]
    q = opset13.parameter([case.B, case.Hkv, case.group, case.L, case.D], dtype)
    k, v = (opset13.parameter([case.B, case.Hkv, 1, case.S, case.D], dtype) for _ in range(2))
    return ov.Model([fused_from_parts(case, scale, q, k, v)], [q, k, v], "grouped")


def folded_model(case: Case, scale: float) -> ov.Model:
    """q [B, Hkv, G * L, D]: the query heads of a KV head are its rows."""
    dtype = TYPES[case.dtype]
    q = opset13.parameter([case.B, case.Hkv, case.group * case.L, case.D], dtype)
    k, v = (opset13.parameter([case.B, case.Hkv, case.S, case.D], dtype) for _ in range(2))
    return ov.Model([fused_from_parts(case, scale, q, k, v, folded=True)], [q, k, v], "folded")


def stateful_model(case: Case, scale: float) -> ov.Model:
    """The graph of a language model's decode step: the caches are states of the request (named
    past_k and past_v) to which a call appends one key and value. Inputs q, new_k, new_v in f32, as
    such models have them, and the beam of each sequence."""
    f32 = ov.Type.f32
    q = opset13.parameter(ov.PartialShape([case.B, case.Hq, -1, case.D]), f32)
    any_length = ov.PartialShape([case.B, case.Hkv, -1, case.D])
    new = [opset13.parameter(any_length, f32) for _ in range(2)]
    beam = opset13.parameter([case.B], ov.Type.i32)
    sinks, caches = [], []
    for name, appended in zip(("past_k", "past_v"), new, strict=True):
        empty = opset13.constant(np.zeros((case.B, case.Hkv, 0, case.D), dtype=np.float32))
        past = opset6.read_value(empty, name, f32, any_length)
        past = opset13.gather(past, beam, opset13.constant(np.int32(0)))
        cache = opset13.concat([past, appended], NEW_AXIS)
        sinks.append(opset6.assign(cache, name))
        caches.append(repeat_heads(cache, case))
    out = opset13.scaled_dot_product_attention(q, *caches)
    return ov.Model([opset13.result(out)], sinks, [q, *new, beam], "stateful")
