"""Every field of a DLPack capsule, right and wrong: right values are taken, wrong ones are named.

Tensors are made by hand over memory that every valid combination stays inside of.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from metal_sdpa import Device, Error, InvalidArgument, Unsupported, UnsupportedDType, sdpa
from targets import sweep_seed

SHAPE = (1, 2, 3, 4)
OTHERS = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)

CPU, CUDA, PINNED = 1, 2, 3
INT, UINT, FLOAT, BFLOAT, COMPLEX, BOOL = 0, 1, 2, 4, 5, 6
READ_ONLY, COPIED = 1, 2
MIN64, MAX64 = -(2**63), 2**63 - 1


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


NEW_CAPSULE = ctypes.pythonapi.PyCapsule_New
NEW_CAPSULE.restype = ctypes.py_object
NEW_CAPSULE.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Producer:
    """Gives one capsule of the given fields; the others are right for an f32 array of SHAPE."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        # 8 rows before and after the array, so that small offsets and negative strides stay inside.
        self.memory = np.arange(4 * (6 + 16), dtype=np.float32)
        self.deleted = 0
        self.kept: list[Any] = []

    def _numbers(self, name: str, default: tuple[int, ...] | None) -> int | None:
        numbers = self.fields.get(name, default)
        if numbers is None:
            return None
        array = (ctypes.c_int64 * max(len(numbers), 1))(*numbers)
        self.kept.append(array)
        return ctypes.addressof(array)

    def _tensor(self) -> Tensor:
        given = self.fields.get
        return Tensor(
            given("data", self.memory.ctypes.data + 8 * 16),
            given("device_type", CPU),
            given("device_id", 0),
            given("ndim", 4),
            given("code", FLOAT),
            given("bits", 32),
            given("lanes", 1),
            self._numbers("shape", SHAPE),
            self._numbers("strides", None),
            given("byte_offset", 0),
        )

    def _delete(self, _: int) -> None:
        self.deleted += 1

    def __dlpack__(self, **request: Any) -> Any:
        deleter = DELETER(self._delete)
        address = (
            ctypes.cast(deleter, ctypes.c_void_p) if self.fields.get("deleter", True) else None
        )
        if self.fields.get("versioned", True):
            major, flags = self.fields.get("major", 1), self.fields.get("flags", 0)
            managed: Any = ManagedVersioned(major, 3, None, address, flags, self._tensor())
            name = b"dltensor_versioned"
        else:
            managed, name = Managed(self._tensor(), None, address), b"dltensor"
        self.kept += [deleter, managed, name]
        return NEW_CAPSULE(ctypes.addressof(managed), name, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU, 0)


