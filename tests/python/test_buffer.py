"""Buffer: views, extents, host access; and what a Device allocates and wraps."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import metal_sdpa
from arrays import DTYPES, bits
from metal_sdpa import Device, DType
from targets import Target

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1, "u16": 2, "u32": 4, "i32": 4, "i64": 8}


@pytest.mark.parametrize("name", SIZES)
def test_allocations_are_zero_and_aligned(device: Device, name: str) -> None:
    dtype = getattr(DType, name)
    for shape in ((1,), (3, 5), (7, 1, 33)):
        buffer = device.empty(shape, dtype)
        count = int(np.prod(shape))
        assert tuple(buffer.shape) == shape
        assert buffer.dtype == dtype
        assert buffer.element_count == count
        assert (buffer.byte_offset, buffer.byte_len) == (0, count * SIZES[name])
        host = buffer.numpy()
        assert host.shape == shape
        assert host.dtype.itemsize == SIZES[name]
        assert host.ctypes.data % 128 == 0
        assert not bits(host).any()
        host[...] = 1
        del buffer, host
        gc.collect()  # the next one may get the same memory


@given(data=st.data())
def test_a_slice_of_a_slice_adds_offsets(target: Target, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(SIZES)))
    count = data.draw(st.integers(1, 200))
    buffer = target.device().empty((count,), getattr(DType, name))
    raw = buffer.numpy()
    raw[...] = np.arange(count) % 100
    view, first, length = buffer, 0, count
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, length - 1))
        length = data.draw(st.integers(1, length - start))
        first += start
        view = view.slice_view(start * SIZES[name], length)
        assert view.byte_offset == first * SIZES[name]
        assert view.byte_len == length * SIZES[name]
        assert view.element_count == length
        assert tuple(view.shape) == (length,)
        assert np.array_equal(bits(view.numpy()), bits(raw[first : first + length]))


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, 25),  # the buffer has 24
        (4, 24),
        (96, 1),
        (92, 2),
        (100, 1),
        (1, 1),
        (2, 1),
        (0, 0),
        (0, 2**62),
        (4, 2**62),
        (2**63, 1),
        (2**64 - 4, 1),
        (-4, 1),
        (0, -1),
        (0, 2**70),
    ],
)
def test_slices_stay_inside_their_view(device: Device, offset: int, count: int) -> None:
    buffer = device.empty((4, 6), DType.f32)
    assert buffer.slice_view(92, 1).element_count == 1
    with pytest.raises(metal_sdpa.InvalidArgument, match="slice_view"):
        buffer.slice_view(offset, count)
    # The slice's own length counts, not the allocation's.
    inner = buffer.slice_view(8, 10)
    with pytest.raises(metal_sdpa.InvalidArgument, match="slice_view"):
        inner.slice_view(4, 10)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (-1,), (2**62, 8), (2**32, 2**32)])
def test_shapes_that_hold_nothing_or_too_much(device: Device, shape: tuple[int, ...]) -> None:
    with pytest.raises((metal_sdpa.InvalidArgument, metal_sdpa.BufferAllocationError)):
        device.empty(shape, DType.f32)


def test_alloc_buffer_checks_the_length(device: Device) -> None:
    assert device.alloc_buffer(24, DType.f16, (3, 4)).byte_len == 24
    for byte_len in (0, 23, 25, 48, -1):
        with pytest.raises(metal_sdpa.InvalidArgument, match="alloc_buffer: byte_len"):
            device.alloc_buffer(byte_len, DType.f16, (3, 4))


def test_an_allocation_without_room_is_a_memory_error(device: Device) -> None:
    with pytest.raises(metal_sdpa.BufferAllocationError) as caught:
        device.alloc_buffer(2**60, DType.u8, (2**60,))
    assert isinstance(caught.value, MemoryError)
    assert device.empty((4,), DType.f32).element_count == 4


def test_host_views_keep_the_memory(device: Device) -> None:
    host = device.empty((1000,), DType.f32).slice_view(400, 10).numpy()
    host[...] = 3
    gc.collect()
    churn = [device.empty((1000,), DType.f32) for _ in range(20)]
    assert (host == 3).all()
    assert not any(buffer.numpy().any() for buffer in churn)


@pytest.mark.parametrize("name", DTYPES)
def test_wrap_is_the_callers_memory(name: str) -> None:
    device = Device("cpu")
    array = np.arange(12).astype(DTYPES[name]).reshape(3, 4)
    buffer = device.wrap(array)
    assert tuple(buffer.shape) == (3, 4)
    assert buffer.dtype == getattr(DType, name)
    array[1, 2] = 77
    assert buffer.numpy()[1, 2] == 77
    buffer.numpy()[0, 0] = 55
    assert array[0, 0] == 55


def test_wrap_never_copies() -> None:
    device = Device("cpu")
    array = np.zeros((4, 6), np.float32)
    for strided in (array[:, ::2], array.T, array[::-1]):
        with pytest.raises(metal_sdpa.InvalidArgument, match="wrap"):
            device.wrap(strided)
    for refused in (np.zeros(3, np.float64), np.zeros(3, complex), np.zeros(3, ">f4")):
        with pytest.raises(metal_sdpa.UnsupportedDType, match="wrap"):
            device.wrap(refused)
    for refused in ("text", 3, None, [1.0], np.zeros(0, np.float32)):
        with pytest.raises(metal_sdpa.Error, match="wrap"):
            device.wrap(refused)


def test_read_only_memory_stays_read_only() -> None:
    array = np.zeros(8, np.float32)
    array.flags.writeable = False
    host = Device("cpu").wrap(array).numpy()
    assert not host.flags.writeable
