"""NVRTC and the CUDA driver through ctypes. Compiling needs no GPU; everything else does."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ARCHITECTURE = "sm_90"


class CudaError(RuntimeError):
    """NVRTC or the driver refused; the text is its own."""


def _nvrtc_candidates() -> list[str]:
    """Newest first: the wheel's, a toolkit's, whatever the loader finds."""
    in_site = [
        found for site in sys.path for found in Path(site).glob("nvidia/*/lib/libnvrtc.so.*")
    ]
    in_toolkit = list(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.1*"))
    files = [*sorted(in_site, reverse=True), *sorted(in_toolkit, reverse=True)]
    return [*map(str, files), "libnvrtc.so.13", "libnvrtc.so.12"]


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """The library; from the wheel nvidia-cuda-nvrtc or a CUDA toolkit."""
    for name in _nvrtc_candidates():
        try:
            # NVRTC looks for its built-ins by soname only: have them loaded already.
            for builtins in Path(name).parent.glob("libnvrtc-builtins.so*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError("libnvrtc not found: pip install nvidia-cuda-nvrtc==13.0.88")


def nvrtc_version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_cubin(source: str, options: Sequence[str] = ()) -> bytes:
    """Machine code of a translation unit; CudaError holds the compiler's log."""
    library, program = nvrtc(), ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"shader.cu", 0, None, None)
    # -fmad is left on: Metal contracts too. Line info is for the checkers' reports.
    flags = ["-default-device", "-std=c++17", f"-arch={ARCHITECTURE}", "-lineinfo", "-w", *options]
    argv = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    status = library.nvrtcCompileProgram(program, len(flags), argv)
    size = ctypes.c_size_t()
    if status != 0:
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        raise CudaError(f"nvrtc status {status}: {log.value.decode(errors='replace')}")
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, cubin)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: object) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise CudaError(f"{name}: {status} {(text.value or b'').decode()}")


@functools.cache
def start() -> str:
    """Makes device 0's primary context current; returns the device's name."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(device), 0)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call("cuCtxSetCurrent", context)
    name = ctypes.create_string_buffer(128)
    _call("cuDeviceGetName", name, 128, device)
    return name.value.decode()


# Where kernels are launched: the default stream, or the one being captured.
_stream = ctypes.c_void_p()


class Graph:
    """What `launch` enqueues, recorded once, so that a replay has no launch cost of Python's."""

    def __init__(self, launch: Callable[[], None]) -> None:
        global _stream
        stream, graph = ctypes.c_void_p(), ctypes.c_void_p()
        self._executable = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(stream), 1)
        _call("cuStreamBeginCapture_v2", stream, 2)
        _stream = stream
        launch()
        _stream = ctypes.c_void_p()
        _call("cuStreamEndCapture", stream, ctypes.byref(graph))
        _call(
            "cuGraphInstantiateWithFlags",
            ctypes.byref(self._executable),
            graph,
            ctypes.c_ulonglong(),
        )

    def replay(self) -> None:
        _call("cuGraphLaunch", self._executable, None)


class Memory:
    """Device memory of exactly byte_len bytes; freed with the object."""

    def __init__(self, byte_len: int) -> None:
        start()
        self._address = ctypes.c_uint64()
        self.byte_len = byte_len
        _call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(max(byte_len, 1)))

    @property
    def address(self) -> int:
        return self._address.value

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        source = (ctypes.c_char * len(view)).from_buffer_copy(view)
        _call("cuMemcpyHtoD_v2", self._address, source, ctypes.c_size_t(len(view)))

    def fill(self, data: bytes) -> None:
        """`data` over and over; what is in place already is what the next copy starts from."""
        done = min(len(data), self.byte_len)
        self.write(memoryview(data)[:done])
        while done < self.byte_len:
            size = min(done, self.byte_len - done)
            target = ctypes.c_uint64(self.address + done)
            _call("cuMemcpyDtoDAsync_v2", target, self._address, ctypes.c_size_t(size), None)
            done += size

    def read(self) -> bytes:
        target = ctypes.create_string_buffer(self.byte_len)
        _call("cuMemcpyDtoH_v2", target, self._address, ctypes.c_size_t(self.byte_len))
        return target.raw

    def copy_from(self, other: Memory) -> None:
        _call(
            "cuMemcpyDtoDAsync_v2",
            self._address,
            other._address,
            ctypes.c_size_t(self.byte_len),
            None,
        )

    def __del__(self) -> None:
        if self._address.value:
            _driver().cuMemFree_v2(self._address)


# CUfunction_attribute numbers.
_LOCAL_BYTES, _REGISTERS, _MAX_DYNAMIC_SHARED = 3, 4, 8


class Kernel:
    """One kernel of a loaded module."""

    def __init__(self, module: Module, name: str) -> None:
        self._module = module
        self._function = ctypes.c_void_p()
        self.name = name
        _call("cuModuleGetFunction", ctypes.byref(self._function), module.handle, name.encode())

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        _call("cuFuncGetAttribute", ctypes.byref(value), number, self._function)
        return value.value

    @property
    def registers(self) -> int:
        return self._attribute(_REGISTERS)

    @property
    def local_bytes(self) -> int:
        return self._attribute(_LOCAL_BYTES)

    def launch(
        self, grid: Sequence[int], threads: int, shared_bytes: int, arguments: Sequence[int | bytes]
    ) -> None:
        """Arguments: ints are device addresses, bytes are structs by value."""
        boxes = [
            ctypes.c_uint64(a) if isinstance(a, int) else ctypes.create_string_buffer(a, len(a))
            for a in arguments
        ]
        block = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
        _call(
            "cuLaunchKernel",
            self._function,
            *grid,
            threads,
            1,
            1,
            shared_bytes,
            _stream,
            block,
            None,
        )


class Module:
    """Loaded machine code."""

    def __init__(self, cubin: bytes) -> None:
        start()
        self.handle = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self.handle), cubin)

    def kernel(self, name: str) -> Kernel:
        return Kernel(self, name)


def synchronize() -> None:
    _call("cuCtxSynchronize")


class Timer:
    """Device time between two points of the default stream."""

    def __init__(self) -> None:
        self._begin, self._end = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuEventCreate", ctypes.byref(self._begin), 0)
        _call("cuEventCreate", ctypes.byref(self._end), 0)

    def begin(self) -> None:
        _call("cuEventRecord", self._begin, None)

    def end(self) -> None:
        _call("cuEventRecord", self._end, None)

    def seconds(self) -> float:
        _call("cuEventSynchronize", self._end)
        elapsed = ctypes.c_float()
        _call("cuEventElapsedTime", ctypes.byref(elapsed), self._begin, self._end)
        return elapsed.value / 1000
