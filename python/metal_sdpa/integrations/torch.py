"""torch.nn.functional.scaled_dot_product_attention with torch's meaning of every argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from metal_sdpa import InvalidArgument, Unsupported, sdpa

if TYPE_CHECKING:
    from torch import Tensor

_CALL = "scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query key^T * scale + mask) value, of tensors [..., H, L, E], without gradients.

    Leading dimensions broadcast, as in torch; with `enable_gqa` key and value may have fewer heads.
    `is_causal` is top-left: query i sees keys 0 to i. A boolean mask says True for keys to attend.
    A row that sees no key is 0.

    Tensors whose last dimension is not contiguous are copied, and so are leading dimensions beyond
    one batch dimension where they broadcast. Everything else is used where it stands.

    Errors: Unsupported for dropout, and for tensors that require gradients while grad mode is on;
    InvalidArgument for a mask beside `is_causal`, as in torch, and for shapes that do not fit;
    UnsupportedDType for other dtypes than float32, float16 and bfloat16.
    """
    if dropout_p != 0:
        raise Unsupported(f"{_CALL}: dropout_p: {dropout_p}, takes 0: this is for inference")
    if is_causal and attn_mask is not None:
        raise InvalidArgument(f"{_CALL}: attn_mask: is given, but is_causal takes None")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 2:
            shape = tuple(tensor.shape)
            raise InvalidArgument(f"{_CALL}: {name}: shape {shape}, takes 2 dimensions or more")
    lead, kv_lead = _leading_shapes(query, key, value, enable_gqa)
    out = sdpa(
        _four_dims(query, lead),
        _four_dims(key, kv_lead),
        _four_dims(value, kv_lead),
        mask=None if attn_mask is None else _mask(attn_mask, lead),
        causal=is_causal,
        q_start=0,
        scale=scale,
    )
    return out.reshape(*lead, *out.shape[2:])


def _leading_shapes(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[list[int], list[int]]:
    """What stands before [L, E] of the query, and before [S, E] of key and value."""
    shapes = [list(x.shape[:-2]) for x in (query, key, value)]
    try:
        if not enable_gqa:
            lead = list(torch.broadcast_shapes(*shapes))
            return lead, lead
        if min(map(len, shapes)) == 0:
            raise InvalidArgument(f"{_CALL}: enable_gqa: takes tensors of 3 dimensions or more")
        outer = list(torch.broadcast_shapes(*(shape[:-1] for shape in shapes)))
        kv_heads = list(torch.broadcast_shapes(shapes[1][-1:], shapes[2][-1:]))
        return outer + shapes[0][-1:], outer + kv_heads
    except RuntimeError as error:
        text = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        message = f"{_CALL}: query, key, value: shapes {text}, takes shapes that broadcast"
        raise InvalidArgument(message) from error


def _four_dims(tensor: Tensor, lead: list[int]) -> Tensor:
    """[B, H, L, E], of which B and H are 1 where there is no such dimension."""
    rows = tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()
    rows = rows.expand(*lead, *rows.shape[-2:])
    while rows.dim() < 4:
        rows = rows.unsqueeze(0)
    return rows if rows.dim() == 4 else rows.flatten(0, -4)


def _mask(mask: Tensor, lead: list[int]) -> Tensor:
    """The mask over [B, H, L, S]; up to four dimensions broadcast by themselves."""
    if len(lead) <= 2:
        return mask
    rows = mask if mask.dim() >= 2 else mask.reshape(1, -1)
    return rows.expand(*lead, *rows.shape[-2:]).flatten(0, -4)
