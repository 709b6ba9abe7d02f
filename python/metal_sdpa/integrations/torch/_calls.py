"""metal_sdpa's functions of torch tensors, as torch.compile and other tracers can take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

import metal_sdpa
from metal_sdpa import InvalidArgument

from . import _ops

if TYPE_CHECKING:
    from torch import Tensor

    Result: TypeAlias = Tensor | tuple[Tensor, Tensor]

_OPS = torch.ops.metal_sdpa
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack


def is_traced() -> bool:
    """Whether somebody watches what operators are called: torch.compile, make_fx, a fake mode, a
    counter of operations."""
    return bool(_is_compiling() or _dispatch_modes())


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor where its last dimension is contiguous, else a copy that has it so."""
    if tensor.stride(-1) == 1 or tensor.size(-1) == 1:
        return tensor
    return tensor.contiguous()


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Result:
    """metal_sdpa.sdpa with all of its arguments, also under torch.compile(fullgraph=True)."""
    if not is_traced():
        return metal_sdpa.sdpa(q, k, v, **options)
    _lengths_as_tensors(options, len(q), ("kv_lengths", "kv_starts", "query_lengths"))
    return _traced("sdpa", (q, k, v), options)


def sdpa_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Any, cu_seqlens_k: Any, **options: Any
) -> Result:
    """metal_sdpa.sdpa_varlen, also under torch.compile(fullgraph=True)."""
    if not is_traced():
        return metal_sdpa.sdpa_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)
    ends = [torch.as_tensor(x) for x in (cu_seqlens_q, cu_seqlens_k)]
    _lengths_as_tensors(options, len(ends[0]) - 1, ("kv_lengths", "query_lengths"))
    return _traced("sdpa_varlen", (q, k, v, *ends), options)


def sdpa_paged(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, block_table: Any, kv_lengths: Any, **options: Any
) -> Result:
    """metal_sdpa.sdpa_paged, also under torch.compile(fullgraph=True)."""
    if not is_traced():
        return metal_sdpa.sdpa_paged(q, k_pages, v_pages, block_table, kv_lengths, **options)
    if isinstance(block_table, (tuple, list)) and len(block_table) == 2:
        indptr, block_table = (torch.as_tensor(x) for x in block_table)
        options["indptr"] = indptr
    if options.get("cu_seqlens_q") is not None:
        options["cu_seqlens_q"] = torch.as_tensor(options["cu_seqlens_q"])
    tensors = (q, k_pages, v_pages, torch.as_tensor(block_table), torch.as_tensor(kv_lengths))
    return _traced("sdpa_paged", tensors, options)


def write_kv(
    k_new: Tensor,
    v_new: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    slot_mapping: Any = None,
    block_table: Any = None,
    positions: Any = None,
    layout: str = "NHD",
    check_indices: bool = True,
) -> None:
    """metal_sdpa.write_kv, also under torch.compile(fullgraph=True)."""
    call = _OPS.write_kv.default if is_traced() else metal_sdpa.write_kv
    if is_traced():
        slot_mapping, block_table, positions = (
            None if x is None else torch.as_tensor(x)
            for x in (slot_mapping, block_table, positions)
        )
    call(
        k_new,
        v_new,
        k_cache,
        v_cache,
        slot_mapping=slot_mapping,
        block_table=block_table,
        positions=positions,
        layout=layout,
        check_indices=check_indices,
    )


def merge_states(
    outs: Tensor | Sequence[Tensor], lses: Tensor | Sequence[Tensor], *, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """metal_sdpa.merge_states, also under torch.compile(fullgraph=True)."""
    if not is_traced():
        return metal_sdpa.merge_states(outs, lses, out=out)
    outs, lses = (torch.stack(list(x)) if isinstance(x, (list, tuple)) else x for x in (outs, lses))
    if torch.is_grad_enabled():
        _ops.require_no_gradients("merge_states", outs, lses)
    if out is None:
        merged: tuple[Tensor, Tensor] = _OPS.merge_states.default(outs, lses)
        return merged
    return out, _OPS.merge_states.out(outs, lses, out=out)


def _traced(name: str, tensors: tuple[Tensor, ...], options: dict[str, Any]) -> Result:
    """The operator, whose arguments have one type each."""
    if options.pop("device", None) is not None:
        raise InvalidArgument(f"{name}: device: is given, takes None under torch.compile")
    start = options.get("q_start")
    if start is not None and not isinstance(start, (int, torch.SymInt)):
        options["q_starts"] = torch.as_tensor(options.pop("q_start"))
    window = options.get("window")
    if window is not None:
        sides = window
        if isinstance(window, (int, torch.SymInt)):
            # W keys with the query's own. Below 1 the operator is to refuse: -1 is unlimited.
            sides = (window - 1 if window > 0 else -2, 0)
        options["window"] = [-1 if side is None else side for side in sides]
    if torch.is_grad_enabled():
        _ops.require_no_gradients(name, *tensors, *options.values())
    operator = getattr(_OPS, name)
    out = options.pop("out", None)
    if out is None:
        made, lse = operator.default(*tensors, **options)
        return (made, lse) if options.get("return_lse") else made
    lse = operator.out(*tensors, **options, out=out)
    return (out, lse) if options.get("return_lse") else out


def _lengths_as_tensors(options: dict[str, Any], batch: int, names: tuple[str, ...]) -> None:
    for name in names:
        value = options.get(name)
        if isinstance(value, (int, torch.SymInt)):
            options[name] = torch.full((batch,), value, dtype=torch.int64)
        elif value is not None:
            options[name] = torch.as_tensor(value)
