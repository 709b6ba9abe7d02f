"""Arguments that run code of the caller, and those of no plain type, in every conversion."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import metal_sdpa
from metal_sdpa import Device, InvalidArgument, InvalidType, SdpaParams, sdpa, supports
from metal_sdpa._core import unsupported_reason

Q = np.ones((1, 2, 3, 8), np.float32)


def raising(method: str, error: type[BaseException]) -> Any:
    """An object that is a number, an array or a sequence by one method, which raises."""

    def fail(*_: object) -> None:
        raise error("the caller's own")

    return type("Odd", (), {method: fail})()


def sequence(error: type[BaseException]) -> Any:
    def fail(*_: object) -> None:
        raise error("the caller's own")

    return type("Odd", (), {"__getitem__": fail, "__len__": lambda _: 1})()


def truth(error: type[BaseException]) -> Any:
    def fail(*_: object) -> None:
        raise error("the caller's own")

    return type("bool_", (), {"__bool__": fail})()


def dispatch(**changed: Any) -> None:
    device = Device("cpu")
    arguments: dict[str, Any] = {
        "pipeline": metal_sdpa.KernelRegistry(device).get_pipeline("sdpa"),
        "bindings": [(0, device.empty((2, 8), "f32"))],
        "threadgroups": 1,
        "threadgroup_size": 1,
    }
    device.command_encoder().encode_threadgroups(**(arguments | changed))


RUNS: dict[str, Callable[[type[BaseException]], object]] = {
    "threads": lambda e: metal_sdpa.set_num_threads(raising("__index__", e)),
    "params": lambda e: SdpaParams(raising("__index__", e), 1, 8, 1, 1),
    "scale": lambda e: sdpa(Q, Q, Q, scale=raising("__float__", e)),
    "params scale": lambda e: SdpaParams(1, 1, 8, 1, 1, raising("__float__", e)),
    "tolist": lambda e: sdpa(Q, Q, Q, kv_lengths=raising("tolist", e)),
    "getitem": lambda e: sdpa(Q, Q, Q, kv_lengths=sequence(e)),
    "entry": lambda e: sdpa(Q, Q, Q, q_start=[raising("__index__", e)]),
    "shape": lambda e: Device("cpu").empty(sequence(e), "f32"),
    "bool": lambda e: sdpa(Q, Q, Q, causal=truth(e)),
    "bindings": lambda e: dispatch(bindings=sequence(e)),
    "supports": lambda e: supports("cpu", head_dim=raising("__index__", e)),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("name", RUNS)
def test_what_is_no_complaint_comes_through(name: str, error: type[BaseException]) -> None:
    with pytest.raises(error, match="the caller's own"):
        RUNS[name](error)


@pytest.mark.parametrize("name", RUNS)
def test_a_complaint_is_a_wrong_type(name: str) -> None:
    with pytest.raises(InvalidType):
        RUNS[name](ValueError)


class ScaleThatFrees:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __float__(self) -> float:
        self.array.resize((1, 1, 1, 1), refcheck=False)
        return 1.0


def test_numbers_are_read_before_arrays() -> None:
    """__float__ may change an array of the call, which is then described as it is."""
    q = np.ones((1, 2, 4096, 64), np.float32)
    with pytest.raises(InvalidArgument, match="sdpa: k: head_dim 64, but q has 1"):
        sdpa(q, q.copy(), q.copy(), scale=ScaleThatFrees(q))


def test_an_index_that_empties_the_dict_of_constants() -> None:
    constants: dict[object, object] = {}

    class Index:
        def __index__(self) -> int:
            constants.clear()
            return 0

    constants.update({Index(): 1, 1: "x"})
    with pytest.raises(InvalidType, match="get_pipeline: constants: got a str"):
        metal_sdpa.KernelRegistry(Device("cpu")).get_pipeline("sdpa", constants)
    assert not constants


# --- text and names -------------------------------------------------------------------------------

LONE = "\ud800"


class NumberedMeta(type):
    """Its classes have numbers for names."""

    def __getattribute__(cls, name: str) -> Any:
        return 3 if name in ("__name__", "__qualname__") else super().__getattribute__(name)


class Numbered(metaclass=NumberedMeta):
    name = 3


TEXTS: dict[str, tuple[Callable[[], object], type[Exception]]] = {
    "Device kind": (lambda: Device(LONE), InvalidArgument),
    "Device isa": (lambda: Device("cpu", isa=LONE), InvalidArgument),
    "sdpa device": (lambda: sdpa(Q, Q, Q, device=LONE), InvalidArgument),
    "function": (
        lambda: metal_sdpa.KernelRegistry(Device("cpu")).get_pipeline(LONE),
        InvalidArgument,
    ),
    "dtype": (lambda: metal_sdpa.as_dtype(LONE), metal_sdpa.UnsupportedDType),
    "dtype name": (lambda: metal_sdpa.as_dtype(Numbered()), metal_sdpa.UnsupportedDType),
    "dtype class": (lambda: metal_sdpa.as_dtype(Numbered), metal_sdpa.UnsupportedDType),
    "int": (lambda: metal_sdpa.set_num_threads(Numbered()), InvalidType),
    "flag": (lambda: sdpa(Q, Q, Q, causal=Numbered()), InvalidType),
    "array": (lambda: sdpa(Numbered(), Q, Q), InvalidType),
    "feature": (
        lambda: unsupported_reason("cpu", "f32", 1, 1, 8, 8, [LONE]),
        InvalidArgument,
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_utf8_does_not_hold_and_names_that_are_no_text(name: str) -> None:
    call, error = TEXTS[name]
    with pytest.raises(error, match=": "):
        call()


# --- sequences ------------------------------------------------------------------------------------

NO_SEQUENCES = [
    {3, 2},
    frozenset({3}),
    {3: 2},
    {3: 2}.keys(),
    UserDict({3: 2}),
    "",
    b"",
    bytearray(1),
]


@pytest.mark.parametrize("value", NO_SEQUENCES, ids=repr)
def test_what_has_no_order_is_no_sequence(value: Any) -> None:
    for call in (
        lambda: Device("cpu").empty(value, "f32"),
        lambda: Device("cpu").empty((2, 3), "f32").reshape(value),
        lambda: sdpa(Q, Q, Q, kv_lengths=value),
        lambda: dispatch(threadgroups=value),
        lambda: dispatch(bindings=value),
        lambda: dispatch(bindings=[value]),
        lambda: dispatch(threadgroup_memory=value),
        lambda: dispatch(reads=value),
    ):
        with pytest.raises(InvalidType, match="sequence"):
            call()


@pytest.mark.parametrize("value", [[2, 3], (2, 3), range(2, 4), np.array([2, 3])], ids=repr)
def test_sequences_and_arrays_are_shapes(value: Any) -> None:
    assert Device("cpu").empty(value, "f32").shape == (2, 3)
