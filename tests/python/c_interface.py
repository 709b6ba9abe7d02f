"""metal_sdpa/c.h for ctypes, written by hand as a binding would be."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p

import numpy as np

import metal_sdpa

OK, INVALID_ARGUMENT, UNSUPPORTED_DTYPE = 0, 1, 2
UNSET = -(2**63)
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "uint8": 3, "bool": 3, "int32": 6, "int64": 7}

Release = ctypes.CFUNCTYPE(None, c_void_p)


def _layout(name: str, *fields: str, dtype: bool = False) -> type[ctypes.Structure]:
    types = [(field, c_int64) for field in fields] + ([("dtype", c_int32)] if dtype else [])
    return type(name, (ctypes.Structure,), {"_fields_": types})


TensorLayout = _layout("TensorLayout", "offset", "batch_stride", "head_stride", "row_stride")
HeadLayout = _layout("HeadLayout", "offset", "batch_stride", "head_stride", dtype=True)
MaskLayout = _layout(
    "MaskLayout",
    "offset",
    "batch_stride",
    "head_stride",
    "row_stride",
    "key_stride",
    dtype=True,
)
TokenLayout = _layout("TokenLayout", "offset", "token_stride", "head_stride")
PageLayout = _layout("PageLayout", "offset", "page_stride", "slot_stride", "head_stride")


class Sized(ctypes.Structure):
    """A struct that begins with its size, filled by its init function."""

    init = ""

    def __init__(self, **values: object) -> None:
        super().__init__()
        check(getattr(library(), self.init)(ctypes.byref(self), ctypes.sizeof(self)))
        for name, value in values.items():
            setattr(self, name, value)


class PageTable(Sized):
    init = "metal_sdpa_page_table_init"
    _fields_ = (
        ("struct_size", c_size_t),
        ("dtype", c_int32),
        ("check_entries", c_int32),
        ("page_len", c_int64),
        ("n_pages", c_int64),
        ("n_entries", c_int64),
        ("offset", c_int64),
        ("sequence_stride", c_int64),
        ("entry_stride", c_int64),
        ("starts", POINTER(c_int64)),
    )


class Problem(Sized):
    init = "metal_sdpa_problem_init"
    _fields_ = (
        ("struct_size", c_size_t),
        *((name, c_int32) for name in ("dtype", "out_f32", "return_lse", "causal")),
        *((name, c_int64) for name in ("batch", "n_heads", "n_kv_heads", "seq_len")),
        *((name, c_int64) for name in ("kv_capacity", "head_dim", "value_dim")),
        *((name, TensorLayout) for name in ("q", "k", "v", "out")),
        ("scale", c_float),
        ("softcap", c_float),
        ("mask", POINTER(MaskLayout)),
        ("alibi_slopes", POINTER(HeadLayout)),
        ("sinks", POINTER(HeadLayout)),
        *((name, c_int64) for name in ("window_left", "window_right", "kv_len", "kv_start")),
        *((name, c_int64) for name in ("q_start", "query_len")),
        *((name, POINTER(c_int64)) for name in ("kv_lengths", "kv_starts", "q_starts")),
        ("query_lengths", POINTER(c_int64)),
        *((name, c_int64) for name in ("key_offset", "key_stride")),
        *((name, POINTER(c_int64)) for name in ("cu_seqlens_q", "cu_seqlens_k")),
        *((name, POINTER(c_int64)) for name in ("q_rows", "kv_rows")),
        *((name, c_int64) for name in ("q_total", "kv_total")),
        ("pages", POINTER(PageTable)),
        ("kernel", c_char_p),
    )


class Operands(Sized):
    init = "metal_sdpa_operands_init"
    _fields_ = (
        ("struct_size", c_size_t),
        *((name, c_void_p) for name in ("q", "k", "v", "out", "lse", "mask", "sinks")),
        *((name, c_void_p) for name in ("alibi_slopes", "block_table")),
    )


class WriteKvProblem(Sized):
    init = "metal_sdpa_write_kv_problem_init"
    _fields_ = (
        ("struct_size", c_size_t),
        ("dtype", c_int32),
        ("check_slots", c_int32),
        *((name, c_int64) for name in ("tokens", "heads", "head_dim", "value_dim")),
        *((name, c_int64) for name in ("n_pages", "page_size")),
        *((name, TokenLayout) for name in ("k_new", "v_new")),
        *((name, PageLayout) for name in ("k_cache", "v_cache")),
    )


class WriteKvOperands(Sized):
    init = "metal_sdpa_write_kv_operands_init"
    _fields_ = (
        ("struct_size", c_size_t),
        *((name, c_void_p) for name in ("k_new", "v_new", "k_cache", "v_cache", "slots")),
    )


_SIGNATURES = {
    "metal_sdpa_device_open": (c_char_p, c_void_p, POINTER(c_void_p)),
    "metal_sdpa_device_close": (c_void_p,),
    "metal_sdpa_buffer_wrap": (
        c_void_p,
        c_int32,
        c_void_p,
        c_size_t,
        c_int32,
        Release,
        c_void_p,
        POINTER(c_void_p),
    ),
    "metal_sdpa_buffer_release": (c_void_p,),
    "metal_sdpa_sdpa": (c_void_p, POINTER(Problem), POINTER(Operands)),
    "metal_sdpa_prepare": (c_void_p, POINTER(Problem), c_void_p, POINTER(c_void_p)),
    "metal_sdpa_prepared_run": (c_void_p, POINTER(Operands), c_void_p),
    "metal_sdpa_prepared_update": (c_void_p, POINTER(Problem), c_void_p),
    "metal_sdpa_prepared_release": (c_void_p,),
    "metal_sdpa_write_kv": (c_void_p, POINTER(WriteKvProblem), POINTER(WriteKvOperands)),
}
_INITS = (PageTable, Problem, Operands, WriteKvProblem, WriteKvOperands)
_PACKED = {
    "metal_sdpa_problem_set_packed_layouts": Problem,
    "metal_sdpa_write_kv_problem_set_packed_layouts": WriteKvProblem,
}
_loaded: list[ctypes.CDLL] = []


def library() -> ctypes.CDLL:
    """The library that the package itself runs on."""
    if not _loaded:
        loaded = ctypes.CDLL(metal_sdpa.get_library())
        signatures = _SIGNATURES | {struct.init: (c_void_p, c_size_t) for struct in _INITS}
        signatures |= {name: (POINTER(struct),) for name, struct in _PACKED.items()}
        for name, arguments in signatures.items():
            getattr(loaded, name).argtypes = arguments
            getattr(loaded, name).restype = None if name.endswith(("close", "release")) else c_int
        loaded.metal_sdpa_last_message.restype = c_char_p
        loaded.metal_sdpa_version.restype = c_char_p
        _loaded.append(loaded)
    return _loaded[0]


def message() -> str:
    return library().metal_sdpa_last_message().decode()


def check(status: int) -> None:
    assert status == OK, message()


def numbers(*values: int) -> ctypes.Array:
    return (c_int64 * len(values))(*values)


def dtype_of(array: np.ndarray) -> int:
    return DTYPES[array.dtype.name]


class Session:
    """A device, and Buffers over arrays until the session ends."""

    def __init__(self) -> None:
        self.device = c_void_p()
        check(library().metal_sdpa_device_open(b"cpu", None, ctypes.byref(self.device)))
        self._buffers: list[c_void_p] = []

    def wrap(self, array: np.ndarray, read_only: bool = True) -> c_void_p:
        """All memory of an array that is contiguous, without a copy."""
        assert array.flags.c_contiguous
        buffer = c_void_p()
        check(
            library().metal_sdpa_buffer_wrap(
                self.device,
                dtype_of(array),
                array.ctypes.data,
                array.nbytes,
                read_only,
                Release(),
                None,
                ctypes.byref(buffer),
            )
        )
        self._buffers.append(buffer)
        return buffer

    def close(self) -> None:
        for buffer in self._buffers:
            library().metal_sdpa_buffer_release(buffer)
        library().metal_sdpa_device_close(self.device)


@contextmanager
def session() -> Iterator[Session]:
    opened = Session()
    try:
        yield opened
    finally:
        opened.close()
