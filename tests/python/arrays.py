"""NumPy arrays for attention: the three dtypes, strided views of poisoned memory, bits."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

DTYPES = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}

# What unused memory may hold. "huge" is the largest finite number of the dtype.
POISONS = ("nan", "inf", "huge", "bits")


def dtype_name(array: np.ndarray) -> str:
    """ "f32", "f16" or "bf16"."""
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def bits(array: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers, so that NaN equals NaN and 0 differs from -0."""
    packed = np.ascontiguousarray(array)
    return packed.view(
        {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[packed.dtype.itemsize]
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(bits(a), bits(b)))


def as_f64(array: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a signalling NaN raises the flag
        return np.asarray(array).astype(np.float64)


def poisoned(rng: np.random.Generator, count: int, dtype: np.dtype, poison: str) -> np.ndarray:
    """[count] elements of memory that nobody may read into a result."""
    if poison == "bits":
        raw = rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
        return raw.view(dtype)
    values = {"nan": np.nan, "inf": np.inf, "huge": float(ml_dtypes.finfo(dtype).max)}
    return np.full(count, values[poison], dtype)


@dataclass
class Strided:
    """A view, and all the memory behind it.

    view: any shape, last dimension contiguous; flat: [n] elements that hold it; touched: the flat
    index of each element of the view.
    """

    view: np.ndarray
    flat: np.ndarray
    touched: np.ndarray

    def untouched(self) -> np.ndarray:
        """Bits of the memory around and between the elements of the view."""
        outside = np.ones(self.flat.size, bool)
        outside[self.touched.ravel()] = False
        return bits(self.flat)[outside]


@dataclass(frozen=True)
class LayoutChoice:
    """What a random layout may do beside padding and odd offsets.

    permute: outer dimensions in any order in memory; reverse: negative strides; broadcast: zero
    strides.
    """

    permute: bool = True
    reverse: bool = True
    broadcast: bool = False


def strided(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: np.dtype,
    poison: str,
    choice: LayoutChoice = LayoutChoice(),
) -> Strided:
    """A view of `shape` with random outer strides, at an odd offset in poisoned memory."""
    axes = list(range(len(shape) - 1))
    if choice.permute:
        rng.shuffle(axes)
    else:
        axes.reverse()
    strides = [0] * len(shape)
    strides[-1] = 1
    reach = shape[-1]
    start = int(rng.integers(0, 8))
    for axis in axes:
        if choice.broadcast and rng.random() < 0.1:
            continue
        step = reach + (int(rng.integers(1, 9)) if rng.random() < 0.4 else 0)
        strides[axis] = step
        if choice.reverse and rng.random() < 0.15:
            strides[axis] = -step
            start += (shape[axis] - 1) * step
        reach += (shape[axis] - 1) * step
    first = start + sum(min(0, s * (n - 1)) for s, n in zip(strides, shape, strict=True))
    flat = poisoned(rng, first + reach + int(rng.integers(0, 8)), dtype, poison)
    return Strided(_view(flat, start, shape, strides), flat, _indices(start, shape, strides))


def _view(flat: np.ndarray, start: int, shape: tuple[int, ...], strides: list[int]) -> np.ndarray:
    byte_strides = tuple(s * flat.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat[start:], shape, byte_strides)


def _indices(start: int, shape: tuple[int, ...], strides: list[int]) -> np.ndarray:
    index = np.full((1,) * len(shape), start)
    for axis, (count, stride) in enumerate(zip(shape, strides, strict=True)):
        steps = [1] * len(shape)
        steps[axis] = count
        index = index + (np.arange(count) * stride).reshape(steps)
    return index
