# What nanobind's stubgen cannot see: imports of signatures and exceptions. tools/parameter_texts.py
# adds sdpa() and plan().
_core.__prefix__:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, overload

    from numpy.typing import NDArray

    from ._typing import Array, ArrayT, BytesLike, DTypeLike, Indices

    __version__: str

    class Error(Exception):
        """Every error of this package."""

    class InvalidArgument(Error, ValueError):
        """A value, shape, state or range that the call does not take."""

    class InvalidType(InvalidArgument, TypeError):
        """An argument of a Python type that the call does not take."""

    class UnsupportedDType(Error, TypeError):
        """A dtype, or a mix of dtypes, that the kernel does not take."""

    class Unsupported(Error, NotImplementedError):
        """Not built yet, or not on this device."""

    class DeviceNotFound(Error):
        """No such device kind, or no such device on this machine."""

    class KernelNotFound(Error):
        """No library of the registry has the function for this device."""

    class ShaderCompilationError(Error):
        """The shader compiler refused; the text holds its whole log."""

    class CommandBufferError(Error):
        """The device reported an error while it ran a command buffer."""

    class BufferAllocationError(Error, MemoryError):
        """The device had no memory for a buffer."""
