"""torch.nn.functional.scaled_dot_product_attention with torch's meaning of every argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

import metal_sdpa
from metal_sdpa import InvalidArgument, Unsupported

from . import _calls

if TYPE_CHECKING:
    from torch import Tensor

Shape: TypeAlias = tuple[int, ...]

_CALL = "scaled_dot_product_attention"

_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_autocast = torch._C._is_any_autocast_enabled


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
    A row that sees no key is 0. Under torch.autocast tensors take its dtype.

    Tensors whose last dimension is not contiguous are copied, and so are leading dimensions beyond
    one batch dimension where they broadcast. Everything else is used where it stands. The axes of
    the result lie in memory in the order of query's.

    Errors: Unsupported for dropout, and for tensors that require gradients while grad mode is on;
    InvalidArgument for a mask beside `is_causal`, as torch says, and for shapes that do not fit;
    UnsupportedDType for other dtypes than float32, float16 and bfloat16.
    """
    if not (_is_compiling() or _dispatch_modes() or _any_autocast()):
        # What sdpa() itself takes goes there first: a tiny call has no time for a look at shapes.
        # It refuses what broadcasts or is not contiguous, except one KV head for many.
        if (
            query.ndim == 4
            and key.ndim == 4
            and (enable_gqa or query.shape[1] == key.shape[1])
            and dropout_p == 0
            and (attn_mask is None or not is_causal)
        ):
            try:
                return metal_sdpa.sdpa(
                    query, key, value, mask=attn_mask, causal=is_causal, q_start=0, scale=scale
                )
            except InvalidArgument:
                pass
    else:
        query, key, value, attn_mask = autocast(query, key, value, attn_mask)
    return attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    call: Any = _calls.sdpa,
) -> Tensor:
    """scaled_dot_product_attention outside of autocast; `call` is given sdpa's arguments."""
    if dropout_p != 0:
        raise Unsupported(f"{_CALL}: dropout_p: {dropout_p}, takes 0: this is for inference")
    if is_causal and attn_mask is not None:
        raise InvalidArgument(f"{_CALL}: attn_mask: is given, but is_causal takes None")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 2:
            shape = tuple(tensor.shape)
            raise InvalidArgument(f"{_CALL}: {name}: shape {shape}, takes 2 dimensions or more")
    lead, kv_lead = _leading_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2], enable_gqa)
    out = call(
        _four_dims(query, lead),
        _four_dims(key, kv_lead),
        _four_dims(value, kv_lead),
        mask=None if attn_mask is None else _mask(attn_mask, lead),
        causal=is_causal,
        q_start=0,
        scale=scale,
    )
    return out if len(lead) == 2 else out.reshape(*lead, *out.shape[2:])


def autocast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What torch.autocast makes of the arguments; float64 and other than floating point stay."""
    kind = query.device.type
    if not torch.is_autocast_enabled(kind):
        return query, key, value, mask
    dtype = torch.get_autocast_dtype(kind)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x

    return cast(query), cast(key), cast(value), None if mask is None else cast(mask)


def _leading_shapes(
    query: Shape, key: Shape, value: Shape, enable_gqa: bool
) -> tuple[Shape, Shape]:
    """What stands before [L, E] of the query, and before [S, E] of key and value."""
    if query == key == value:
        return query, key
    shapes = (query, key, value)
    if enable_gqa and min(map(len, shapes)) == 0:
        raise InvalidArgument(f"{_CALL}: enable_gqa: takes tensors of 3 dimensions or more")
    lead = _broadcast(*(shape[:-1] for shape in shapes) if enable_gqa else shapes)
    kv_heads = _broadcast(key[-1:], value[-1:]) if enable_gqa else ()
    if lead is None or kv_heads is None:
        text = ", ".join(str((*shape, "L", "E")) for shape in shapes)
        raise InvalidArgument(
            f"{_CALL}: query, key, value: shapes {text}, takes shapes that broadcast"
        )
    return (lead + query[-1:], lead + kv_heads) if enable_gqa else (lead, lead)


def _broadcast(*shapes: Shape) -> Shape | None:
    """The shape that all of them broadcast to; None where there is none."""
    wide = max(map(len, shapes))
    result = [1] * wide
    for shape in shapes:
        for axis, size in enumerate(shape, wide - len(shape)):
            if size == 1 or size == result[axis]:
                continue
            if result[axis] != 1:
                return None
            result[axis] = size
    return tuple(result)


def _four_dims(tensor: Tensor, lead: Shape) -> Tensor:
    """[B, H, L, E], of which B and H are 1 where there is no such dimension."""
    rows = _calls.contiguous_rows(tensor)
    if rows.shape[:-2] != lead:
        rows = rows.expand(*lead, *rows.shape[-2:])
    for _ in range(2 - len(lead)):
        rows = rows.unsqueeze(0)
    return rows if len(lead) <= 2 else rows.flatten(0, -4)


def _mask(mask: Tensor, lead: Shape) -> Tensor:
    """The mask over [B, H, L, S]; up to four dimensions broadcast by themselves."""
    if len(lead) <= 2:
        return mask
    rows = mask if mask.dim() >= 2 else mask.reshape(1, -1)
    return rows.expand(*lead, *rows.shape[-2:]).flatten(0, -4)
