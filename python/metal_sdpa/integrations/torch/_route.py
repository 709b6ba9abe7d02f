"""torch.nn.functional.scaled_dot_product_attention itself, sent here where we have what it asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

import metal_sdpa
from metal_sdpa import DeviceNotFound, InvalidArgument, Unsupported, UnsupportedDType
from metal_sdpa.integrations._route import Counts, Stats

from . import _calls, _functional

if TYPE_CHECKING:
    from torch import Tensor

# torch's own, whoever has replaced the name in torch.nn.functional meanwhile.
_torchs = torch._C._nn.scaled_dot_product_attention

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MASK_DTYPES = (torch.bool, *_DTYPES)
_MAX_HEAD_DIM = metal_sdpa.Device("cpu").limits.max_head_dim
_REFUSALS = (InvalidArgument, Unsupported, UnsupportedDType, DeviceNotFound)

_lock = threading.Lock()
_active = False
_enabled_for_good = False
_open_contexts = 0
_replaced: Any = None  # what torch.nn.functional had before
_counts = Counts()


def enable() -> None:
    """Sends torch.nn.functional.scaled_dot_product_attention here until disable(), for all threads.

    Everything that looks the function up in torch.nn.functional when it calls it is reached:
    diffusers, transformers' "sdpa", nn.MultiheadAttention (see the documentation for its own fast
    path). Calls that want what we lack run in torch as before; stats() says how many and why. Doing
    it twice is harmless.
    """
    global _enabled_for_good
    with _lock:
        _enabled_for_good = True
        _update()


def disable() -> None:
    """Takes enable() back; inside of enabled() the context goes on. Harmless where it is off."""
    global _enabled_for_good
    with _lock:
        _enabled_for_good = False
        _update()


@contextmanager
def enabled() -> Iterator[None]:
    """enable() for the time of a with statement, for all threads. May be nested and overlap.

    with enabled():
        model.generate(...)
    """
    global _open_contexts
    with _lock:
        _open_contexts += 1
        _update()
    try:
        yield
    finally:
        with _lock:
            _open_contexts -= 1
            _update()


def is_enabled() -> bool:
    """Whether calls are sent here at the moment."""
    return _active


def stats() -> Stats:
    """How many calls ran here, how many in torch and why, since the start or reset_stats().

    Calls in code that torch.compile has made are not counted.
    """
    return _counts.stats()


def reset_stats() -> None:
    """Counts from 0 again."""
    _counts.reset()


def why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str | None:
    """Why such a call would run in torch while this is enabled; None where it would run here.

    Nothing is computed.
    """
    given = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    reason = _watched() or _refusal(given, dropout_p, is_causal)
    if reason is not None:
        return reason
    cast = _functional.autocast(query, key, value, attn_mask)
    try:
        _functional.attend(*cast, dropout_p, is_causal, scale, enable_gqa, call=_planned)
    except _REFUSALS as error:
        return str(error)
    return None


def _planned(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """In place of sdpa(): its checks, and no result but a shape."""
    metal_sdpa.plan(q, k, v, **options)
    return torch.empty(*q.shape[:-1], v.shape[-1], device="meta")


def _routed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, from metal_sdpa where it can."""
    if not _active:
        pass
    elif _calls._is_compiling():
        given = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
        if _refusal(given, dropout_p, is_causal) is None:
            return _functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
            )
    else:
        given = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
        reason = _watched() or _not_plain(given) or _common_refusal(given, dropout_p)
        if reason is None:
            try:
                out = _functional.scaled_dot_product_attention(
                    query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
                )
            except _REFUSALS as error:
                reason = str(error)
            else:
                _counts.take()
                return out
        _counts.fall_back(reason)
    return _torchs(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _watched() -> str | None:
    if _calls._dispatch_modes():
        return "a dispatch mode watches torch's operators"
    return None


def _not_plain(given: tuple[Any, ...]) -> str | None:
    for x in given:
        if type(x) not in _PLAIN:
            return f"a {type(x).__name__}, takes plain tensors"
    return None


def _common_refusal(given: tuple[Any, ...], dropout_p: float) -> str | None:
    """What training code asks for with every call, told for less than an exception costs."""
    if dropout_p != 0:
        return f"dropout_p: {dropout_p}, takes 0: this is for inference"
    if torch.is_grad_enabled():
        for x in given:
            if x.requires_grad:
                return "a tensor requires gradients, but this is forward only"
    if given[0].dtype is torch.float64:
        return "query: dtype torch.float64, takes float32, float16 or bfloat16"
    return None


def _refusal(given: tuple[Any, ...], dropout_p: float, is_causal: bool) -> str | None:
    """Why we would refuse, as far as it can be told without the data: as torch.compile traces."""
    reason = _not_plain(given)
    if reason is not None:
        return reason
    if torch.compiler.is_exporting():
        return "the program is exported, and is to run without this package"
    for x in given:
        if x.device.type not in ("cpu", "mps") or x.layout != torch.strided:
            return f"a tensor of {x.device}, {x.layout}, takes strided ones of the CPU or MPS"
    reason = _common_refusal(given, dropout_p)
    if reason is not None:
        return reason
    query, key, value, *mask = given
    dtypes = [x.dtype for x in _functional.autocast(query, key, value, None)[:3]]
    if dtypes[0] not in _DTYPES or dtypes[1] != dtypes[0] or dtypes[2] != dtypes[0]:
        return f"dtypes {dtypes}, takes one of {_DTYPES}"
    if mask and is_causal:
        return "attn_mask: is given, but is_causal takes None"
    if mask and mask[0].dtype not in _MASK_DTYPES:
        return f"attn_mask: dtype {mask[0].dtype}, takes one of {_MASK_DTYPES}"
    if query.shape[-1] > _MAX_HEAD_DIM or value.shape[-1] > _MAX_HEAD_DIM:
        return f"head sizes over {_MAX_HEAD_DIM}"
    return None


def _update() -> None:
    """Puts our function in torch's place, or torch's back. _lock is held."""
    global _active, _replaced
    wanted = _enabled_for_good or _open_contexts > 0
    if wanted == _active:
        return
    functional = torch.nn.functional
    current = functional.scaled_dot_product_attention
    if wanted and current is not _routed and _replaced in (None, current):
        _replaced = current
        functional.scaled_dot_product_attention = _routed
    elif not wanted and current is _routed:
        functional.scaled_dot_product_attention, _replaced = _replaced, None
    # Where somebody has wrapped our function since, it stays inside and hands everything to torch.
    _active = wanted


# torch.jit.script takes the name for torch's operator, as it does outside of enable().
torch.jit._builtins._register_builtin(_routed, "aten::scaled_dot_product_attention")
