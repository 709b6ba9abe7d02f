"""Attention in float64, by another algorithm than the kernels'.

The kernels walk keys in spans with running maxima; this forms the whole score matrix, marks which
query sees which key one by one, and takes a softmax over it in two passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrays import as_f64


@dataclass
class Reference:
    """What attention is, and the sizes that the error bounds refer to.

    out: [B, Hq, L, Dv]; lse: [B, Hq, L], natural log, -inf for a row that sees no key;
    magnitude: [B, Hq, L], norm over Dv of sum_j p_j |v_j|;
    logit_size: [B, Hq, L], |scale| * max over visible j of ||q|| ||k_j||.
    """

    out: np.ndarray
    lse: np.ndarray
    magnitude: np.ndarray
    logit_size: np.ndarray


def visibility(
    seq_len: int, capacity: int, causal: bool, q_starts: np.ndarray, kv_lengths: np.ndarray
) -> np.ndarray:
    """[B, L, S]: whether query i of sequence b sees key j. q_starts and kv_lengths are [B]."""
    visible = np.zeros((len(kv_lengths), seq_len, capacity), bool)
    for b, (start, length) in enumerate(zip(q_starts, kv_lengths, strict=True)):
        for i in range(seq_len):
            last = min(int(length), int(start) + i + 1) if causal else int(length)
            visible[b, i, : max(last, 0)] = True
    return visible


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float,
    causal: bool,
    q_starts: np.ndarray,
    kv_lengths: np.ndarray,
) -> Reference:
    """Attention of q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv]; finite where visible."""
    group = q.shape[1] // k.shape[1]
    used = np.arange(k.shape[2])[None, :] < np.asarray(kv_lengths)[:, None]
    q64 = as_f64(q)
    k64 = np.repeat(_cleared(k, used), group, axis=1)
    v64 = np.repeat(_cleared(v, used), group, axis=1)
    visible = visibility(q.shape[2], k.shape[2], causal, q_starts, kv_lengths)[:, None]
    scores = scale * np.matmul(q64, k64.swapaxes(2, 3))
    weights, lse = _softmax(scores, visible)
    k_norms = np.linalg.norm(k64, axis=3)[:, :, None, :]
    largest_k = np.where(visible, k_norms, 0.0).max(axis=3)
    return Reference(
        out=np.matmul(weights, v64),
        lse=lse,
        magnitude=np.linalg.norm(np.matmul(weights, np.abs(v64)), axis=3),
        logit_size=abs(scale) * np.linalg.norm(q64, axis=3) * largest_k,
    )


def merge(parts: list[Reference]) -> tuple[np.ndarray, np.ndarray]:
    """out and lse over all keys, from attention over disjoint sets of them."""
    lses = np.stack([part.lse for part in parts])
    total = np.logaddexp.reduce(lses, axis=0)
    safe = np.where(np.isneginf(total), 0.0, total)
    out = sum(np.exp(part.lse - safe)[..., None] * part.out for part in parts)
    return out, total


def _cleared(x: np.ndarray, used: np.ndarray) -> np.ndarray:
    """x in float64 with 0 in every slot past its sequence's length, whatever bits it holds."""
    keep = np.broadcast_to(used[:, None, :, None], x.shape)
    cleared = np.zeros(x.shape)
    cleared[keep] = as_f64(x[keep])
    return cleared


def _softmax(scores: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shown = np.where(visible, scores, -np.inf)
    top = shown.max(axis=3, keepdims=True)
    top = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(shown - top)
    total = weights.sum(axis=3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return weights / np.where(total == 0, 1.0, total), lse
