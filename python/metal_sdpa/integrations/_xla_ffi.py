"""A Python function as a target of XLA's foreign function interface on the CPU, without a compiler.

XLA hands over the addresses of its own buffers: the function reads and writes them where they
stand, on the thread that runs the computation, and never calls JAX. `jax.pure_callback` copies what
goes in and what comes out.

The structures are those of xla/ffi/api/c_api.h (jaxlib ships it: `jax.ffi.include_dir()`), versions
0.1 to 0.3 of which begin alike. XLA asks for the version when the target is registered and refuses
one that it does not know.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, TypeAlias

import jax
import ml_dtypes
import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

# (attribute "call", arguments, results); arguments must not be written.
Function: TypeAlias = Callable[[str, list[Array], list[Array]], None]

KNOWN_VERSIONS = ((0, 1), (0, 2), (0, 3))

_METADATA = 1  # XLA_FFI_Extension_Metadata
_EXECUTE = 3  # XLA_FFI_ExecutionStage_EXECUTE
_INVALID_ARGUMENT, _INTERNAL = 3, 13  # XLA_FFI_Error_Code

_DTYPES = {  # XLA_FFI_DataType
    1: np.dtype(np.bool_),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    16: np.dtype(ml_dtypes.bfloat16),
}


class _Extension(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("type", c_int), ("next", c_void_p))


class _Version(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("major", c_int),
        ("minor", c_int),
    )


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("api_version", _Version), ("traits", ctypes.c_uint32))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("base", _Extension), ("metadata", POINTER(_Metadata)))


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )


class _Buffers(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("buffers", POINTER(POINTER(_Buffer))),
    )


class _Span(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("size", c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("names", c_void_p),
        ("values", POINTER(POINTER(_Span))),
    )


class _ErrorArguments(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("message", c_char_p),
        ("code", c_int),
    )


_CreateError = ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))


class _Api(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("api_version", _Version),
        ("internal_api", c_void_p),
        ("create_error", _CreateError),
    )


class _Frame(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension_start", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))

# By name. XLA keeps the address of a handler for good, and takes no other for its name.
_handlers: dict[str, Any] = {}
_functions: dict[str, Function] = {}


def register(name: str, function: Function) -> bool:
    """Makes `function` what `jax.ffi.ffi_call(name, ...)(*arrays, call=text)` runs on the CPU, in
    place of an earlier one of that name.

    Whether it could: not where jaxlib's interface has a version that is not known here. An
    exception of `function` becomes the computation's error (jax.errors.JaxRuntimeError).
    """
    version = interface_version()
    if version not in KNOWN_VERSIONS:
        return False
    _functions[name] = function
    if name not in _handlers:
        handler = _Handler(lambda frame: _handle(frame.contents, version, _functions[name]))
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
        _handlers[name] = handler
    return True


def interface_version() -> tuple[int, int] | None:
    """XLA_FFI_API_MAJOR and MINOR of the header that came with jaxlib, None where there is none."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        return None
    text = header.read_text()
    found = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR"))
    numbers = [int(match[1]) for match in found if match]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _handle(frame: _Frame, version: tuple[int, int], function: Function) -> int | None:
    extension = frame.extension_start
    if extension and extension.contents.type == _METADATA:
        metadata = ctypes.cast(extension, POINTER(_MetadataExtension)).contents.metadata.contents
        metadata.api_version.major, metadata.api_version.minor = version
        return None
    if frame.stage != _EXECUTE:
        return None
    try:
        span = frame.attributes.values[0].contents
        call = ctypes.string_at(span.data, span.size).decode()
        arguments = [_array(x) for x in _each(frame.arguments)]
        for argument in arguments:
            argument.flags.writeable = False
        function(call, arguments, [_array(x) for x in _each(frame.results)])
    except BaseException as error:  # nothing may pass through C++ frames
        code = _INVALID_ARGUMENT if isinstance(error, ValueError | TypeError) else _INTERNAL
        message = str(error) or type(error).__name__
        given = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message.encode(), code)
        created: int | None = frame.api.contents.create_error(ctypes.byref(given))
        return created
    return None


def _each(buffers: _Buffers) -> list[_Buffer]:
    return [buffers.buffers[i].contents for i in range(buffers.size)]


def _array(buffer: _Buffer) -> Array:
    """The buffer's own memory as an array."""
    dtype = _DTYPES[buffer.dtype]
    shape = tuple(buffer.dims[: buffer.rank])
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if n_bytes == 0:
        return np.empty(shape, dtype)
    memory = (ctypes.c_char * n_bytes).from_address(buffer.data)
    return np.frombuffer(memory, dtype).reshape(shape)
