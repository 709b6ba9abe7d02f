"""torch.nn.attention.varlen on the CPU, where torch has only its names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from metal_sdpa import InvalidArgument

from . import _calls

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.varlen import AuxRequest

    Result: TypeAlias = Tensor | tuple[Tensor, Tensor]


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Result:
    """Attention of N sequences of any lengths, one behind the other: torch's arguments and meaning.

    query        [Tq, Hq, D]; key [Tk, Hkv, D], value [Tk, Hkv, Dv]. With block_table, key and value
                 are pages [n_pages, page, Hkv, D].
    cu_seq_q     [N + 1]: sequence n has rows cu_seq_q[n] to cu_seq_q[n + 1]; cu_seq_k is the same
                 of keys, and may be None beside block_table.
    window_size  (left, right) keys around the query's own, -1 for unlimited; (-1, 0) is causal. The
                 last query of a sequence meets its last key.
    enable_gqa   Whether key and value may have fewer heads.
    seqused_k    [N]: keys in use. block_table [N, max_pages] wants it.
    max_q, max_k, num_splits
                 Are not looked at: the bits of a sequence never depend on others.

    Returns out [Tq, Hq, Dv], or with return_aux.lse (out, lse [Hq, Tq], natural logarithm). (torch
    2.13 documents [Tq, Hq] and gives [Hq, Tq].)

    Errors: ValueError for heads that do not fit, as in torch; InvalidArgument; Unsupported for
    gradients; UnsupportedDType.

        out = varlen_attn(q, k, v, cu, cu, longest, longest, window_size=(-1, 0))
    """
    options = _options(query, key, block_table, return_aux, scale, window_size, enable_gqa)
    return _attend(query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table, options)


def varlen_attn_out(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Result:
    """varlen_attn into `out` [Tq, Hq, Dv], of query's dtype or float32."""
    options = _options(query, key, block_table, return_aux, scale, window_size, enable_gqa)
    options["out"] = out
    return _attend(query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table, options)


def _options(
    query: Tensor,
    key: Tensor,
    block_table: Tensor | None,
    return_aux: AuxRequest | None,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> dict[str, Any]:
    n_heads, n_kv_heads = query.size(1), key.size(1 if block_table is None else 2)
    if n_heads != n_kv_heads and not enable_gqa:
        raise InvalidArgument(
            f"varlen_attn: key: {n_kv_heads} heads, but query has {n_heads}; takes fewer with "
            "enable_gqa"
        )
    if len(window_size) != 2:
        raise InvalidArgument(f"varlen_attn: window_size: {window_size}, takes (left, right)")
    left, right = window_size
    return {
        "scale": scale,
        "causal": False,
        "window": None if left < 0 and right < 0 else (max(left, -1), max(right, -1)),
        "return_lse": return_aux is not None and return_aux.lse,
    }


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
    options: dict[str, Any],
) -> Result:
    if block_table is None:
        if cu_seq_k is None:
            raise InvalidArgument("varlen_attn: cu_seq_k: is None, takes it without block_table")
        options["kv_lengths"] = seqused_k
        return _calls.sdpa_varlen(query, key, value, cu_seq_q, cu_seq_k, **options)
    if seqused_k is None:
        raise InvalidArgument("varlen_attn: seqused_k: is None, but block_table wants it")
    options["cu_seqlens_q"] = cu_seq_q
    return _calls.sdpa_paged(query, key, value, block_table, seqused_k, **options)
