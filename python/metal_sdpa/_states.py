"""Attention over parts of the keys, merged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from . import _core
from ._typing import Array, ArrayT


def _stacked(name: str, arrays: Sequence[Any]) -> Any:
    """One array of several of one framework, dtype and shape, by the framework's own stack."""
    if not arrays:
        raise _core.InvalidArgument(f"merge_states: {name}: is empty, takes one state or more")
    first = arrays[0]
    for i, array in enumerate(arrays):
        if type(array) is not type(first) or not hasattr(array, "dtype"):
            raise _core.InvalidType(
                f"merge_states: {name}[{i}]: got a {type(array).__name__}, takes arrays of one type"
            )
        if array.dtype != first.dtype:
            raise _core.UnsupportedDType(
                f"merge_states: {name}[{i}]: dtype {array.dtype}, but {name}[0] has {first.dtype}"
            )
        if tuple(array.shape) != tuple(first.shape):
            raise _core.InvalidArgument(
                f"merge_states: {name}[{i}]: shape {tuple(array.shape)}, but {name}[0] has "
                f"{tuple(first.shape)}"
            )
    return _stack_of(first)(list(arrays))


def _stack_of(array: Any) -> Any:
    module = type(array).__module__
    for prefix, stack_from in (("jax", "jax.numpy"), ("mlx", "mlx.core"), ("torch", "torch")):
        if module.startswith(prefix):
            return sys.modules[stack_from].stack
    return np.stack


def merge_states(
    outs: ArrayT | Sequence[ArrayT],
    lses: Array | Sequence[Array],
    *,
    out: Array | None = None,
) -> tuple[ArrayT, ArrayT]:
    """Attention over all keys from attention over parts of them.

    outs [n, ..., D] in f32, f16 or bf16, or a list of n arrays [..., D], with up to three axes
    before D; lses f32 [n, ...], the natural logarithms that sdpa(return_lse=True) gives. Returns
    (out [..., D], lse f32 [...]):

        out = sum_i w_i out_i / sum_i w_i,  w_i = exp(lse_i),  lse = log sum_i w_i

    in f32, rounded once to outs' dtype or to that of `out`, which may be one of the states' own
    memory. A state whose lse is -inf has seen no key and counts for nothing; a row of such states
    alone is 0, its lse -inf. Give sinks to exactly one of the parts.

    Errors: InvalidArgument (shapes, overlap), UnsupportedDType.

        parts = [sdpa(q, k[:, :, a:b], v[:, :, a:b], return_lse=True) for a, b in ranges]
        out, lse = merge_states(*zip(*parts))
    """
    if isinstance(outs, (list, tuple)):
        outs = _stacked("outs", outs)
    if isinstance(lses, (list, tuple)):
        lses = _stacked("lses", lses)
    return _core.merge_states(cast(ArrayT, outs), cast(Array, lses), out)
