"""The Attention operator for onnx.reference.ReferenceEvaluator:

ReferenceEvaluator(model, new_ops=[Attention])
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from onnx.reference.ops import op_attention

from metal_sdpa import sdpa

Array: TypeAlias = np.ndarray[Any, Any]

_OUTPUTS_WITH_SCORES = 4


class Attention(op_attention.Attention):  # type: ignore[misc]
    """Attention of the ONNX standard, opsets 23 to 25, with Y from `metal_sdpa.sdpa`.

    Scores, softmax and sums are in f32 whatever `softmax_precision` says. The scores themselves
    (qk_matmul_output) are never formed by this library; onnx's own NumPy code computes them where a
    model asks for them. UnsupportedDType for float64.
    """

    op_domain = ""

    def _run(
        self,
        Q: Array,
        K: Array,
        V: Array,
        attn_mask: Array | None = None,
        past_key: Array | None = None,
        past_value: Array | None = None,
        nonpad_kv_seqlen: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        inputs = (attn_mask, past_key, past_value, nonpad_kv_seqlen)
        kv_heads = attributes.get("kv_num_heads")
        q = _four_dims(Q, attributes.get("q_num_heads"))
        k, v = _four_dims(K, kv_heads), _four_dims(V, kv_heads)
        past_len = 0
        if past_key is not None and past_value is not None:
            past_len = past_key.shape[2]
            k, v = np.concatenate((past_key, k), axis=2), np.concatenate((past_value, v), axis=2)
        out = sdpa(
            q,
            _rows(k),
            _rows(v),
            causal=bool(attributes.get("is_causal") or 0),
            # A block behind its cache, or the last queries of each sequence.
            q_start=past_len if nonpad_kv_seqlen is None else None,
            scale=attributes.get("scale"),
            mask=None if attn_mask is None else _padded(attn_mask, k.shape[2]),
            window=_window(attributes),
            softcap=attributes.get("softcap") or None,
            kv_lengths=None if nonpad_kv_seqlen is None else nonpad_kv_seqlen.reshape(-1),
        )
        n_outputs = len(self.onnx_node.output)
        results = (_like(out, Q), k, v)
        if n_outputs < _OUTPUTS_WITH_SCORES:
            return results[:n_outputs]
        return *results, super()._run(Q, K, V, *inputs, **attributes)[3]


def _four_dims(x: Array, heads: int | None) -> Array:
    """[B, H, L, E] of [B, L, H * E], without a copy."""
    if x.ndim != 3 or heads is None:
        return _rows(x)
    batch, length, _ = x.shape
    return _rows(x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3))


def _rows(x: Array) -> Array:
    """The array with a contiguous last axis."""
    return x if x.shape[-1] <= 1 or x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def _like(out: Array, q: Array) -> Array:
    """[B, H, L, E] as [B, L, H * E] where Q was of that form."""
    if q.ndim != 3:
        return out
    batch, _, length, _ = out.shape
    merged: Array = out.transpose(0, 2, 1, 3).reshape(batch, length, -1)
    return merged


def _padded(mask: Array, kv_len: int) -> Array:
    """ONNX hides the keys past the end of a mask that is too short."""
    missing = kv_len - mask.shape[-1]
    if missing <= 0:
        return mask
    hidden = False if mask.dtype == np.bool_ else -np.inf
    widths = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
    padded: Array = np.pad(mask, widths, constant_values=hidden)
    return padded


def _window(attributes: dict[str, Any]) -> tuple[int, int]:
    """Positions before and behind the query's, -1 for unlimited."""
    sides = (attributes.get("left_window_size"), attributes.get("right_window_size"))
    left, right = (-1 if side is None else side for side in sides)
    return left, right
