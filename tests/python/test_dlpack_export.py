"""Buffers go out through DLPack and the array interface, without a copy."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from metal_sdpa import Buffer, Device, DType


def buffer(dtype: str = "f32") -> Buffer:
    return Device("cpu").empty((2, 3, 4), dtype)


def test_numpy_shares_the_memory() -> None:
    made = buffer()
    view = np.from_dlpack(made)
    view[1, 2, 3] = 7
    assert made.numpy()[1, 2, 3] == 7
    assert np.asarray(made)[1, 2, 3] == 7
    assert view.shape == (2, 3, 4)
    assert made.__dlpack_device__() == (1, 0)


def test_a_view_starts_at_its_offset() -> None:
    made = buffer()
    made.numpy().ravel()[:] = np.arange(24)
    part = made.slice_view(5 * 4, 6)
    assert np.from_dlpack(part).tolist() == [5, 6, 7, 8, 9, 10]
    assert part.numpy().tolist() == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("dtype", [d.name for d in DType if d is not DType.bf16])
def test_dtypes(dtype: str) -> None:
    expected = {"f32": "float32", "f16": "float16", "u8": "uint8", "u16": "uint16"}
    expected |= {"u32": "uint32", "i32": "int32", "i64": "int64"}
    assert np.from_dlpack(buffer(dtype)).dtype == expected[dtype]
    assert buffer(dtype).numpy().dtype == expected[dtype]


def test_bfloat16_is_ml_dtypes_for_numpy() -> None:
    made = buffer("bf16")
    assert made.numpy().dtype == ml_dtypes.bfloat16
    assert np.asarray(made).dtype == np.uint16  # the array interface has no name for it


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 1), (2, 0)])
def test_capsules_of_old_and_new(version: tuple[int, int] | None) -> None:
    capsule = buffer().__dlpack__(max_version=version)
    versioned = version is not None and version[0] >= 1
    name = "dltensor_versioned" if versioned else "dltensor"
    assert f'"{name}"' in repr(capsule)


def test_read_only_memory_needs_the_new_capsule() -> None:
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    made = Device("cpu").wrap(array)
    assert made.read_only
    assert not np.from_dlpack(made).flags.writeable
    assert not made.numpy().flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        made.__dlpack__()


@pytest.mark.parametrize(
    ("request_of", "text"),
    [
        ({"copy": True}, "copy"),
        ({"dl_device": (2, 0)}, "dl_device"),
        ({"dl_device": (8, 0)}, "dl_"),
    ],
)
def test_what_a_buffer_does_not_do(request_of: dict[str, Any], text: str) -> None:
    with pytest.raises(BufferError, match=text):
        buffer().__dlpack__(**request_of)


def test_what_it_does() -> None:
    assert buffer().__dlpack__(stream=None, dl_device=(1, 0), copy=False) is not None


def test_memory_outlives_the_buffer_and_unused_capsules_leak_nothing() -> None:
    view = np.from_dlpack(Device("cpu").empty((1000,), "f32"))
    capsule = buffer().__dlpack__(max_version=(1, 0))
    del capsule
    capsule = buffer().__dlpack__()
    del capsule
    gc.collect()
    view[:] = 3
    assert view.sum() == 3000


@pytest.mark.frameworks
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_frameworks_take_buffers(dtype: str) -> None:
    import jax.dlpack
    import mlx.core as mx
    import torch

    made = buffer(dtype)
    made.numpy()[:] = np.arange(24).reshape(2, 3, 4)
    tensor = torch.from_dlpack(made)
    assert str(tensor.dtype) == {"f32": "torch.float32", "f16": "torch.float16"}.get(
        dtype, "torch.bfloat16"
    )
    tensor[0, 0, 0] = 9
    assert made.numpy()[0, 0, 0] == 9
    for array in (jax.dlpack.from_dlpack(made), mx.array(made)):
        assert array.shape == (2, 3, 4)
        assert float(array[1, 2, 3]) == 23