# Values that are fine in a tensor that is otherwise right, then ones that are not, with the error
# and what its text names. A shape has a matching `out` only where it is SHAPE.
FINE: dict[str, list[Any]] = {
    "device_type": [CPU, PINNED],
    "device_id": [0, 1, 7],
    "strides": [None, (24, 12, 4, 1), (MIN64, 12, 4, 1), (MAX64, -12, -4, 1), (0, 0, 0, 1)],
    "byte_offset": [0, 4, 16],
    "deleter": [True, False],
    "flags": [0, READ_ONLY, COPIED, READ_ONLY | COPIED, 2**63],
}
WRONG: dict[str, list[tuple[Any, type[Error], str]]] = {
    "device_type": [
        (CUDA, Unsupported, "CUDA"),
        (0, Unsupported, "device type 0"),
        (-1, Unsupported, "device type -1"),
        (2**31 - 1, Unsupported, "device type 2147483647"),
    ],
    "device_id": [
        (-1, InvalidArgument, "device id -1"),
        (MIN64 >> 32, InvalidArgument, "device id"),
    ],
    "ndim": [
        (-1, InvalidArgument, "-1 dimensions"),
        (-(2**31), InvalidArgument, "dimensions"),
        (0, InvalidArgument, "0 dimensions"),
        (3, InvalidArgument, "3 dimensions"),
        (9, InvalidArgument, "9 dimensions"),
        (2**31 - 1, InvalidArgument, "dimensions"),
    ],
    "code": [
        (INT, UnsupportedDType, "dtype"),
        (UINT, UnsupportedDType, "dtype"),
        (BFLOAT, UnsupportedDType, "dtype"),
        (COMPLEX, UnsupportedDType, "dtype"),
        (BOOL, UnsupportedDType, "dtype"),
        (255, UnsupportedDType, "code 255"),
    ],
    "bits": [
        (0, UnsupportedDType, "0 bits"),
        (8, UnsupportedDType, "8 bits"),
        (16, UnsupportedDType, "but q has"),
        (64, UnsupportedDType, "64 bits"),
        (255, UnsupportedDType, "255 bits"),
    ],
    "lanes": [
        (0, UnsupportedDType, "0 lanes"),
        (2, UnsupportedDType, "2 lanes"),
        (65535, UnsupportedDType, "65535 lanes"),
    ],
    "shape": [
        (None, InvalidArgument, "has no shape"),
        ((1, 2, -3, 4), InvalidArgument, "negative extent"),
        ((MIN64, 2, 3, 4), InvalidArgument, "negative extent"),
        ((1, 2, MAX64, 4), InvalidArgument, "more bytes"),
        ((2**31, 2**31, 0, 4), InvalidArgument, "more bytes"),
        ((0, 2**31, 2**31, 4), InvalidArgument, "more bytes"),
        ((1, 0, 3, 4), InvalidArgument, "has no heads"),
        ((1, 2, 3, 0), InvalidArgument, "of 0"),
        ((1, 2, 4, 4), InvalidArgument, "kv_capacity"),
    ],
    "strides": [
        ((24, 12, 4, 2), InvalidArgument, "last dimension has a stride of 2"),
        ((24, MIN64, 4, 1), InvalidArgument, "strides reach"),
        ((24, MAX64, 4, 1), InvalidArgument, "strides reach"),
        ((24, 12, 2**61, 1), InvalidArgument, "strides reach"),
        ((24, 12, -(2**62), 1), InvalidArgument, "strides reach"),
        ((24, 2**46, 2**44, 1), InvalidArgument, "strides reach"),
        ((24, -(2**46), -(2**44), 1), InvalidArgument, "strides reach"),
    ],
    "byte_offset": [
        (1, InvalidArgument, "not aligned"),
        (6, InvalidArgument, "not aligned"),
        (2**48, InvalidArgument, "byte_offset"),
        (2**63, InvalidArgument, "byte_offset"),
        (2**64 - 4, InvalidArgument, "byte_offset"),
    ],
    "data": [(None, InvalidArgument, "no memory")],
    "major": [
        (0, Unsupported, "version 0"),
        (2, Unsupported, "version 2"),
        (2**32 - 1, Unsupported, "version"),
    ],
}
CASES = [(name, *wrong) for name, values in WRONG.items() for wrong in values]


def attend(producer: Producer) -> np.ndarray:
    out = np.empty(SHAPE, np.float32)
    sdpa(OTHERS, OTHERS, producer, out=out)
    return out


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize(("field", "value"), [(n, v) for n, vs in FINE.items() for v in vs])
def test_right_fields_are_taken(field: str, value: Any, versioned: bool) -> None:
    producer = Producer(versioned=versioned, **{field: value})
    strides = producer.fields.get("strides") or (24, 12, 4, 1)
    start = 32 + producer.fields.get("byte_offset", 0) // 4
    byte_strides = [0] + [4 * stride for stride in strides[1:]]
    values = np.lib.stride_tricks.as_strided(producer.memory[start:], SHAPE, byte_strides)
    assert np.array_equal(attend(producer), sdpa(OTHERS, OTHERS, np.ascontiguousarray(values)))
    assert producer.deleted == (value is not False)


@pytest.mark.parametrize(("field", "value", "error", "text"), CASES)
def test_wrong_fields_are_named(field: str, value: Any, error: type[Error], text: str) -> None:
    for versioned in (True, False)[: 1 if field == "major" else 2]:
        producer = Producer(versioned=versioned, **{field: value})
        with pytest.raises(error, match=rf"sdpa: v: .*{text}"):
            attend(producer)
        assert producer.deleted == 1
        check_wrap(producer.fields)


def test_no_memory_is_needed_for_no_element() -> None:
    nothing = Producer(shape=(1, 2, 0, 4), data=None)
    out = sdpa(OTHERS, OTHERS[:, :, :0], nothing)
    assert not out.any()
    with pytest.raises(InvalidArgument, match=r"wrap: array: shape \[1, 2, 0, 4\] has no element"):
        Device("cpu").wrap(Producer(shape=(1, 2, 0, 4), data=None))


