"""Attention for JAX on the CPU, under jit, vmap, scan and shard_map, without gradients.

`sdpa` has the arguments of `metal_sdpa.sdpa`, `dot_product_attention` those of
`jax.nn.dot_product_attention`, and `attention_fn` those of Flax:

```python
nnx.MultiHeadAttention(..., attention_fn=metal_sdpa.integrations.jax.attention_fn)
```

A computation calls the kernels where XLA keeps its buffers (`_xla_ffi.py`), without copies.
"""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import metal_sdpa
from metal_sdpa import InvalidArgument, InvalidType, Unsupported
from metal_sdpa.integrations import _xla_ffi
from metal_sdpa.integrations._route import Route, Stats

Array: TypeAlias = jax.Array
NumpyArray: TypeAlias = np.ndarray[Any, Any]
Window: TypeAlias = int | tuple[int | None, int | None] | None

# Of arguments that are put together.
_plan: Any = metal_sdpa.plan
_sdpa: Any = metal_sdpa.sdpa

# What stands behind the axes that vmap adds in front.
_RANKS = {
    "q": 4,
    "k": 4,
    "v": 4,
    "mask": 4,
    "sinks": 1,
    "alibi_slopes": 2,
    "q_start": 1,
    "kv_lengths": 1,
    "kv_starts": 1,
    "query_lengths": 1,
}
_PER_SEQUENCE = ("q_start", "kv_lengths", "kv_starts", "query_lengths")
_LEADS_WITH_BATCH = ("q", "k", "v", "alibi_slopes", *_PER_SEQUENCE)


