"""The attention function "metal_attention"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import is_torchdynamo_compiling

from metal_sdpa import Unsupported
from metal_sdpa.integrations.torch import sdpa
from metal_sdpa.integrations.torch._calls import contiguous_rows

from .masks import LazyMask

if TYPE_CHECKING:
    from torch import Tensor

NAME = "metal_attention"

# Arguments of sparse attention: which keys a query sees, by number.
_SPARSE = ("indices", "block_indices")


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers' AttentionInterface calls it, without gradients.

    query          [B, Hq, L, D], float32, float16 or bfloat16, as transformers lays it out.
    key, value     [B, Hkv, S, D] and [B, Hkv, S, Dv].
    attention_mask What the mask function of "metal_attention" gave, a boolean mask (True = attend)
                   or one to add, broadcast to [B, Hq, L, S]. The mask alone decides where there is
                   one: `sliding_window` beside it is not looked at, as for transformers' "sdpa".
                   None: all keys, or with `is_causal` and L > 1 the keys 0 to i for query i.
    is_causal      Default: `module.is_causal`.
    softcap        c: scores become c * tanh(score / c).
    s_aux          [Hq], attention sinks.
    position_bias  Added to the scores, broadcast to [B, Hq, L, S].

    Returns ([B, L, Hq, Dv], contiguous, None). Rows that see no key are 0.

    Errors: Unsupported for dropout, output_attentions, gradients, sparse attention by `indices` and
    sinks a token; those of metal_sdpa.sdpa.
    """
    _refuse(query, key, value, position_bias, s_aux, dropout, keywords)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    arguments, mask = _visible(module, query, key, attention_mask, is_causal)
    if attention_mask is None and arguments["causal"] and key.shape[2] > query.shape[2]:
        # The first queries of a cache of fixed length: later slots are still empty.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        position_bias = None if position_bias is None else position_bias[..., : query.shape[2]]
    batch = max(query.shape[0], key.shape[0])
    query, key, value = (_rows(x, batch) for x in (query, key, value))
    out = sdpa(
        query,
        key,
        value,
        scale=scaling,
        mask=_with_bias(mask, position_bias),
        softcap=softcap or None,
        sinks=_sinks(s_aux, keywords.get("sinks"), query),
        out=_out(query, value),
        **arguments,
    )
    assert isinstance(out, torch.Tensor)
    return out.transpose(1, 2).contiguous(), None


def _refuse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_bias: Tensor | None,
    s_aux: Tensor | None,
    dropout: float,
    keywords: dict[str, Any],
) -> None:
    if dropout:
        raise Unsupported(f"{NAME}: dropout: {dropout}, takes 0: this is for inference")
    if keywords.get("output_attentions"):
        raise Unsupported(f"{NAME}: output_attentions: the weights are never formed, take 'eager'")
    for name in _SPARSE:
        if keywords.get(name) is not None:
            raise Unsupported(f"{NAME}: {name}: sparse attention is not taken, take 'eager'")
    if not torch.is_grad_enabled():
        return
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in {**tensors, "position_bias": position_bias, "s_aux": s_aux}.items():
        if tensor is not None and tensor.requires_grad:
            raise Unsupported(
                f"{NAME}: {name}: requires gradients, which are not computed here; "
                "run under torch.no_grad() or torch.inference_mode()"
            )


def _visible(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool | None,
) -> tuple[dict[str, Any], Tensor | None]:
    """Arguments of sdpa, and the mask that remains."""
    if mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        return {"causal": bool(causal) and query.shape[2] > 1, "q_start": 0}, None
    if not isinstance(mask, LazyMask):
        return {"causal": False}, mask.float() if mask.dtype == torch.float64 else mask
    visible = mask.visible
    if visible is None or mask.shape[2:] != (query.shape[2], key.shape[2]):
        return {"causal": False}, mask.dense()
    if visible.kv_lengths is not None and mask.shape[0] != max(query.shape[0], key.shape[0]):
        return {"causal": False}, mask.dense()
    return visible.arguments(), None


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if bias is None or mask is None:
        return mask if bias is None else bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask + bias


def _sinks(s_aux: Tensor | None, sinks: Tensor | None, query: Tensor) -> Tensor | None:
    given = s_aux if sinks is None else sinks
    if given is None:
        return None
    heads = query.shape[1]
    if given.numel() != heads:
        shape = tuple(given.shape)
        raise Unsupported(f"{NAME}: s_aux: shape {shape}, takes one number a head ({heads})")
    flat = given.detach().reshape(heads)
    return flat if flat.dtype in (torch.float32, query.dtype) else flat.float()


def _rows(tensor: Tensor, batch: int) -> Tensor:
    """[batch, H, rows, E] with a contiguous last axis."""
    rows = contiguous_rows(tensor)
    return rows if rows.shape[0] == batch else rows.expand(batch, -1, -1, -1)


def _out(query: Tensor, value: Tensor) -> Tensor | None:
    """Memory [B, L, H, Dv] for the result, where it would not get it by itself from q's order.

    torch.compile takes none that is not contiguous.
    """
    if is_torchdynamo_compiling() or query.transpose(1, 2).is_contiguous():
        return None
    batch, heads, length, _ = query.shape
    return query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2)
