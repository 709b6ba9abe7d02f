"""Attention in float64, by another algorithm than the kernels'.

The kernels walk keys in spans with running maxima; this forms the whole score matrix, decides from
positions which query sees which key one by one, and takes a softmax over it in two passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrays import as_f64

# A key whose score lies further below the row's largest has no weight in f32.
WEIGHTLESS = 104


@dataclass
class Reference:
    """What attention is, and the sizes that the error bounds refer to.

    out: [B, Hq, L, Dv]; lse: [B, Hq, L], natural log, -inf or the sink for a row that sees no key;
    magnitude: [B, Hq, L], norm over Dv of sum_j p_j |v_j|;
    logit_size: [B, Hq, L], |scale| * max over visible j of ||q|| ||k_j||, plus the largest |bias|
    (mask and ALiBi) of the keys that have weight;
    sees: [B, Hq, L], whether the row sees a key.
    """

    out: np.ndarray
    lse: np.ndarray
    magnitude: np.ndarray
    logit_size: np.ndarray
    sees: np.ndarray


def visibility(
    seq_len: int,
    capacity: int,
    causal: bool,
    q_starts: np.ndarray,
    kv_lengths: np.ndarray,
    *,
    kv_starts: np.ndarray | None = None,
    query_lengths: np.ndarray | None = None,
    window: tuple[int, int] = (-1, -1),
    key_offset: int = 0,
    key_stride: int = 1,
) -> np.ndarray:
    """[B, L, S]: whether query i of sequence b sees key j, before any mask. Arrays are [B]; -1 in
    the window is unlimited."""
    batch = len(kv_lengths)
    slots = np.arange(capacity)
    positions = key_offset + slots * key_stride
    visible = np.zeros((batch, seq_len, capacity), bool)
    for b in range(batch):
        first = 0 if kv_starts is None else int(kv_starts[b])
        rows = seq_len if query_lengths is None else int(query_lengths[b])
        in_use = (slots >= first) & (slots < int(kv_lengths[b]))
        for i in range(rows):
            behind = positions - (int(q_starts[b]) + i)  # the query's own position
            sees = in_use.copy()
            sees &= (not causal) | (behind <= 0)
            sees &= (window[0] < 0) | (behind >= -window[0])
            sees &= (window[1] < 0) | (behind <= window[1])
            visible[b, i] = sees
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
    softcap: float | None = None,
    mask: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
    slopes: np.ndarray | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    **limits: object,
) -> Reference:
    """Attention of q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv]; finite where visible.

    mask: bool or numbers that broadcast to [B, Hq, L, S]; sinks: [Hq]; slopes: [B, Hq]; `limits`:
    further arguments of `visibility`.
    """
    batch, heads, seq_len, _ = q.shape
    capacity = k.shape[2]
    group = heads // k.shape[1]
    in_band = visibility(
        seq_len,
        capacity,
        causal,
        q_starts,
        kv_lengths,
        key_offset=key_offset,
        key_stride=key_stride,
        **limits,
    )[:, None]
    visible = np.broadcast_to(in_band, (batch, heads, seq_len, capacity))
    bias = np.zeros(visible.shape)
    if slopes is not None:
        behind = _distances(seq_len, capacity, q_starts, key_offset, key_stride)
        bias = bias - as_f64(slopes)[:, :, None, None] * behind[:, None]
    if mask is not None and mask.dtype == bool:
        visible = visible & mask
    elif mask is not None:
        added = np.where(in_band, as_f64(mask), 0.0)  # what a hidden key's entry holds is no matter
        visible = visible & ~np.isneginf(added)
        bias = bias + np.where(np.isneginf(added), 0.0, added)
    q64 = _cleared(q, visible.any(axis=3))
    of_kv_head = visible.reshape(batch, k.shape[1], group, seq_len, capacity)
    seen = of_kv_head.any(axis=(2, 3))
    k64 = np.repeat(_cleared(k, seen), group, axis=1)
    v64 = np.repeat(_cleared(v, seen), group, axis=1)
    scores = scale * np.matmul(q64, k64.swapaxes(2, 3))
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(visible, scores + bias, -np.inf)
    weights, lse = _softmax(scores)
    sizes = np.linalg.norm(q64, axis=3)[..., None] * np.linalg.norm(k64, axis=3)[:, :, None, :]
    largest = np.where(visible, sizes, 0.0).max(axis=3, initial=0.0) * abs(scale)
    top = scores.max(axis=3, initial=-np.inf)
    if sinks is not None:
        sink = np.broadcast_to(as_f64(sinks)[None, :, None], lse.shape)
        total = np.logaddexp(lse, sink)
        with np.errstate(invalid="ignore"):
            share = np.where(np.isneginf(lse), 0.0, np.exp(lse - total))
        weights, lse, top = weights * share[..., None], total, np.maximum(top, sink)
    with np.errstate(invalid="ignore"):
        has_weight = visible & (scores >= top[..., None] - WEIGHTLESS)
    return Reference(
        out=np.matmul(weights, v64),
        lse=lse,
        magnitude=np.linalg.norm(np.matmul(weights, np.abs(v64)), axis=3),
        logit_size=largest + np.where(has_weight, np.abs(bias), 0.0).max(axis=3, initial=0.0),
        sees=visible.any(axis=3),
    )


def merge(parts: list[Reference]) -> tuple[np.ndarray, np.ndarray]:
    """out and lse over all keys, from attention over disjoint sets of them."""
    lses = np.stack([part.lse for part in parts])
    total = np.logaddexp.reduce(lses, axis=0)
    safe = np.where(np.isneginf(total), 0.0, total)
    out = sum(np.exp(part.lse - safe)[..., None] * part.out for part in parts)
    return out, total


def _distances(
    seq_len: int, capacity: int, q_starts: np.ndarray, key_offset: int, key_stride: int
) -> np.ndarray:
    """[B, L, S]: |position of the query - position of the key|."""
    queries = np.asarray(q_starts)[:, None] + np.arange(seq_len)
    keys = key_offset + np.arange(capacity) * key_stride
    return np.abs(queries[:, :, None] - keys).astype(np.float64)


def _cleared(x: np.ndarray, used: np.ndarray) -> np.ndarray:
    """x in float64 with 0 in every row that is not used, whatever bits it holds."""
    keep = np.broadcast_to(used[..., None], x.shape)
    cleared = np.zeros(x.shape)
    cleared[keep] = as_f64(x[keep])
    return cleared


def _softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top = scores.max(axis=3, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - top)
    total = weights.sum(axis=3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return weights / np.where(total == 0, 1.0, total), lse
