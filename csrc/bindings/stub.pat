# What nanobind's stubgen cannot see: imports of signatures, exceptions, the vectorcalls.
_core.__prefix__:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, overload

    from numpy.typing import NDArray

    from ._typing import Array, ArrayT, BytesLike, DTypeLike

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

_core.sdpa:
    @overload
    def sdpa(q: ArrayT, k: Array, v: Array, *, causal: bool = False, q_start: int | Sequence[int] | Array | None = None, scale: float | None = None, mask: Array | None = None, window: int | tuple[int | None, int | None] | None = None, softcap: float | None = None, sinks: Array | None = None, kv_lengths: int | Sequence[int] | Array | None = None, out: ArrayT | None = None, return_lse: Literal[False] = False, device: Device | str | None = None) -> ArrayT:
        \doc

    @overload
    def sdpa(q: ArrayT, k: Array, v: Array, *, causal: bool = False, q_start: int | Sequence[int] | Array | None = None, scale: float | None = None, mask: Array | None = None, window: int | tuple[int | None, int | None] | None = None, softcap: float | None = None, sinks: Array | None = None, kv_lengths: int | Sequence[int] | Array | None = None, out: ArrayT | None = None, return_lse: Literal[True], device: Device | str | None = None) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def sdpa(q: ArrayT, k: Array, v: Array, *, causal: bool = False, q_start: int | Sequence[int] | Array | None = None, scale: float | None = None, mask: Array | None = None, window: int | tuple[int | None, int | None] | None = None, softcap: float | None = None, sinks: Array | None = None, kv_lengths: int | Sequence[int] | Array | None = None, out: ArrayT | None = None, return_lse: bool, device: Device | str | None = None) -> ArrayT | tuple[ArrayT, ArrayT]: ...

_core.plan:
    def plan(q: Array, k: Array, v: Array, *, causal: bool = False, q_start: int | Sequence[int] | Array | None = None, scale: float | None = None, mask: Array | None = None, window: int | tuple[int | None, int | None] | None = None, softcap: float | None = None, sinks: Array | None = None, kv_lengths: int | Sequence[int] | Array | None = None, out: Array | None = None, return_lse: bool = False, device: Device | str | None = None) -> str:
        \doc
