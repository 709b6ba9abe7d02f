"""mx.fast.scaled_dot_product_attention with MLX's meaning of every argument, and its place in MLX.

```python
from metal_sdpa.integrations import mlx as metal_sdpa_mlx

metal_sdpa_mlx.enable()  # mlx.nn and mlx-lm now attend here
```
"""

from __future__ import annotations

import functools
import threading
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import mlx.core as mx

import metal_sdpa
from metal_sdpa import InvalidArgument, InvalidType, Unsupported
from metal_sdpa.integrations._route import Route, Stats

Array: TypeAlias = Any  # mx.array

_sdpa: Any = metal_sdpa.sdpa  # of arguments that are put together

_CALL = "scaled_dot_product_attention"
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def scaled_dot_product_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    mask: Array | str | None = None,
    sinks: Array | None = None,
    force_fused: bool = False,
    stream: Any = None,
) -> Array:
    """softmax(q k^T * scale + mask) v, of q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv].

    mask         Boolean (True = attend) or numbers that are added to the scores, of up to four
                 dimensions that broadcast to [B, Hq, L, S]; or "causal": the last query meets the
                 last key.
    sinks        [Hq]: one more score of every row, which has no value.
    force_fused  Without meaning here: this is always one fused kernel.
    stream       Without meaning here: the arrays are evaluated, and the result is there on return.

    q, k and v are brought to their common dtype, as MLX does it; scores, softmax and sums are f32.
    Arrays are used where they stand, slices of a cache too; only those whose last dimension is not
    contiguous are copied. A row that sees no key is 0; MLX on the CPU gives the mean of values.

    MLX's own function does the work, and `stats()` says so, where mx.compile or mx.vmap traces
    an array, where a dtype is not float32, float16 or bfloat16, and where D or Dv is too large.

    Errors: Unsupported where a gradient or a tangent is asked for (mx.grad, mx.vjp, mx.jvp);
    InvalidArgument (a ValueError) for shapes that do not fit.
    """
    causal, added = _causal_and_mask(mask)
    dtype = _common_dtype(q, k, v)
    if (reason := _reason_for_mlx(dtype, q, v)) is None:
        arrays = [x if x.dtype == dtype else x.astype(dtype) for x in (q, k, v)]
        names = []
        if added is not None:
            names.append("mask")
            # MLX adds integers too.
            known = added.dtype in (*_FLOATS, mx.bool_)
            arrays.append(added if known else added.astype(mx.float32))
        if sinks is not None:
            _require_array("sinks", sinks)
            names.append("sinks")
            arrays.append(sinks if sinks.dtype in (mx.float32, dtype) else sinks.astype(dtype))
        if _evaluated(arrays):
            out = _attend(arrays, names, float(scale), causal)
            _route.counts.take()
            return out
        reason = "mx.compile or mx.vmap traces an array"
    options = {"force_fused": True} if force_fused else {}
    return _route.fall_back(
        reason, q, k, v, scale=scale, mask=mask, sinks=sinks, stream=stream, **options
    )


def enable() -> None:
    """Routes mx.fast.scaled_dot_product_attention here until `disable()`; twice is once."""
    _route.enable()


def disable() -> None:
    """Ends `enable()`; harmless without. Blocks of `enabled()` that are open stay."""
    _route.disable()


def enabled() -> AbstractContextManager[None]:
    """Routes mx.fast.scaled_dot_product_attention here while the block runs, in all threads.

    Blocks nest and overlap: MLX has its own back when the last one ends and `enable()` does not
    stand.
    """
    return _route.enabled()


def is_enabled() -> bool:
    """Whether calls come here at the moment."""
    return _route.is_on()


def stats() -> Stats:
    """How many calls ran here, how many in MLX and why, since the start or `reset_stats()`."""
    return _route.counts.stats()


def reset_stats() -> None:
    """Counts from 0 again."""
    _route.counts.reset()


_route = Route(mx.fast, _CALL, scaled_dot_product_attention)


def _causal_and_mask(mask: Array | str | None) -> tuple[bool, Array | None]:
    if isinstance(mask, str):
        if mask in ("", "causal"):
            return mask == "causal", None
        raise InvalidArgument(f'{_CALL}: mask: {mask!r}, takes an array, None or "causal"')
    if mask is not None:
        _require_array("mask", mask)
    return False, mask


def _require_array(name: str, x: object) -> None:
    if not isinstance(x, mx.array):
        raise InvalidType(f"{_CALL}: {name}: a {type(x).__name__}, takes an mx.array")


def _common_dtype(*arrays: Array) -> Any:
    for name, x in zip("qkv", arrays, strict=True):
        _require_array(name, x)
        if x.ndim != 4:
            raise InvalidArgument(f"{_CALL}: {name}: shape {x.shape}, takes [B, H, L, D]")
    q, k, v = (x.dtype for x in arrays)
    return q if q == k == v else mx.result_type(*arrays)


def _reason_for_mlx(dtype: Any, q: Array, v: Array) -> str | None:
    if dtype not in _FLOATS:
        return f"dtype {dtype}"
    head_dim = max(q.shape[-1], v.shape[-1])
    if head_dim > _max_head_dim():
        return f"a head of {head_dim}"
    return None


@functools.cache
def _max_head_dim() -> int:
    return metal_sdpa.Device("cpu").limits.max_head_dim


def _evaluated(arrays: list[Array]) -> bool:
    """Evaluates them; False where a transformation only traces one."""
    try:
        mx.eval(arrays)
    except ValueError as error:
        if "during function transformations" in str(error):
            return False
        raise
    return True


def _attend(arrays: list[Array], names: list[str], scale: float, causal: bool) -> Array:
    """Of q, k and v, and of what `names` calls the others; all are evaluated."""

    def attend(q: Array, k: Array, v: Array, *others: Array) -> Array:
        options = dict(zip(names, others, strict=True))
        q, k, v = map(_rows, (q, k, v))
        return _sdpa(q, k, v, scale=scale, causal=causal, **options)

    if not _compile_is_disabled():
        return attend(*arrays)  # metal_sdpa.sdpa refuses what a gradient traces, by name
    # Tracing does not show then: the gradient itself has to refuse.
    guarded = mx.custom_function(attend)
    guarded.vjp(_refuse_gradient)
    guarded.jvp(_refuse_gradient)
    return guarded(*arrays)


def _rows(x: Array) -> Array:
    """The array with a contiguous last dimension."""
    if x.shape[-1] <= 1 or x.size == 0:
        return x
    strides = memoryview(x).strides
    if strides is not None and strides[-1] == x.itemsize:
        return x
    copied = mx.contiguous(x)
    mx.eval(copied)
    return copied


def _refuse_gradient(*_: Any) -> Any:
    raise Unsupported(f"{_CALL}: has no gradient: this is for inference")


def _compile_is_disabled() -> bool:
    """A compiled function that has seen its argument runs its Python code only under
    mx.disable_compile()."""
    _runs_of_probe.count = 0
    _probe(_untraced)
    _probe(_untraced)
    return bool(_runs_of_probe.count == 2)


def _count_run(_: Array) -> None:
    _runs_of_probe.count += 1


_runs_of_probe = threading.local()
_probe: Any = mx.compile(_count_run)
_untraced = mx.zeros(())
mx.eval(_untraced)
