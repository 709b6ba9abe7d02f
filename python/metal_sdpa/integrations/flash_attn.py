"""The functions of the package flash-attn, with its names, arguments and shapes, on this library.

Positional arguments are those of FlashAttention 2.8; what FlashAttention 3 has beside them is
taken by keyword. Unlike theirs, float32 is taken too, on any CPU; so are values of another size
than keys, and lse is -inf (as in 3) for a row that sees no key.

    from metal_sdpa.integrations.flash_attn import flash_attn_func

    out = flash_attn_func(q, k, v, causal=True)  # [B, L, Hq, D], [B, S, Hkv, D]

torch.compile(fullgraph=True) takes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from metal_sdpa import InvalidArgument, Unsupported
from metal_sdpa.integrations.torch import merge_states, sdpa, sdpa_paged, sdpa_varlen, write_kv
from metal_sdpa.integrations.torch._calls import contiguous_rows as _rows

if TYPE_CHECKING:
    from torch import Tensor

    Result: TypeAlias = Tensor | tuple[Tensor, ...]

Window: TypeAlias = Sequence[int | None]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    **refused: Any,
) -> Result:
    """softmax(q k^T * softmax_scale) v of q [B, L, Hq, D], k [B, S, Hkv, D] and v [B, S, Hkv, Dv].

    causal         Bottom-right: the last query meets the last key.
    window_size    (left, right) keys around the query's own; -1 or None is unlimited.
    softcap        c: a score x becomes c * tanh(x / c); 0 is off.
    alibi_slopes   [Hq] or [B, Hq], f32: slope * distance is taken off the scores.
    s_aux          [Hq]: one more score of each row, without a value; also called learnable_sink.
    deterministic, num_splits, pack_gqa, sm_margin
                   Change nothing: results never depend on how work is cut.

    Returns out [B, L, Hq, Dv], its axes in memory in the order of q's. With return_attn_probs
    (out, lse [B, Hq, L], an empty tensor): lse is the natural logarithm of the denominators, and
    probabilities are formed only for dropout, which is refused. q, k and v whose last dimension is
    not contiguous are copied; everything else is used where it stands.

    Errors: Unsupported for dropout_p, for gradients, and for qv, q_descale, k_descale, v_descale
    and attention_chunk by their names; InvalidArgument; UnsupportedDType.

        out, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    """
    call = "flash_attn_func"
    _refuse(call, refused, dropout_p)
    _require_dims(call, 4, q=q, k=k, v=v)
    options = _scores(call, softmax_scale, causal, window_size, softcap, alibi_slopes)
    options["sinks"] = _sinks(call, q, s_aux, learnable_sink)
    options["return_lse"] = return_attn_probs
    return _with_probs(_batched(q, k, v, options), return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    s_aux: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    **refused: Any,
) -> Result:
    """flash_attn_func of B sequences of any lengths, whose rows stand one behind the other.

    q              [Tq, Hq, D]; k [Tk, Hkv, D], v [Tk, Hkv, Dv].
    cu_seqlens_q   [B + 1], int32 or int64: sequence b has rows cu_seqlens_q[b] up to
                   cu_seqlens_q[b + 1]. cu_seqlens_k is the same of k and v.
    block_table    [B, max_blocks]: k and v are pages [n_pages, page, Hkv, D]; a sequence has
                   seqused_k keys, or as many as cu_seqlens_k says.
    seqused_q, seqused_k
                   [B]: queries and keys in use, of those that a sequence has. Rows of queries that
                   are not in use are 0. With seqused_k and neither cu_seqlens_k nor block_table, k
                   and v are [B, S, Hkv, D].
    max_seqlen_q, max_seqlen_k
                   Are not looked at.

    The other arguments and errors are those of flash_attn_func; seqused_q beside block_table is
    Unsupported. Returns out [Tq, Hq, Dv], or (out, lse [Hq, Tq], an empty tensor).

        out = flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, causal=True)
    """
    call = "flash_attn_varlen_func"
    _refuse(call, refused, dropout_p)
    _require_dims(call, 3, q=q)
    q, k, v = (_rows(x) for x in (q, k, v))
    options = _scores(call, softmax_scale, causal, window_size, softcap, alibi_slopes)
    options["sinks"] = _sinks(call, q, s_aux, learnable_sink)
    options["return_lse"] = return_attn_probs
    if block_table is None and cu_seqlens_k is not None:
        _require_dims(call, 3, k=k, v=v)
        options |= {"kv_lengths": seqused_k, "query_lengths": seqused_q}
        packed = sdpa_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)
        return _with_probs(packed, return_attn_probs)
    _require_dims(call, 4, k=k, v=v)
    if seqused_q is not None:
        raise Unsupported(f"{call}: seqused_q: comes with cu_seqlens_k alone, without block_table")
    if seqused_k is None:
        if cu_seqlens_k is None:
            raise InvalidArgument(f"{call}: cu_seqlens_k: is None, as seqused_k is; takes one")
        seqused_k = cu_seqlens_k.diff()
    if block_table is None:
        block_table = _one_page_each(call, k, len(seqused_k))
    paged = sdpa_paged(q, k, v, block_table, seqused_k, cu_seqlens_q=cu_seqlens_q, **options)
    return _with_probs(paged, return_attn_probs)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    s_aux: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    scheduler_metadata: Tensor | None = None,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    **refused: Any,
) -> Result:
    """Attention of q [B, L, Hq, D] to a cache, to which k and v are appended first, in place.

    k_cache, v_cache  [B or more, S, Hkv, D]; with block_table pages [n_pages, page, Hkv, D]. Any
                      strides but the last dimension's.
    k, v              [B, Lnew, Hkv, D]: written to slots cache_seqlens[b] and up, and attended to.
    cache_seqlens     Slots in use before the call: an int, or int32 or int64 [B]. Without k it may
                      be left out: all slots.
    cache_batch_idx   [B]: which entry of the cache each sequence has; without block_table. Where
                      two have the same one and k is given, the tokens of any of them stay.
    cache_leftpad     [B]: the first slot in use. With block_table too, unlike FlashAttention.
    block_table       [B, max_blocks], int32 or int64; also called page_table.
    cu_seqlens_q      [B + 1]: q is [Tq, Hq, D], rows of the sequences one behind the other.

    The other arguments are those of flash_attn_func. Returns out [B, L, Hq, Dv] (or [Tq, Hq, Dv]),
    or with return_softmax_lse (out, lse [B, Hq, L] or [Hq, Tq]).

    Errors: those of flash_attn_func; Unsupported for rotary_cos, rotary_sin, rotary_seqlens and
    cu_seqlens_k_new: rotate q and k before the call. Slots out of range are refused before anything
    is written.

        out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=n, causal=True)
    """
    call = "flash_attn_with_kvcache"
    _refuse(call, refused | {"rotary_cos": rotary_cos, "rotary_sin": rotary_sin})
    _require_dims(call, 4 if cu_seqlens_q is None else 3, q=q)
    _require_dims(call, 4, k_cache=k_cache, v_cache=v_cache)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if _rows(cache) is not cache:
            raise InvalidArgument(f"{call}: {name}: takes a contiguous last dimension")
    options = _scores(call, softmax_scale, causal, window_size, softcap, alibi_slopes)
    options["sinks"] = _sinks(call, q, s_aux, learnable_sink)
    options["return_lse"] = return_softmax_lse
    table = _only_one(call, block_table=block_table, page_table=page_table)
    batch = len(q) if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    if table is not None:
        if cache_batch_idx is not None:
            raise InvalidArgument(f"{call}: cache_batch_idx: is given, but block_table takes None")
        slots = table.shape[1] * k_cache.shape[1]
    else:
        slots = k_cache.shape[1]
        if cache_batch_idx is not None:
            table = cache_batch_idx.reshape(-1, 1)
        elif cu_seqlens_q is not None:
            table = _one_page_each(call, k_cache, batch)
        elif len(k_cache) < batch:
            raise InvalidArgument(f"{call}: k_cache: batch {len(k_cache)}, but q has {batch}")
        else:
            k_cache, v_cache = k_cache[:batch], v_cache[:batch]
    lengths = _lengths(call, cache_seqlens, batch, slots, k)
    if k is not None or v is not None:
        # Tokens for one entry of the cache twice are FlashAttention's contract, and a page that
        # two sequences write to is a mistake.
        checked = cache_batch_idx is None
        lengths = _append(call, k, v, k_cache, v_cache, table, lengths, checked)
    if table is None:
        options |= {"kv_lengths": lengths, "kv_starts": cache_leftpad}
        return _batched(q, k_cache, v_cache, options)
    if cache_leftpad is not None:
        if tuple(cache_leftpad.shape) != (batch,):
            shape = tuple(cache_leftpad.shape)
            raise InvalidArgument(f"{call}: cache_leftpad: shape {shape}, takes ({batch},)")
        options["mask"] = _from(cache_leftpad, slots, cu_seqlens_q, len(q))
    if cu_seqlens_q is not None:
        options["cu_seqlens_q"] = cu_seqlens_q
        return sdpa_paged(_rows(q), k_cache, v_cache, table, lengths, **options)
    heads_first = sdpa_paged(_rows(q).transpose(1, 2), k_cache, v_cache, table, lengths, **options)
    return _rows_first(heads_first)


def flash_attn_combine(
    out_partial: Tensor,
    lse_partial: Tensor,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attention over n parts of them.

    out_partial [n, B, L, H, Dv] and lse_partial [n, B, L, H], or [n, T, H, Dv] and [n, T, H]. The
    lse that the functions here return has heads before rows: transpose it. Unlike
    FlashAttention 3, float16 and bfloat16 parts are taken too. A part whose lse is -inf counts for
    nothing.

    Returns (out [B, L, H, Dv] of out_dtype, or of out_partial's dtype, lse [B, L, H]).

        out, lse = flash_attn_combine(torch.stack(outs), torch.stack(lses).transpose(-1, -2))
    """
    call = "flash_attn_combine"
    if out is not None and out_dtype not in (None, out.dtype):
        raise InvalidArgument(f"{call}: out_dtype: {out_dtype}, but out has {out.dtype}")
    if out is None:
        shape, dtype = out_partial.shape[1:], out_dtype or out_partial.dtype
        out = torch.empty(shape, dtype=dtype, device=out_partial.device)
    return merge_states(_rows(out_partial), lse_partial, out=out)


