"""Wrong Python types get our text: the call, the argument, what it got, what it takes."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import metal_sdpa
from metal_sdpa import (
    Buffer,
    CommandEncoder,
    Device,
    DType,
    InvalidArgument,
    KernelRegistry,
    OpKind,
    SdpaParams,
    UnsupportedDType,
    encode_sdpa,
    sdpa,
)
from metal_sdpa._core import parameters

Q = np.ones((1, 2, 3, 8), np.float32)


class Odd:
    """No number, no array, no sequence."""

    def __str__(self) -> str:  # without an address: processes of xdist compare the names of tests
        return "odd"


def buffer() -> Buffer:
    return Device("cpu").empty((2, 8), "f32")


def encoder() -> CommandEncoder:
    return Device("cpu").command_encoder()


def registry() -> KernelRegistry:
    return KernelRegistry(Device("cpu"))


def params() -> SdpaParams:
    return SdpaParams(2, 1, 8, 1, 1)


def encode(**changed: Any) -> None:
    arguments: dict[str, Any] = {
        "encoder": encoder(),
        "registry": registry(),
        "device": Device("cpu"),
        "q": buffer(),
        "k": buffer(),
        "v": buffer(),
        "output": buffer(),
        "params": params(),
        "batch_size": 1,
    }
    encode_sdpa(**(arguments | changed))


def dispatch(**changed: Any) -> None:
    arguments: dict[str, Any] = {
        "pipeline": registry().get_pipeline("sdpa"),
        "bindings": [(0, buffer())],
        "threadgroups": 1,
        "threadgroup_size": 1,
    }
    encoder().encode_threadgroups(**(arguments | changed))


def set_field(name: str, value: object) -> None:
    setattr(params(), name, value)


# The call, and the beginning of the text; every one gets an Odd, unless it says otherwise.
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "Device kind": (lambda: Device(Odd()), "Device: kind: got an Odd, takes a str"),
    "Device threads": (lambda: Device("cpu", threads=Odd()), "Device: threads: got an Odd"),
    "Device threads bool": (lambda: Device("cpu", threads=True), "Device: threads: got a bool"),
    "Device isa": (lambda: Device("cpu", isa=3), "Device: isa: got an int, takes a str"),
    "wrap": (lambda: Device("cpu").wrap(Odd()), "wrap: array: got an Odd, takes an array"),
    "wrap class": (lambda: Device("cpu").wrap(np.ndarray), "wrap: array: got a type"),
    "wrap list": (lambda: Device("cpu").wrap([1.0]), "wrap: array: got a list, takes an array"),
    "empty shape": (lambda: Device("cpu").empty(Odd(), "f32"), "empty: shape: got an Odd"),
    "empty extent": (lambda: Device("cpu").empty((1, 2.0), "f32"), "empty: shape: got a float"),
    "empty text": (lambda: Device("cpu").empty("12", "f32"), "empty: shape: got a str"),
    "alloc": (
        lambda: Device("cpu").alloc_buffer(None, "f32", 1),
        "alloc_buffer: byte_len: got None",
    ),
    "slice": (lambda: buffer().slice_view(0.0, 1), "slice_view: byte_offset: got a float"),
    "slice count": (lambda: buffer().slice_view(0, "1"), "slice_view: n_elements: got a str"),
    "reshape": (lambda: buffer().reshape(None), "reshape: shape: got None"),
    "registry": (lambda: KernelRegistry(Odd()), "KernelRegistry: device: got an Odd"),
    "function": (lambda: registry().get_pipeline(1), "get_pipeline: function: got an int"),
    "library": (
        lambda: registry().get_pipeline("sdpa", {}, 1),
        "get_pipeline: library: got an int",
    ),
    "constants": (
        lambda: registry().get_pipeline("sdpa", [1]),
        "get_pipeline: constants: got a list",
    ),
    "constant": (
        lambda: registry().get_pipeline("sdpa", {0: "x"}),
        "get_pipeline: constants: got a",
    ),
    "constant index": (
        lambda: registry().get_pipeline("sdpa", {-1: 1}),
        "get_pipeline: constants: -1",
    ),
    "source": (lambda: registry().register_source("x", 1), "register_source: source: got an int"),
    "native": (
        lambda: registry().register_native("x", Odd()),
        "register_native: kernel: got an Odd",
    ),
    "register": (lambda: metal_sdpa.register_sdpa(Odd()), "register_sdpa: registry: got an Odd"),
    "encoder": (lambda: CommandEncoder(1), "CommandEncoder: device: got an int"),
    "op kind": (lambda: encoder().set_op_kind("sdpa"), "set_op_kind: kind: got a str"),
    "pipeline": (lambda: dispatch(pipeline="x"), "encode_threadgroups: pipeline: got a str"),
    "bindings": (lambda: dispatch(bindings=Odd()), "encode_threadgroups: bindings: got an Odd"),
    "binding": (lambda: dispatch(bindings=[3]), "encode_threadgroups: bindings: got an int"),
    "pair": (lambda: dispatch(bindings=[(0,)]), "encode_threadgroups: bindings: got 1 entries"),
    "bound": (lambda: dispatch(bindings=[(0, Odd())]), "encode_threadgroups: bindings: got an Odd"),
    "grid": (
        lambda: dispatch(threadgroups=(1, 1, 1, 1)),
        "encode_threadgroups: threadgroups: got 4",
    ),
    "grid float": (lambda: dispatch(threadgroups=1.0), "encode_threadgroups: threadgroups: got a"),
    "grid big": (lambda: dispatch(threadgroup_size=2**32), "encode_threadgroups: threadgroup_size"),
    "memory": (lambda: dispatch(threadgroup_memory=[1]), "encode_threadgroups: threadgroup_memory"),
    "reads": (lambda: dispatch(reads=[(buffer(), 0)]), "encode_threadgroups: reads: got 2 entries"),
    "writes": (lambda: dispatch(writes=[(Odd(), 0, 1)]), "encode_threadgroups: writes: got an Odd"),
    "replay": (lambda: captured().replay(Odd()), "replay: encoder: got an Odd"),
    "update": (lambda: captured().update("0", kv_seq_len=1), "update: node: got a str"),
    "update len": (lambda: captured().update(0, kv_seq_len=1.0), "update: kv_seq_len: got a float"),
    "params": (lambda: SdpaParams(2, 1, 8.0, 1, 1), "SdpaParams: head_dim: got a float"),
    "params bool": (lambda: SdpaParams(True, 1, 8, 1, 1), "SdpaParams: n_heads: got a bool"),
    "params causal": (lambda: SdpaParams(2, 1, 8, 1, 1, do_causal=1), "SdpaParams: do_causal: got"),
    "params scale": (lambda: SdpaParams(2, 1, 8, 1, 1, "x"), "SdpaParams: scale: got a str"),
    "field": (lambda: set_field("kv_seq_len", "x"), "SdpaParams: kv_seq_len: got a str"),
    "field scale": (lambda: set_field("scale", None), "SdpaParams: scale: got None"),
    "threads": (lambda: metal_sdpa.set_num_threads(2.0), "set_num_threads: n_threads: got a float"),
    "sdpa q": (lambda: sdpa(Odd(), Q, Q), "sdpa: q: got an Odd, takes an array"),
    "sdpa k": (lambda: sdpa(Q, None, Q), "sdpa: k: got None, takes an array"),
    "sdpa v": (lambda: sdpa(Q, Q, [[1.0]]), "sdpa: v: got a list, takes an array"),
    "sdpa causal": (lambda: sdpa(Q, Q, Q, causal=1), "sdpa: causal: got an int, takes a bool"),
    "sdpa scale": (lambda: sdpa(Q, Q, Q, scale=True), "sdpa: scale: got a bool, takes a number"),
    "sdpa q_start": (lambda: sdpa(Q, Q, Q, q_start=1.0), "sdpa: q_start: got a float"),
    "sdpa lengths": (lambda: sdpa(Q, Q, Q, kv_lengths=[1.0]), "sdpa: kv_lengths: got a float"),
    "sdpa lengths 2d": (lambda: sdpa(Q, Q, Q, kv_lengths=[[1]]), "sdpa: kv_lengths: got a list"),
    "sdpa empty": (lambda: sdpa(Q, Q, Q, kv_lengths=[]), "sdpa: kv_lengths: 0 entries"),
    "sdpa big": (
        lambda: sdpa(Q, Q, Q, q_start=2**70),
        "sdpa: q_start: 1180591620717411303424 does",
    ),
    "sdpa out": (lambda: sdpa(Q, Q, Q, out=Odd()), "sdpa: out: got an Odd, takes an array"),
    "sdpa lse": (lambda: sdpa(Q, Q, Q, return_lse="yes"), "sdpa: return_lse: got a str"),
    "sdpa device": (lambda: sdpa(Q, Q, Q, device=1), "sdpa: device: got an int, takes a Device"),
}
for name in ("encoder", "registry", "device", "q", "k", "v", "output", "params", "batch_size"):
    CALLS[f"encode_sdpa {name}"] = (
        lambda name=name: encode(**{name: Odd()}),
        f"encode_sdpa: {name}: got an Odd",
    )


def captured() -> metal_sdpa.Graph:
    recording = encoder()
    recording.begin_capture()
    return recording.end_capture()


# Right types of a wrong value.
VALUES = {
    "pair", "grid", "grid big", "reads", "constant index", "sdpa empty", "sdpa big",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_text_is_ours(name: str) -> None:
    call, text = CALLS[name]
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, TypeError) == (name not in VALUES)


@pytest.mark.parametrize("error", [TypeError, ValueError, InvalidArgument, metal_sdpa.InvalidType])
def test_a_wrong_type_is_caught_by_each_of_its_names(error: type[Exception]) -> None:
    for call in (lambda: sdpa(Q, Q, Q, causal=1), lambda: sdpa(Odd(), Q, Q), lambda: Device(3)):
        with pytest.raises(error, match="got a"):
            call()
    assert issubclass(metal_sdpa.InvalidType, metal_sdpa.Error)
    with pytest.raises(InvalidArgument) as caught:
        sdpa(Q, Q, Q, scale=float("nan"))
    assert not isinstance(caught.value, TypeError)


HUGE = 10**400


@pytest.mark.parametrize("value", [HUGE, -HUGE, 10**5000], ids=["huge", "-huge", "huger"])
def test_numbers_out_of_range(value: int) -> None:
    for call, start in (
        (lambda: sdpa(Q, Q, Q, scale=value), "sdpa: scale: "),
        (lambda: SdpaParams(2, 1, 8, 1, 1, value), "SdpaParams: scale: "),
        (lambda: set_field("scale", value), "SdpaParams: scale: "),
    ):
        with pytest.raises(InvalidArgument, match=start + "an int is out of range"):
            call()
    for call, start in (
        (lambda: sdpa(Q, Q, Q, q_start=value), "sdpa: q_start: "),
        (lambda: sdpa(Q, Q, Q, kv_lengths=[value]), "sdpa: kv_lengths: "),
        (lambda: set_field("head_dim", value), "SdpaParams: head_dim: "),
        (lambda: Device("cpu", threads=value), "Device: threads: "),
    ):
        with pytest.raises(InvalidArgument, match=start + "an int does not fit into 64 bits"):
            call()


DTYPES = {
    "f32": DType.f32,
    "float32": DType.f32,
    "bfloat16": DType.bf16,
    DType.u16: DType.u16,
    np.float16: DType.f16,
    np.dtype(np.uint8): DType.u8,
    np.dtype("=i4"): DType.i32,
    np.int64: DType.i64,
    ml_dtypes.bfloat16: DType.bf16,
    np.dtype(ml_dtypes.bfloat16): DType.bf16,
}


@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_as_dtype(given: Any) -> None:
    assert metal_sdpa.as_dtype(given) is DTYPES[given]


@pytest.mark.parametrize(
    "given", ["f64", float, np.int16, np.dtype(">f4"), None, 3, Odd()], ids=str
)
def test_what_is_no_dtype(given: Any) -> None:
    with pytest.raises(UnsupportedDType, match=r"^as_dtype: dtype: "):
        metal_sdpa.as_dtype(given)


@pytest.mark.frameworks
def test_dtypes_of_frameworks() -> None:
    import jax.numpy as jnp
    import mlx.core as mx
    import torch

    for given in (torch.bfloat16, jnp.bfloat16, mx.bfloat16):
        assert metal_sdpa.as_dtype(given) is DType.bf16


def test_enums_are_pythons_own() -> None:
    assert issubclass(DType, enum.Enum)
    kinds = ["rms_norm", "elem_mul", "elem_add", "sdpa", "softmax", "other"]
    assert [kind.name for kind in OpKind] == kinds
    assert {dtype.name: dtype.itemsize for dtype in DType} == {
        "f32": 4, "f16": 2, "bf16": 2, "u8": 1, "u16": 2, "u32": 4, "i32": 4, "i64": 8,
    }  # fmt: skip


# --- the vectorcall -------------------------------------------------------------------------------


def test_the_signature_is_the_contracts() -> None:
    text = str(inspect.signature(sdpa))
    assert text == (
        "(q, k, v, *, causal=False, q_start=None, scale=None, mask=None, window=None, "
        "softcap=None, sinks=None, alibi_slopes=None, kv_lengths=None, kv_starts=None, "
        "query_lengths=None, key_offset=0, key_stride=1, out=None, return_lse=False, device=None)"
    )
    assert str(inspect.signature(metal_sdpa.plan)) == text


@pytest.mark.parametrize(
    ("arguments", "keywords", "text"),
    [
        ((Q, Q), {}, "sdpa: v: is missing"),
        ((), {}, "sdpa: q: is missing"),
        ((Q, Q, Q, True), {}, "sdpa: got 4 positional arguments"),
        ((Q, Q, Q), {"v": Q}, "sdpa: v: is given twice"),
        ((Q, Q, Q), {"is_causal": True}, "sdpa: got an unexpected argument 'is_causal'"),
    ],
)
def test_calls_that_do_not_fit(arguments: Any, keywords: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        sdpa(*arguments, **keywords)


def test_arguments_by_name_and_names_that_are_not_interned() -> None:
    expected = sdpa(Q, Q, Q, causal=True, scale=0.5)
    assert np.array_equal(sdpa(v=Q, k=Q, q=Q, scale=0.5, causal=True), expected)
    built = {"".join(["cau", "sal"]): True, "".join(["sca", "le"]): 0.5}
    assert np.array_equal(sdpa(Q, Q, Q, **built), expected)


def test_none_is_the_default() -> None:
    nothing = dict.fromkeys(row[0] for row in parameters() if row[2])
    assert np.array_equal(sdpa(Q, Q, Q, **nothing), sdpa(Q, Q, Q))


@pytest.mark.parametrize("value", [np.int64(2), np.array(2), 2, [2], (2,), np.array([2])], ids=repr)
def test_integers_of_every_kind(value: Any) -> None:
    expected = sdpa(Q, Q[:, :, :2], Q[:, :, :2], causal=True, q_start=2)
    assert np.array_equal(sdpa(Q, Q, Q, causal=True, kv_lengths=value, q_start=value), expected)


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), np.array(0.25)], ids=repr)
def test_numbers_of_every_kind(value: Any) -> None:
    assert np.array_equal(sdpa(Q, Q, Q, scale=value), sdpa(Q, Q, Q, scale=0.25))


@pytest.mark.parametrize("value", [np.True_, True])
def test_bools_of_every_kind(value: Any) -> None:
    assert np.array_equal(sdpa(Q, Q, Q, causal=value), sdpa(Q, Q, Q, causal=True))


def test_plan_tells_the_kernel_and_runs_nothing() -> None:
    out = np.full_like(Q, np.nan)
    text = metal_sdpa.plan(Q, Q, Q, causal=True, out=out)
    assert text.startswith("1. sdpa")
    assert np.isnan(out).all()
    with pytest.raises(InvalidArgument, match="plan: k: head_dim 7, but q has 8"):
        metal_sdpa.plan(Q, Q[..., :7], Q)


def bad_outs() -> dict[str, Any]:
    locked = Q.copy()
    locked.flags.writeable = False
    return {
        "shape": np.zeros((1, 2, 2, 8), np.float32),
        "dtype": Q.astype(np.float16),
        "stride": np.zeros((1, 2, 3, 16), np.float32)[..., ::2],
        "read-only": locked,
        "itself": np.lib.stride_tricks.as_strided(Q.copy(), Q.shape, (0, 0, 32, 4)),
        "input": Q,
        "type": [1.0],
        "swapped": Q.astype(">f4"),
    }


@pytest.mark.parametrize("name", bad_outs())
def test_plan_refuses_the_outputs_that_sdpa_refuses(name: str, device: Device) -> None:
    out = bad_outs()[name]
    with pytest.raises(metal_sdpa.Error) as by_sdpa:
        sdpa(Q, Q, Q, out=out, device=device)
    with pytest.raises(metal_sdpa.Error) as by_plan:
        metal_sdpa.plan(Q, Q, Q, out=out, device=device)
    assert type(by_plan.value) is type(by_sdpa.value)
    assert str(by_plan.value) == str(by_sdpa.value).replace("sdpa: ", "plan: ", 1)
