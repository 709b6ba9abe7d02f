"""The operators torch.ops.metal_sdpa: what torch.compile and torch's own tools see of this library.

Each has a kernel that calls the function of the same name, a fake kernel that says what it gives,
and refuses gradients. sdpa, sdpa_varlen and sdpa_paged return (out, lse), where lse is empty [0]
unless return_lse; their overloads `out` write into `out` and return lse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

import metal_sdpa
from metal_sdpa import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from torch import Tensor

_LIBRARY = torch.library.Library("metal_sdpa", "DEF")

_STARTS = "SymInt? q_start=None, Tensor? q_starts=None"
_SCORES = (
    "bool causal=False, float? scale=None, Tensor? mask=None, SymInt[]? window=None, "
    "float? softcap=None, Tensor? sinks=None, Tensor? alibi_slopes=None, SymInt key_offset=0, "
    "SymInt key_stride=1, bool return_lse=False"
)
_CAUSAL_SCORES = _SCORES.replace("causal=False", "causal=True")
# Defaults are those of the functions: the dispatcher leaves out what equals them.
_ATTENTION = {
    "sdpa": (
        "Tensor q, Tensor k, Tensor v",
        f"{_STARTS}, Tensor? kv_lengths=None, Tensor? kv_starts=None, "
        f"Tensor? query_lengths=None, {_SCORES}",
    ),
    "sdpa_varlen": (
        "Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k",
        f"{_STARTS}, Tensor? kv_lengths=None, Tensor? query_lengths=None, {_SCORES}",
    ),
    "sdpa_paged": (
        "Tensor q, Tensor k_pages, Tensor v_pages, Tensor block_table, Tensor kv_lengths",
        f"Tensor? indptr=None, Tensor? cu_seqlens_q=None, {_STARTS}, {_CAUSAL_SCORES}, "
        'str layout="NHD", bool check_indices=True',
    ),
}


def _empty_lse() -> Tensor:
    return torch.empty(0, dtype=torch.float32)


def _starts(options: dict[str, Any]) -> dict[str, Any]:
    """The options with q_start as the functions take it: an int or one a sequence."""
    starts = options.pop("q_starts", None)
    if starts is not None:
        options["q_start"] = starts
    return options


def _attend(call: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> Any:
    result = call(*arguments, **_starts(options))
    return result if options.get("return_lse") else (result, _empty_lse())


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    return _attend(metal_sdpa.sdpa, (q, k, v), options)


def _sdpa_varlen(*arguments: Tensor, **options: Any) -> Any:
    return _attend(metal_sdpa.sdpa_varlen, arguments, options)


def _sdpa_paged(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    kv_lengths: Tensor,
    indptr: Tensor | None = None,
    **options: Any,
) -> Any:
    table = block_table if indptr is None else (indptr, block_table)
    return _attend(metal_sdpa.sdpa_paged, (q, k_pages, v_pages, table, kv_lengths), options)


def empty_in_order_of(q: Tensor, value_dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for out, as the bindings lay it out: outer axes in the order of q's strides, of which
    those of size 1 stay in place; the last axis is innermost."""
    shape = [*q.shape[:-1], value_dim]
    order = list(range(q.dim()))
    if all(n != 0 for n in q.shape):
        slots = [axis for axis in order[:-1] if q.shape[axis] > 1]
        by_stride = sorted(slots, key=q.stride, reverse=True)  # stable, reversed or not
        for slot, axis in zip(slots, by_stride, strict=True):
            order[slot] = axis
    packed = q.new_empty([shape[axis] for axis in order], dtype=dtype)
    return packed.permute([order.index(axis) for axis in range(q.dim())])


def _fake_lse(q: Tensor, return_lse: bool) -> Tensor:
    """[B, Hq, L], or [Hq, Tq] of packed rows."""
    if not return_lse:
        return q.new_empty([0], dtype=torch.float32)
    shape = list(q.shape[:-1]) if q.dim() == 4 else [q.shape[1], q.shape[0]]
    return q.new_empty(shape, dtype=torch.float32)