def _batched(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Result:
    """sdpa() of [B, L, H, D]."""
    return _rows_first(sdpa(*(_rows(x).transpose(1, 2) for x in (q, k, v)), **options))


def _rows_first(result: Result) -> Result:
    """out, or (out, lse), whose out is [B, L, H, D]."""
    if isinstance(result, tuple):
        return result[0].transpose(1, 2), result[1]
    return result.transpose(1, 2)


def _with_probs(result: Result, return_attn_probs: bool) -> Result:
    """out, or (out, lse, what probabilities are without dropout)."""
    return (*result, result[0].new_empty(0)) if return_attn_probs else result


def _from(starts: Tensor, slots: int, cu_seqlens_q: Tensor | None, n_rows: int) -> Tensor:
    """[B, 1, 1, slots], or [Tq, slots]: whether a slot is not before the first in use."""
    used = torch.arange(slots, device=starts.device) >= starts[:, None]
    if cu_seqlens_q is None:
        return used[:, None, None]
    row = torch.arange(n_rows, device=starts.device)
    sequence = torch.searchsorted(cu_seqlens_q[1:-1].contiguous(), row, right=True)
    return used[sequence]


def _append(
    call: str,
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor | None,
    lengths: Tensor,
    check_indices: bool,
) -> Tensor:
    """Writes k and v behind the slots in use; [B]: slots in use after that."""
    if k is None or v is None:
        raise InvalidArgument(f"{call}: k, v: one is None, takes both or neither")
    _require_dims(call, 4, k=k, v=v)
    if not torch.compiler.is_compiling() and bool((lengths < 0).any()):
        # -1 would leave a token out.
        raise InvalidArgument(f"{call}: cache_seqlens: {int(lengths.min())}, takes 0 or more")
    if k.numel() > 0:
        write_kv(
            _rows(k),
            _rows(v),
            k_cache,
            v_cache,
            block_table=table,
            positions=lengths,
            check_indices=check_indices,
        )
    return lengths + k.shape[1]


def _lengths(
    call: str, seqlens: int | Tensor | None, batch: int, slots: int, k: Tensor | None
) -> Tensor:
    """[B]: slots in use before anything is appended."""
    if seqlens is None:
        if k is not None:
            raise InvalidArgument(f"{call}: cache_seqlens: is None, takes a length with k")
        seqlens = slots
    if isinstance(seqlens, int):
        return torch.full((batch,), seqlens, dtype=torch.int64)
    return seqlens


def _one_page_each(call: str, k: Tensor, batch: int) -> Tensor:
    """A block table for k [B, S, Hkv, D], of which each entry is a page."""
    if len(k) < batch:
        raise InvalidArgument(f"{call}: k: batch {len(k)}, but there are {batch} sequences")
    return torch.arange(batch, dtype=torch.int32).reshape(-1, 1)


def _scores(
    call: str,
    scale: float | None,
    causal: bool,
    window_size: Window,
    softcap: float,
    alibi_slopes: Tensor | None,
) -> dict[str, Any]:
    """What happens to the scores, as this library says it."""
    if len(window_size) != 2:
        raise InvalidArgument(f"{call}: window_size: {window_size}, takes (left, right)")
    left, right = (-1 if side is None or side < 0 else int(side) for side in window_size)
    return {
        "scale": scale,
        "causal": causal,
        "window": None if left == right == -1 else (left, right),
        "softcap": softcap or None,
        "alibi_slopes": alibi_slopes,
    }


def _sinks(
    call: str, q: Tensor, s_aux: Tensor | None, learnable_sink: Tensor | None
) -> Tensor | None:
    sinks = _only_one(call, s_aux=s_aux, learnable_sink=learnable_sink)
    if sinks is None or sinks.dtype in (q.dtype, torch.float32):
        return sinks
    return sinks.float()


def _only_one(call: str, **named: Tensor | None) -> Tensor | None:
    """The one that is given, of two names of the same thing."""
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise InvalidArgument(f"{call}: {' and '.join(given)}: mean the same, takes one")
    return named[given[0]] if given else None


# Arguments of FlashAttention 3 that stand for nothing at these values.
_NEUTRAL = {
    "attention_chunk": 0,
    "qv": None,
    "q_descale": None,
    "k_descale": None,
    "v_descale": None,
    "rotary_cos": None,
    "rotary_sin": None,
    "rotary_seqlens": None,
    "cu_seqlens_k_new": None,
}


def _refuse(call: str, given: dict[str, Any], dropout_p: float = 0.0) -> None:
    if dropout_p != 0:
        raise Unsupported(f"{call}: dropout_p: {dropout_p}, takes 0: this is for inference")
    for name, value in given.items():
        if name not in _NEUTRAL:
            raise TypeError(f"{call}() got an unexpected keyword argument '{name}'")
        neutral = _NEUTRAL[name]
        if value is not neutral and (neutral is None or value != neutral):
            raise Unsupported(f"{call}: {name}: is given, takes {neutral}")


def _require_dims(call: str, dims: int, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() != dims:
            shape = tuple(tensor.shape)
            raise InvalidArgument(f"{call}: {name}: shape {shape}, takes {dims} dimensions")
