"""Calls of sdpa that must be refused: a small valid call with one thing spoiled.

Every fault says which argument the error names, and its type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arrays import DTYPES, poisoned

# A spoiler changes sdpa's arguments in place.
Spoiler = Callable[[np.random.Generator, dict], None]


@dataclass(frozen=True)
class Fault:
    """argument: a regular expression for what follows "sdpa: " in the text.

    One that holds a colon is for the whole text: it comes from another call on the way.
    """

    name: str
    argument: str
    error: str
    spoil: Spoiler


FAULTS: list[Fault] = []


def fault(argument: str, error: str = "InvalidArgument") -> Callable[[Spoiler], Spoiler]:
    def add(spoil: Spoiler) -> Spoiler:
        FAULTS.append(Fault(spoil.__name__, argument, error, spoil))
        return spoil

    return add


def valid_call(rng: np.random.Generator) -> dict:
    """Arguments of a valid call by name; out is written, and larger than one element everywhere."""
    dtype = DTYPES[str(rng.choice(list(DTYPES)))]
    B, Hkv, L, S = (int(n) for n in rng.integers(2, 5, 4))
    Hq = Hkv * int(rng.integers(1, 4))
    D, Dv = (int(n) for n in rng.integers(2, 40, 2))

    def values(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims, np.float32).astype(dtype)

    return {
        "q": values(B, Hq, L, D),
        "k": values(B, Hkv, S, D),
        "v": values(B, Hkv, S, Dv),
        "causal": bool(rng.random() < 0.5),
        "out": poisoned(rng, B * Hq * L * Dv, dtype, "bits").reshape(B, Hq, L, Dv),
        "return_lse": bool(rng.random() < 0.5),
    }


def one_of(rng: np.random.Generator, *choices: object) -> object:
    return choices[int(rng.integers(len(choices)))]


# --- shapes --------------------------------------------------------------------------------------


def _spoil_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoiler:
    def spoil(rng: np.random.Generator, call: dict) -> None:
        call[name] = change(call[name])

    return spoil


def _zero_size(name: str, axis: int) -> Spoiler:
    return _spoil_array(name, lambda x: x[(slice(None),) * axis + (slice(0, 0),)])


# The core names an extent by what it is.
EXTENTS = "(batch|n_heads|n_kv_heads|seq_len|kv_capacity|head_dim|value_dim|[qkv])"

for _name in ("q", "k", "v"):
    for _axis in range(4):
        # A zero size may be found as a mismatch with another tensor first. No queries are fine, but
        # then `out` has too many rows.
        _word = "out" if (_name, _axis) == ("q", 2) else EXTENTS
        FAULTS.append(
            Fault(f"{_name}_axis_{_axis}_empty", _word, "InvalidArgument", _zero_size(_name, _axis))
        )
    FAULTS += [
        Fault(f"{_name}_3d", _name, "InvalidArgument", _spoil_array(_name, lambda x: x[0])),
        Fault(f"{_name}_5d", _name, "InvalidArgument", _spoil_array(_name, lambda x: x[None])),
        Fault(
            f"{_name}_last_dimension_strided",
            _name,
            "InvalidArgument",
            _spoil_array(_name, lambda x: np.repeat(x, 2, axis=3)[..., ::2]),
        ),
        Fault(
            f"{_name}_last_dimension_reversed",
            _name,
            "InvalidArgument",
            _spoil_array(_name, lambda x: x[..., ::-1]),
        ),
    ]


@fault("k")
def k_head_dim_is_another(rng: np.random.Generator, call: dict) -> None:
    call["k"] = call["k"][..., :-1]


@fault("k")
def k_batch_is_another(rng: np.random.Generator, call: dict) -> None:
    call["k"] = call["k"][:1]


@fault("v")
def v_batch_is_another(rng: np.random.Generator, call: dict) -> None:
    call["v"] = call["v"][:1]


@fault("v")
def v_has_other_heads(rng: np.random.Generator, call: dict) -> None:
    call["v"] = call["v"][:, :1]


@fault("v")
def v_has_another_length(rng: np.random.Generator, call: dict) -> None:
    call["v"] = call["v"][:, :, 1:]


@fault("(q|k|n_heads)")
def heads_do_not_divide(rng: np.random.Generator, call: dict) -> None:
    heads = call["k"].shape[1] + 1 if rng.random() < 0.5 else call["q"].shape[1] - 1
    call["q"] = np.repeat(call["q"][:, :1], heads, axis=1)
    call["k"], call["v"] = (np.concatenate([call[n]] * 2, axis=1) for n in "kv")
    if heads % call["k"].shape[1] == 0:
        call["q"] = call["q"][:, : heads - 1]
    call["out"] = None


@fault("(q|head_dim)")
def head_dim_over_the_limit(rng: np.random.Generator, call: dict) -> None:
    width = 1025 + int(rng.integers(0, 100))
    for name in "qk":
        call[name] = np.ones((*call[name].shape[:3], width), call[name].dtype)


@fault("(v|value_dim)")
def value_dim_over_the_limit(rng: np.random.Generator, call: dict) -> None:
    width = 1025 + int(rng.integers(0, 100))
    call["v"] = np.ones((*call["v"].shape[:3], width), call["v"].dtype)
    call["out"] = None


# --- dtypes --------------------------------------------------------------------------------------


def _another_dtype(dtype: np.dtype) -> np.dtype:
    """Never f32, which an output may have whatever q has."""
    return next(other for other in reversed(DTYPES.values()) if other != dtype)


for _name in ("k", "v", "out"):
    FAULTS.append(
        Fault(
            f"{_name}_of_another_dtype",
            _name,
            "UnsupportedDType",
            _spoil_array(_name, lambda x: np.zeros(x.shape, _another_dtype(x.dtype))),
        )
    )


@fault("q", "UnsupportedDType")
def dtype_that_attention_does_not_take(rng: np.random.Generator, call: dict) -> None:
    dtype = one_of(rng, np.float64, np.int32, np.uint8, np.int16, np.int64, np.complex64, bool)
    for name in "qkv":
        call[name] = np.ones(call[name].shape, dtype)
    call["out"] = None


@fault("q", "UnsupportedDType")
def objects_and_text(rng: np.random.Generator, call: dict) -> None:
    call["q"] = np.full(call["q"].shape, "a") if rng.random() < 0.5 else call["q"].astype(object)


@fault("[qkv]", "UnsupportedDType")
def byte_swapped(rng: np.random.Generator, call: dict) -> None:
    for other in "qkv":
        call[other] = call[other].astype(np.float32)
    name = str(rng.choice(list("qkv")))
    call[name] = call[name].astype(np.dtype(np.float32).newbyteorder("S"))
    call["out"] = None


# --- memory --------------------------------------------------------------------------------------


def misaligned(x: np.ndarray) -> np.ndarray:
    """A copy whose first element stands at an odd address."""
    raw = np.zeros(x.nbytes + 1, np.uint8)
    copy = np.frombuffer(raw.data, x.dtype, x.size, offset=1).reshape(x.shape)
    copy[...] = x
    return copy


for _name in ("q", "k", "v", "out"):
    FAULTS.append(
        Fault(f"{_name}_misaligned", _name, "InvalidArgument", _spoil_array(_name, misaligned))
    )


@fault("out")
def out_has_another_shape(rng: np.random.Generator, call: dict) -> None:
    axis = int(rng.integers(4))
    call["out"] = np.delete(call["out"], 0, axis)


@fault("out")
def out_is_read_only(rng: np.random.Generator, call: dict) -> None:
    call["out"].flags.writeable = False


@fault("(out|output)")
def out_overlaps_itself(rng: np.random.Generator, call: dict) -> None:
    out = call["out"]
    flat = np.zeros(out.size, out.dtype)
    strides = [s // 2 * (i < 3) for i, s in enumerate(out.strides)]
    strides = [s // out.itemsize * out.itemsize for s in strides[:3]]
    strides[int(rng.integers(3))] = 0
    call["out"] = np.lib.stride_tricks.as_strided(flat, out.shape, (*strides, out.itemsize))


@fault("out")
def out_last_dimension_strided(rng: np.random.Generator, call: dict) -> None:
    call["out"] = np.repeat(call["out"], 2, axis=3)[..., ::2]


@fault("(out|output)")
def out_overlaps_an_input(rng: np.random.Generator, call: dict) -> None:
    """One element of an input lies in out."""
    name = str(rng.choice(list("qkv")))
    size, given = call[name].size, call[name]
    arena = np.zeros(size + call["out"].size - 1, given.dtype)
    call[name] = arena[:size].reshape(given.shape)
    call[name][...] = given
    call["out"] = arena[size - 1 :].reshape(call["out"].shape)


@fault("(out|output)")
def out_is_an_input(rng: np.random.Generator, call: dict) -> None:
    call["v"] = np.ascontiguousarray(np.broadcast_to(call["v"][..., :1], call["k"].shape))
    call["out"] = call["q"]


# --- lengths and numbers -------------------------------------------------------------------------


@fault("kv_lengths")
def kv_lengths_out_of_range(rng: np.random.Generator, call: dict) -> None:
    batch, capacity = call["k"].shape[0], call["k"].shape[2]
    wrong = int(one_of(rng, -1, capacity + 1, 2**31, -(2**40), 2**62))
    if rng.random() < 0.4:
        call["kv_lengths"] = wrong
        return
    call["kv_lengths"] = [capacity] * (batch - 1) + [wrong]


@fault("kv_lengths")
def kv_lengths_of_another_count(rng: np.random.Generator, call: dict) -> None:
    batch = call["k"].shape[0]
    count = int(one_of(rng, 0, batch - 1, batch + 1))
    call["kv_lengths"] = np.ones(count, np.int64)


@fault("kv_lengths")
def kv_lengths_of_a_wrong_type(rng: np.random.Generator, call: dict) -> None:
    batch = call["k"].shape[0]
    call["kv_lengths"] = one_of(rng, "1", 1.5, [1.5] * batch, object(), np.ones((batch, 1), int))


@fault("q_start")
def q_start_of_another_count(rng: np.random.Generator, call: dict) -> None:
    batch = call["k"].shape[0]
    call["q_start"] = [0] * int(one_of(rng, 0, batch - 1, batch + 1))


@fault("q_start")
def q_start_of_a_wrong_type(rng: np.random.Generator, call: dict) -> None:
    batch = call["k"].shape[0]
    call["q_start"] = one_of(rng, "0", 0.5, ["0"] * batch, object(), np.zeros((batch, 1), int))


@fault("q_start")
def q_start_past_any_position(rng: np.random.Generator, call: dict) -> None:
    call["q_start"] = one_of(rng, 2**63 - 1, -(2**63), 2**64, -(2**100))


@fault("scale")
def scale_is_not_a_finite_number(rng: np.random.Generator, call: dict) -> None:
    # 1e39 is infinite in f32, the unit of the kernels.
    call["scale"] = one_of(rng, np.nan, np.inf, -np.inf, 1e39, "1", [1.0], object())


# --- what is not there ---------------------------------------------------------------------------


@fault("(q|k|v|out)")
def not_an_array(rng: np.random.Generator, call: dict) -> None:
    name = str(rng.choice(["q", "k", "v", "out"]))
    call[name] = one_of(rng, "array", 3, [[1.0]], object(), {}, b"bytes")


@fault("Device: kind: got", "DeviceNotFound")
def no_such_device(rng: np.random.Generator, call: dict) -> None:
    call["device"] = one_of(rng, "cuda", "gpu", "")


@fault("device")
def device_of_a_wrong_type(rng: np.random.Generator, call: dict) -> None:
    call["device"] = one_of(rng, 0, object(), ["cpu"])


@fault("(causal|return_lse)")
def flag_of_a_wrong_type(rng: np.random.Generator, call: dict) -> None:
    call[str(one_of(rng, "causal", "return_lse"))] = one_of(rng, "yes", 2.5, object(), [True])
