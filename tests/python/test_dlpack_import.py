"""Arrays come in through DLPack in every form that producers have."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import metal_sdpa
from metal_sdpa import Device, InvalidArgument, Unsupported, UnsupportedDType, sdpa

Q = np.random.default_rng(1).standard_normal((1, 2, 3, 8)).astype(np.float32)


class Producer:
    """An array of no known framework over a NumPy array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.asked: list[dict[str, Any]] = []

    def __dlpack__(self, **request: Any) -> Any:
        self.asked.append(request)
        return self.array.__dlpack__(**request)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class OldProducer(Producer):
    """Knows nothing of max_version."""

    def __dlpack__(self, stream: Any = None) -> Any:
        self.asked.append({})
        return self.array.__dlpack__()


class Namespace:
    """What an array-API library has."""

    @staticmethod
    def from_dlpack(x: Any) -> Any:
        return Modern(np.from_dlpack(x))


class Modern(Producer):
    def __array_namespace__(self) -> type[Namespace]:
        return Namespace


@pytest.mark.parametrize("kind", [Producer, OldProducer])
def test_both_generations_of_capsules(kind: type[Producer]) -> None:
    producer = kind(Q)
    out = np.empty_like(Q)
    sdpa(producer, Q, Q, out=out)
    assert len(producer.asked) == 1
    assert np.array_equal(out, sdpa(Q, Q, Q))


def test_results_go_through_the_array_namespace() -> None:
    out = sdpa(Modern(Q), Q, Q)
    assert isinstance(out, Modern)
    assert np.array_equal(out.array, sdpa(Q, Q, Q))


def test_a_library_without_from_dlpack_needs_out() -> None:
    with pytest.raises(Unsupported, match="sdpa: q: a Producer cannot be made from DLPack"):
        sdpa(Producer(Q), Q, Q)


def test_read_only_flags_come_through() -> None:
    locked = Q.copy()
    locked.flags.writeable = False
    before = locked.copy()
    assert np.array_equal(sdpa(locked, locked, locked), sdpa(Q, Q, Q))
    for out in (locked, Producer(locked)):
        with pytest.raises(InvalidArgument, match="sdpa: out: is read-only"):
            sdpa(Q, Q, Q, out=out)
    assert np.array_equal(locked, before)


class Elsewhere(Producer):
    """Memory of a device that this package cannot reach."""

    def __init__(self, array: np.ndarray, device: int) -> None:
        super().__init__(array)
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)


@pytest.mark.parametrize(
    ("device", "name"), [(2, "CUDA"), (10, "ROCm"), (14, "oneAPI"), (7, "ano")]
)
def test_other_devices_are_refused_by_name_before_they_export(device: int, name: str) -> None:
    producer = Elsewhere(Q, device)
    with pytest.raises(Unsupported, match=f"sdpa: v: memory of a {name}"):
        sdpa(Q, Q, producer)
    assert not producer.asked
    with pytest.raises(Unsupported, match=f"wrap: array: memory of a {name}"):
        Device("cpu").wrap(producer)


class Failing(Producer):
    def __dlpack__(self, **request: Any) -> Any:
        raise BufferError("not today")


def test_the_producers_reason_is_passed_on() -> None:
    with pytest.raises(Unsupported, match="sdpa: k: a Failing gives no DLPack tensor: not today"):
        sdpa(Q, Failing(Q), Q)


class NoCapsule(Producer):
    def __dlpack__(self, **request: Any) -> Any:
        return 42


def test_what_is_no_capsule() -> None:
    with pytest.raises(InvalidArgument, match="sdpa: q: got an int, takes a DLPack capsule"):
        sdpa(NoCapsule(Q), Q, Q)


def test_capsules_are_given_back() -> None:
    array = Q.copy()
    gone = weakref.ref(array)
    producer = Producer(array)
    sdpa(producer, Q, Q, out=np.empty_like(Q))
    made = Device("cpu").wrap(producer)
    del array, producer
    gc.collect()
    assert gone() is not None
    assert np.array_equal(made.numpy(), Q)
    del made
    gc.collect()
    assert gone() is None


# --- layouts of NumPy arrays ---------------------------------------------------------------------


def test_layouts_that_need_no_copy() -> None:
    flipped = Q[:, ::-1, ::-1]
    assert np.array_equal(
        sdpa(flipped, flipped, flipped), sdpa(*[np.ascontiguousarray(flipped)] * 3)
    )
    spread = np.broadcast_to(Q[:, :1], Q.shape)
    assert np.array_equal(sdpa(Q, spread, spread), sdpa(Q, *[np.ascontiguousarray(spread)] * 2))
    turned = np.asfortranarray(Q[..., :1])  # a last dimension of 1 may have any stride
    assert np.array_equal(sdpa(turned, turned, turned), sdpa(*[np.ascontiguousarray(turned)] * 3))


def test_layouts_that_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="sdpa: k: the last dimension has a stride of -1"):
        sdpa(Q, Q[..., ::-1], Q)
    raw = np.zeros(Q.nbytes + 1, np.uint8)[1:]
    crooked = raw.view(np.float32).reshape(Q.shape)
    with pytest.raises(InvalidArgument, match="sdpa: v: data is not aligned to the 4 bytes"):
        sdpa(Q, Q, crooked)
    records = np.zeros(Q.shape[:3], dtype=[("x", np.float32, 8), ("y", np.uint8)])
    with pytest.raises(InvalidArgument, match="sdpa: q: "):
        sdpa(records["x"], Q, Q)
    with pytest.raises(InvalidArgument, match=r"sdpa: q: shape \[2, 3, 8\] has 3 dimensions"):
        sdpa(Q[0], Q, Q)
    with pytest.raises(InvalidArgument, match="sdpa: q: 9 dimensions, takes at most 8"):
        sdpa(Q.reshape((1,) * 5 + Q.shape), Q, Q)
    with pytest.raises(UnsupportedDType, match="sdpa: q: dtype >f4 is byte-swapped"):
        sdpa(Q.astype(">f4"), Q, Q)
    with pytest.raises(InvalidArgument, match="wrap: array: dimension 2 has a stride of -8"):
        Device("cpu").wrap(Q[:, :, ::-1])


def test_wrap_reads_bits_as_another_dtype() -> None:
    bits = np.arange(4, dtype=np.uint16)
    made = Device("cpu").wrap(bits, dtype="bf16")
    assert made.dtype is metal_sdpa.DType.bf16
    with pytest.raises(UnsupportedDType, match="wrap: dtype: f32 for an array of u16"):
        Device("cpu").wrap(bits, dtype="f32")


def test_subclasses_of_ndarray() -> None:
    class Sub(np.ndarray):
        pass

    out = sdpa(Q.view(Sub), Q, Q)
    assert np.array_equal(out, sdpa(Q, Q, Q))