def sdpa(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: Window = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    kv_starts: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """`metal_sdpa.sdpa` of JAX arrays, traced or not: q [B, Hq, L, D], k [B, Hkv, S, D], v alike.

    Every argument means what it means there. Arrays may be traced: q, k, v, mask, sinks,
    alibi_slopes, and what is one number a sequence (q_start, lengths, kv_starts), so that a decode
    step is compiled once. The others are Python values and part of the compiled program.

    Under vmap the new axes join the batch where k and v have them too; what all of them share is
    not copied. Returns out, or (out, lse f32 [B, Hq, L]).

    Errors: those of `metal_sdpa.sdpa` while JAX traces; what only the numbers of a computation show
    (a length over S) ends it with jax.errors.JaxRuntimeError and the same text. Unsupported where a
    gradient or a tangent is asked for.
    """
    given = {
        "mask": mask,
        "sinks": sinks,
        "alibi_slopes": alibi_slopes,
        "q_start": q_start,
        "kv_lengths": kv_lengths,
        "kv_starts": kv_starts,
        "query_lengths": query_lengths,
    }
    options = {
        "causal": bool(causal),
        "scale": _number("scale", scale),
        "window": _window(window),
        "softcap": _number("softcap", softcap),
        "key_offset": operator.index(key_offset),
        "key_stride": operator.index(key_stride),
        "return_lse": bool(return_lse),
    }
    outs = _attention((q, k, v), given, options, "BHLD")
    return (outs[0], outs[1]) if return_lse else outs[0]


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Array | None = None,
    key_value_seq_lengths: Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Array | tuple[Array, Array]:
    """`jax.nn.dot_product_attention`, of query [B, T, N, H], key and value [B, S, K, H], or no B.

    bias                   Added to the scores; broadcasts to [B, N, T, S].
    mask                   Boolean, True = attend; broadcasts to [B, N, T, S].
    is_causal              Top-left: query i sees keys 0 to i.
    query_seq_lengths      [B]: rows past them are 0.
    key_value_seq_lengths  [B]: keys past them are hidden.
    local_window_size      (left, right), or W for (W, W): keys i - left to i + right.
    return_residual        Also return the log of the softmax denominators, [B, T, N], key's dtype.

    Differences: a row that sees no key is 0 with a residual of -inf (JAX takes the mean of the
    values); value may have another last dimension; scores are f32 whatever the dtype.

    Errors: as for `sdpa`; Unsupported for an `implementation` other than None and "xla", JAX's
    default, which name nothing in particular.
    """
    if implementation not in (None, "xla"):
        text = f"dot_product_attention: implementation: {implementation!r}, takes None"
        raise Unsupported(text)
    arrays = [jnp.asarray(x) for x in (query, key, value)]
    if any(x.ndim != arrays[0].ndim or x.ndim not in (3, 4) for x in arrays):
        shapes = ", ".join(str(x.shape) for x in arrays)
        raise InvalidArgument(
            f"dot_product_attention: query, key, value: shapes {shapes}, takes [B, T, N, H] or "
            "[T, N, H] of all three"
        )
    is_batched = arrays[0].ndim == 4
    four_dims = [x if is_batched else x[None] for x in arrays]
    given = {
        "mask": _bias_and_mask(bias, mask),
        "q_start": 0 if is_causal or local_window_size is not None else None,
        "query_lengths": _clipped(query_seq_lengths, four_dims[0].shape[1]),
        "kv_lengths": _clipped(key_value_seq_lengths, four_dims[1].shape[1]),
    }
    options = {
        "causal": bool(is_causal),
        "scale": _number("scale", scale),
        "window": _jax_window(local_window_size),
        "return_lse": bool(return_residual),
    }
    outs = [x if is_batched else x[0] for x in _attention(four_dims, given, options, "BLHD")]
    if not return_residual:
        return outs[0]
    return outs[0], jnp.swapaxes(outs[1], -1, -2).astype(arrays[1].dtype)


def attention_fn(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    module: Any = None,
    is_causal: bool = False,
    **unused: Any,
) -> Array:
    """`dot_product_attention` as Flax calls it, of any number of batch axes.

    query [..., T, N, H], key and value [..., S, N, H], brought to `dtype` or to their common one;
    bias and mask broadcast to [..., N, T, S], and a mask hides where it is 0, whatever its dtype.
    The other arguments of Flax concern dropout and precision and do not matter here.

    Unsupported for dropout that is not deterministic, and for attention weights that the module is
    to keep (`sow_weights`).
    """
    if dropout_rate > 0 and not deterministic:
        raise Unsupported(f"attention_fn: dropout_rate: {dropout_rate}, takes 0: this only infers")
    if module is not None:
        raise Unsupported("attention_fn: sow_weights: attention weights are never formed")
    dtype = jnp.result_type(query, key, value) if dtype is None else dtype
    lead = query.shape[:-3]
    q, k, v = (x.astype(dtype).reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    scores = (query.shape[-2], query.shape[-3], key.shape[-3])  # [N, T, S]
    bias, mask = (_of_one_batch_axis(x, lead, scores) for x in (bias, mask))
    visible = None if mask is None else mask != 0
    out = dot_product_attention(q, k, v, bias, visible, is_causal=is_causal)
    assert isinstance(out, jax.Array)
    return out.reshape(*lead, *out.shape[-3:])


def _of_one_batch_axis(
    x: Array | None, lead: tuple[int, ...], scores: tuple[int, ...]
) -> Array | None:
    """A mask that broadcasts to [..., N, T, S], over one axis in place of those in front."""
    if x is None or x.ndim <= 3 or len(lead) == 1:
        return x
    return jnp.broadcast_to(x, (*lead, *scores)).reshape(-1, *scores)


def enable() -> None:
    """Routes `jax.nn.dot_product_attention` here until `disable()`; twice is once.

    Keras on JAX and Flax call it. jit keeps what it has traced: what was compiled before stays
    JAX's, what is compiled meanwhile stays ours, until jax.clear_caches().
    """
    _route.enable()


def disable() -> None:
    """Ends `enable()`; harmless without. Blocks of `enabled()` that are open stay."""
    _route.disable()


def enabled() -> AbstractContextManager[None]:
    """`enable()` while the block runs, in all threads; blocks nest and overlap."""
    return _route.enabled()


def is_enabled() -> bool:
    """Whether calls come here at the moment."""
    return _route.is_on()


def stats() -> Stats:
    """How many calls ran here, how many in JAX's own function and why.

    Calls under jit count once, as they are traced. JAX's own function takes other dtypes than
    float32, float16 and bfloat16, other platforms than the CPU, a scale that is traced, heads that
    are too large, and implementation="cudnn".
    """
    return _route.counts.stats()


def reset_stats() -> None:
    """Counts from 0 again."""
    _route.counts.reset()


def _routed(query: Any, key: Any, value: Any, *masks: Any, **options: Any) -> Any:
    reason = _reason_for_jax((query, key, value), options)
    if reason is None:
        out = dot_product_attention(query, key, value, *masks, **options)
        _route.counts.take()
        return out
    return _route.fall_back(reason, query, key, value, *masks, **options)


_route = Route(jax.nn, "dot_product_attention", _routed)


def _reason_for_jax(qkv: Sequence[Any], options: dict[str, Any]) -> str | None:
    if options.get("implementation") not in (None, "xla"):
        return f"implementation={options['implementation']!r}"
    if isinstance(options.get("scale"), jax.core.Tracer):
        return "a traced scale"
    if (backend := jax.default_backend()) != "cpu":
        return f"platform {backend}"
    for x in qkv:
        if jnp.asarray(x).dtype not in (jnp.float32, jnp.float16, jnp.bfloat16):
            return f"dtype {jnp.asarray(x).dtype}"
    largest = metal_sdpa.Device("cpu").limits.max_head_dim
    head_dim = max(jnp.shape(x)[-1] for x in qkv)
    return None if head_dim <= largest else f"a head of {head_dim}"


# --- arguments -----------------------------------------------------------------------------------


def _number(name: str, value: Any) -> float | None:
    """A Python number: it is part of the program."""
    if value is None:
        return None
    if isinstance(value, jax.core.Tracer):
        raise Unsupported(f"sdpa: {name}: is traced, takes a Python number")
    return float(value)


def _window(window: Window) -> int | list[int | None] | None:
    if window is None:
        return None
    if isinstance(window, tuple | list):
        return [None if side is None else operator.index(side) for side in window]
    return operator.index(window)


def _clipped(lengths: Array | None, most: int) -> Array | None:
    """JAX compares with lengths, and takes any."""
    return None if lengths is None else jnp.clip(lengths, 0, most)


def _jax_window(size: int | tuple[int, int] | None) -> list[int] | None:
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else [int(side) for side in size]
    if len(sides) != 2 or min(sides) < 0:
        raise InvalidArgument(
            f"dot_product_attention: local_window_size: {size!r}, takes a number or (left, right), "
            "0 or more"
        )
    return sides


def _bias_and_mask(bias: Array | None, mask: Array | None) -> Array | None:
    """One mask for both."""
    if mask is not None and jnp.asarray(mask).dtype != jnp.bool_:
        raise InvalidType("dot_product_attention: mask: takes booleans; numbers to add are bias")
    if bias is None:
        return mask
    bias = jnp.asarray(bias)
    if bias.dtype not in (jnp.float32, jnp.float16, jnp.bfloat16):
        bias = bias.astype(jnp.float32)
    return bias if mask is None else jnp.where(mask, bias, jnp.array(-jnp.inf, bias.dtype))


def _attention(
    qkv: Sequence[Array], given: dict[str, Any], options: dict[str, Any], layout: str
) -> list[Array]:
    """out, and lse [B, Hq, L] where options ask for it."""
    arrays = dict(zip("qkv", map(jnp.asarray, qkv), strict=True))
    for name, x in arrays.items():
        if x.ndim != 4:
            raise InvalidArgument(f"sdpa: {name}: shape {x.shape}, takes {list(layout)}")
    batch = arrays["q"].shape[0]
    n_heads = arrays["q"].shape[layout.index("H")]
    for name, x in given.items():
        if x is not None:
            arrays[name] = _whole(name, jnp.asarray(x), batch, n_heads)
    call = json.dumps({"layout": layout, "names": list(arrays), "options": options})
    return list(_traced(call, _NATIVE, *arrays.values()))


def _whole(name: str, x: Array, batch: int, n_heads: int) -> Array:
    """An array of the rank in `_RANKS`, so that axes of vmap can be told from its own."""
    rank = _RANKS[name]
    if name in _PER_SEQUENCE:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise InvalidType(f"sdpa: {name}: dtype {x.dtype}, takes int32 or int64")
        x = x if x.dtype in (jnp.int32, jnp.int64) else x.astype(jnp.int32)
        return jnp.broadcast_to(x, (batch,)) if x.ndim == 0 else x
    if name == "sinks" and x.ndim == 0:
        return jnp.broadcast_to(x, (n_heads,))
    if name == "alibi_slopes" and x.ndim == 1:
        return jnp.broadcast_to(x, (batch, *x.shape))
    return x.reshape((1,) * (rank - x.ndim) + x.shape) if x.ndim < rank else x


# --- under JAX's transformations -----------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1))
def _traced(call: str, native: bool, *arrays: Array) -> Sequence[Array]:
    _refuse_what_shapes_tell(call, arrays)
    outs: Sequence[Array] = _without_gradient(call, native, *arrays)
    return outs


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _without_gradient(call: str, native: bool, *arrays: Array) -> Sequence[Array]:
    results = _results(call, [x.shape for x in arrays[:3]], arrays[0].dtype)
    outs: Sequence[Array]
    if native:
        outs = jax.ffi.ffi_call(_TARGET, results, vmap_method="expand_dims")(*arrays, call=call)
        return outs
    callback = functools.partial(_returned, call)
    outs = jax.pure_callback(callback, results, *arrays, vmap_method="expand_dims")
    return outs


def _refuse_gradient(call: str, native: bool, primals: Any, tangents: Any) -> Any:
    raise Unsupported("sdpa: has no gradient: this is for inference")


_without_gradient.defjvp(_refuse_gradient)


def _results(
    call: str, shapes: Sequence[tuple[int, ...]], dtype: Any
) -> list[jax.ShapeDtypeStruct]:
    layout, _, options = _parsed(call)
    q, v = shapes[0], shapes[2]
    results = [jax.ShapeDtypeStruct((*q[:3], v[3]), dtype)]
    if options["return_lse"]:
        lse_shape = (q[0], q[layout.index("H")], q[layout.index("L")])
        results.append(jax.ShapeDtypeStruct(lse_shape, jnp.float32))
    return results


def _refuse_what_shapes_tell(call: str, arrays: Sequence[Array]) -> None:
    """The errors of metal_sdpa.sdpa, from arrays that hold nothing."""
    layout, names, options = _parsed(call)
    named: dict[str, NumpyArray] = {}
    for name, x in zip(names, arrays, strict=True):
        # Numbers a sequence are looked at; of the others no page is ever touched.
        make = np.zeros if len(x.shape) < 3 else np.empty
        named[name] = make(x.shape, x.dtype)
    try:
        _plan(**_heads_first(named, layout), **options, device="cpu")
    except metal_sdpa.Error as error:
        raise type(error)(str(error).replace("plan: ", "sdpa: ", 1)) from None


# --- on the host: NumPy arrays only --------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _parsed(call: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    parsed = json.loads(call)
    options = parsed["options"]
    if isinstance(options["window"], list):
        options["window"] = tuple(options["window"])
    return parsed["layout"], tuple(parsed["names"]), options


def _run(call: str, arrays: list[NumpyArray], outs: list[NumpyArray]) -> None:
    """Attention into `outs`; axes that vmap added stand in front, of length 1 where shared."""
    layout, names, options = _parsed(call)
    named = _heads_first(dict(zip(names, arrays, strict=True)), layout)
    out = _heads_first({"q": outs[0]}, layout)["q"]
    lead = out.shape[:-4]
    if not lead:
        _attend(named, options, [out, *outs[1:]])
        return
    if _joins_the_batch(named, lead):
        joined = {name: _joined(name, x, lead) for name, x in named.items()}
        joined_outs = [x.reshape(-1, *x.shape[len(lead) + 1 :]) for x in (out, *outs[1:])]
        _attend(joined, options, joined_outs)
        return
    for index in np.ndindex(lead):
        one = {
            name: x[tuple(min(i, n - 1) for i, n in zip(index, x.shape, strict=False))]
            for name, x in named.items()
        }
        _attend(one, options, [x[index] for x in (out, *outs[1:])])


def _returned(call: str, *arrays: Any) -> list[NumpyArray]:
    """`_run` for jax.pure_callback, which copies arrays out of XLA's buffers, and results in."""
    inputs = [np.asarray(x) for x in arrays]
    _, names, _ = _parsed(call)
    leads = [x.shape[: x.ndim - _RANKS[name]] for name, x in zip(names, inputs, strict=True)]
    lead = np.broadcast_shapes(*leads)
    own_shapes = [x.shape[-4:] for x in inputs[:3]]
    outs = [
        np.empty((*lead, *result.shape), result.dtype)
        for result in _results(call, own_shapes, inputs[0].dtype)
    ]
    _run(call, inputs, outs)
    return outs


def _heads_first(named: dict[str, NumpyArray], layout: str) -> dict[str, NumpyArray]:
    """q, k and v as [..., B, H, L, D]."""
    if layout == "BHLD":
        return named
    return {name: x.swapaxes(-3, -2) if name in "qkv" else x for name, x in named.items()}


def _joins_the_batch(named: dict[str, NumpyArray], lead: tuple[int, ...]) -> bool:
    """Whether one call does: keys and values are not copied, and the rest can be said in one."""
    if any(named[name].shape[:-4] != lead for name in "kv"):
        return False
    if "sinks" in named and math.prod(named["sinks"].shape[:-1]) != 1:
        return False
    mask = named.get("mask")
    if mask is None or (math.prod(mask.shape[:-4]) == 1 and mask.shape[-4] == 1):
        return True
    return bool(mask.shape[:-3] == (*lead, named["q"].shape[-4]))


def _joined(name: str, x: NumpyArray, lead: tuple[int, ...]) -> NumpyArray:
    """[lead..., B, ...] as [lead * B, ...]."""
    own = x.shape[len(lead) :]
    joined: NumpyArray
    if name in _LEADS_WITH_BATCH:
        joined = np.broadcast_to(x, (*lead, *own)).reshape(-1, *own[1:])
    elif name == "mask" and x.shape[: len(lead)] == lead:
        joined = x.reshape(-1, *own[1:])
    else:
        joined = x.reshape(own)
    return joined


def _attend(named: dict[str, NumpyArray], options: dict[str, Any], outs: list[NumpyArray]) -> None:
    result = _sdpa(**named, **options, out=outs[0], device="cpu")
    if options["return_lse"]:
        outs[1][...] = result[1]


_TARGET = "metal_sdpa.sdpa"
_NATIVE = _xla_ffi.register(_TARGET, _run)