def test_a_copy_is_no_output_and_no_buffer() -> None:
    with pytest.raises(InvalidArgument, match="sdpa: out: gives a copy of its memory"):
        sdpa(OTHERS, OTHERS, OTHERS, out=Producer(flags=COPIED))
    with pytest.raises(InvalidArgument, match="sdpa: out: is read-only"):
        sdpa(OTHERS, OTHERS, OTHERS, out=Producer(flags=READ_ONLY))
    with pytest.raises(InvalidArgument, match="wrap: array: gives a copy of its memory"):
        Device("cpu").wrap(Producer(flags=COPIED))


def check_wrap(fields: dict[str, Any]) -> None:
    """Taken or refused: attention wants more of an array than a Buffer does."""
    text = "wrap: array: "
    try:
        Device("cpu").wrap(Producer(**fields))
    except Error as refusal:
        text = str(refusal)
    assert text.startswith("wrap: array: "), fields


def random_fields(rng: np.random.Generator) -> tuple[dict[str, Any], int]:
    """Fields of a capsule, most of them left right; how many are wrong."""
    fields: dict[str, Any] = {"versioned": bool(rng.random() < 0.5)}
    for name, values in FINE.items():
        if rng.random() < 0.5:
            fields[name] = values[int(rng.integers(len(values)))]
    n_wrong = int(rng.integers(0, 4))
    names = list(rng.choice(list(WRONG), n_wrong, replace=False))
    if not fields["versioned"] and "major" in names:
        names.remove("major")
    for name in names:
        fields[name] = WRONG[name][int(rng.integers(len(WRONG[name])))][0]
    return fields, len(names)


def test_random_capsules_give_a_result_or_a_typed_error() -> None:
    rng = np.random.default_rng(sweep_seed())
    taken = 0
    for _ in range(4000):
        fields, n_wrong = random_fields(rng)
        producer = Producer(**fields)
        if n_wrong == 0:
            assert np.isfinite(attend(producer)).all(), fields
            taken += 1
            continue
        with pytest.raises(Error, match=r"^sdpa: v: "):
            attend(producer)
        assert producer.deleted == fields.get("deleter", True), fields
        check_wrap(fields)
    assert taken > 500


# --- __dlpack_device__ and __dlpack__ ------------------------------------------------------------


class Place(Producer):
    def __init__(self, device: Any) -> None:
        super().__init__()
        self.device = device

    def __dlpack_device__(self) -> Any:
        if isinstance(self.device, BaseException):
            raise self.device
        return self.device


BAD_DEVICES = [
    None, (), (1,), (1, 0, 0), 1, {}, "10", [1, 0], (1.0, 0), (1, None), (-1, 0), (1, -1),
    (2**80, 0), (True, 0), (2**32 + 1, 0),
]  # fmt: skip


@pytest.mark.parametrize("device", BAD_DEVICES, ids=repr)
def test_what_is_no_device(device: Any) -> None:
    for call in (attend, Device("cpu").wrap):
        with pytest.raises(
            Error, match=r"(v|array): (__dlpack_device__ of a Place gives|memory of)"
        ):
            call(Place(device))


@pytest.mark.parametrize(
    "error", [RuntimeError("not now"), KeyError("not now"), TypeError("not now")]
)
def test_a_device_that_raises(error: Exception) -> None:
    with pytest.raises(Unsupported, match=r"sdpa: v: a Place gives no DLPack tensor: .*not now"):
        attend(Place(error))


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_without_a_text_is_known_by_its_name() -> None:
    with pytest.raises(Unsupported, match="a Place gives no DLPack tensor: UnspeakableError"):
        attend(Place(UnspeakableError()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_complaint_comes_through(error: type[BaseException]) -> None:
    class Stop(Producer):
        def __dlpack__(self, **request: Any) -> Any:
            raise error

    for producer in (Place(error()), Stop()):
        with pytest.raises(error):
            attend(producer)


class Shy:
    """Raises at every look."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def test_an_object_that_raises_at_every_look() -> None:
    with pytest.raises(Error, match="sdpa: q: "):
        sdpa(Shy(), OTHERS, OTHERS)


class NoStruct(np.ndarray):
    __array_struct__ = 3


def test_an_array_struct_that_is_none() -> None:
    with pytest.raises(Unsupported, match="sdpa: q: a NoStruct gives no __array_struct__"):
        sdpa(OTHERS.view(NoStruct), OTHERS, OTHERS)
