"""Types of the public signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from ._core import DType

# A DType, its name ("f32", "float32"), or a dtype of NumPy, ml_dtypes, torch, JAX or MLX.
DTypeLike: TypeAlias = DType | str | Any

BytesLike: TypeAlias = bytes | bytearray | memoryview


class Array(Protocol):
    """Whatever speaks DLPack: NumPy, torch, JAX, MLX, or a Buffer."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


# int32 or int64 numbers.
Indices: TypeAlias = Array | Sequence[int]

ArrayT = TypeVar("ArrayT", bound=Array)