def _fake(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    dims = {"sdpa": (4,), "sdpa_varlen": (3,), "sdpa_paged": (3, 4)}[name]

    def fake(q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if q.dim() not in dims:
            raise InvalidArgument(f"{name}: q: shape {tuple(q.shape)}, takes {dims[0]} dimensions")
        lse = _fake_lse(q, options.get("return_lse", False))
        return empty_in_order_of(q, v.shape[-1]), lse

    return fake


def _fake_out(name: str) -> Callable[..., Tensor]:
    functional = _fake(name)

    def fake(*arguments: Any, out: Tensor, **options: Any) -> Tensor:
        return functional(*arguments, **options)[1]

    return fake


def _into_out(kernel: Callable[..., Any]) -> Callable[..., Tensor]:
    def call(*arguments: Any, out: Tensor, **options: Any) -> Tensor:
        lse: Tensor = kernel(*arguments, out=out, **options)[1]
        _changed(out)
        return lse

    return call


def _changed(*tensors: Tensor) -> None:
    """Tells autograd that these were written to, as torch's own operators do."""
    counted = [x for x in tensors if not x.is_inference()]
    if counted:
        torch.autograd.graph.increment_version(counted)


def _write_kv(k_new: Tensor, v_new: Tensor, k_cache: Tensor, v_cache: Tensor, **how: Any) -> None:
    metal_sdpa.write_kv(k_new, v_new, k_cache, v_cache, **how)
    _changed(k_cache, v_cache)


def _merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    return metal_sdpa.merge_states(outs, lses)


def _merge_states_out(outs: Tensor, lses: Tensor, *, out: Tensor) -> Tensor:
    lse = metal_sdpa.merge_states(outs, lses, out=out)[1]
    _changed(out)
    return lse


def _fake_merge(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


def _fake_merge_out(outs: Tensor, lses: Tensor, *, out: Tensor) -> Tensor:
    return lses.new_empty(lses.shape[1:])


def _refusing_gradients(name: str) -> Callable[..., Any]:
    """The operator below autograd: without this, torch.compile would take gradients for zero."""
    operator = getattr(torch.ops.metal_sdpa, name.partition(".")[0])
    overload = getattr(operator, name.partition(".")[2] or "default")

    def call(*arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            require_no_gradients(name, *arguments, *options.values())
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments, **options)

    return call


def require_no_gradients(call: str, *values: Any) -> None:
    """Unsupported where a tensor requires gradients; for callers in grad mode."""
    if any(isinstance(x, torch.Tensor) and x.requires_grad for x in values):
        raise Unsupported(
            f"{call}: an argument requires gradients, but this is forward only; "
            "takes it under torch.no_grad() or after detach()"
        )


def _define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"metal_sdpa::{name}", fake, lib=_LIBRARY)
    _LIBRARY.impl(name, _refusing_gradients(name), "Autograd")


def _define_all() -> None:
    kernels: dict[str, Callable[..., Any]] = {
        "sdpa": _sdpa,
        "sdpa_varlen": _sdpa_varlen,
        "sdpa_paged": _sdpa_paged,
    }
    for name, (tensors, options) in _ATTENTION.items():
        kernel = kernels[name]
        _define(f"{name}({tensors}, *, {options}) -> (Tensor, Tensor)", kernel, _fake(name))
        written = f"{name}.out({tensors}, *, {options}, Tensor(a!) out) -> Tensor"
        _define(written, _into_out(kernel), _fake_out(name))
    _define(
        "write_kv(Tensor k_new, Tensor v_new, Tensor(a!) k_cache, Tensor(b!) v_cache, *, "
        "Tensor? slot_mapping=None, Tensor? block_table=None, Tensor? positions=None, "
        'str layout="NHD", bool check_indices=True) -> ()',
        _write_kv,
        lambda *_, **__: None,
    )
    merge = "merge_states{}(Tensor outs, Tensor lses{}) -> {}"
    _define(merge.format("", "", "(Tensor, Tensor)"), _merge_states, _fake_merge)
    into = merge.format(".out", ", *, Tensor(a!) out", "Tensor")
    _define(into, _merge_states_out, _fake_merge_out)


_define_all()
