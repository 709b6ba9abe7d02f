"""Plans, compiles and launches our kernels on the GPU."""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import json
import math
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cuda_driver
import msl_to_cuda
import numpy as np
import problem as problems
from cuda_driver import Memory

SHADERS = Path(__file__).resolve().parents[2] / "shaders"
ROOT = SHADERS.parent
LSE = 1  # function constant
SDPA_ARGS_BYTES = 416
TILE_Q = 32


PLANNER_SOURCES = (
    "tests/gpu/planner.cpp",
    *(f"csrc/metal/{name}.cpp" for name in ("plan", "plan_tiles", "plan_steps", "work_estimate")),
    *(f"csrc/core/{name}.cpp" for name in ("band", "operands", "plan_args", "problem", "dtype")),
)
DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "bool": 3}


class GpuProblem(ctypes.Structure):
    """planner.cpp has the same fields."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (
            "dtype", "batch", "n_heads", "n_kv_heads", "seq_len", "kv_capacity", "head_dim",
            "value_dim", "causal", "return_lse", "kv_len", "q_start", "span_len", "window_left",
            "window_right", "kv_start", "query_len", "key_offset", "key_stride", "out_f32",
            "q_total", "kv_total", "page_len", "n_pages", "n_entries", "table_is_i64",
        )),
        *((name, ctypes.c_int64 * 4) for name in ("q", "k", "v", "out")),
        *((name, ctypes.c_int64 * 6) for name in ("mask", "sinks", "alibi_slopes")),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        ("kernel", ctypes.c_char_p),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in (
            "kv_lengths", "q_starts", "kv_starts", "query_lengths", "q_rows", "kv_rows",
        )),
    )  # fmt: skip


@functools.cache
def planner() -> ctypes.CDLL:
    """The library's Metal planner, compiled for this machine."""
    library = Path(tempfile.mkdtemp()) / "planner.so"
    includes = [f"-I{ROOT / folder}" for folder in (".", "csrc", "csrc/include")]
    sources = [str(ROOT / source) for source in PLANNER_SOURCES]
    command = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", *includes, *sources, "-o"]
    subprocess.run([*command, str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.plan_json.restype = ctypes.c_char_p
    return loaded


@dataclass(frozen=True)
class KernelKey:
    """One kernel of one shader with its function constants."""

    shader: str
    name: str
    constants: tuple[int, ...]
    threads: int


@dataclass(frozen=True)
class Step:
    key: KernelKey
    grid: tuple[int, ...]
    shared_bytes: int = 0
    args: bytes = b""
    work: bytes = b""


@dataclass
class Plan:
    steps: list[Step]
    scratch: tuple[int, int]


@dataclass
class Library:
    """Compiled kernels by key; `prepare` compiles many at once."""

    options: tuple[str, ...] = ()
    bounds: str = ""  # after __launch_bounds__(threads
    kernels: dict[KernelKey, cuda_driver.Kernel] = field(default_factory=dict)
    buffers: dict[KernelKey, list[msl_to_cuda.Buffer]] = field(default_factory=dict)

    def compile(self, key: KernelKey) -> tuple[bytes, list[msl_to_cuda.Buffer]]:
        translated = msl_to_cuda.translate(
            SHADERS / key.shader,
            [key.name],
            dict.fromkeys(key.constants, True),
            f"__launch_bounds__({key.threads}{self.bounds})",
        )
        return cuda_driver.compile_cubin(translated.source, self.options), translated.buffers

    def prepare(self, keys: list[KernelKey], workers: int = 16) -> None:
        cuda_driver.start()
        missing = [key for key in dict.fromkeys(keys) if key not in self.kernels]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for key, (cubin, buffers) in zip(missing, pool.map(self.compile, missing), strict=True):
                self.kernels[key] = cuda_driver.Module(cubin).kernel(key.name)
                self.buffers[key] = buffers


def _plan_packed(case: problems.Case) -> Plan:
    """The straightforward kernel's packed form, which no plan uses."""
    suffix = {"f32": "", "f16": "_f16", "bf16": "_bf16"}[case.dtype]
    key = KernelKey("sdpa.metal", f"sdpa{suffix}", (LSE,), TILE_Q)
    return Plan([Step(key, (case.B, case.Hq, -(-case.L // TILE_Q)))], (0, 0))


def _shader_of(kernel: str) -> str:
    """The file that instantiates a kernel: its name without dtype and head dim."""
    return re.sub(r"(_f32|_f16|_bf16)?(_d\d+)?$", "", kernel) + ".metal"


def _step(made: dict[str, Any]) -> Step:
    key = KernelKey(
        _shader_of(made["kernel"]), made["kernel"], tuple(made["constants"]), made["threads"]
    )
    args, work = bytes.fromhex(made["args"]), bytes.fromhex(made["work"])
    return Step(key, tuple(made["grid"]), made["shared"], args, work)


def _score_layouts(problem: problems.Problem) -> list[Any]:
    """Of the mask, the sinks and the slopes: dtype (-1: none), offset, strides of B, Hq, L, S."""
    case, scores = problem.case, problem.scores
    made = [(-1, 0, 0, 0, 0, 0)] * 3
    if scores.mask is not None:
        made[0] = (DTYPES[case.mask], 0, *scores.mask_strides)
    if scores.sinks is not None:
        made[1] = (DTYPES[case.sinks], 0, 0, 1, 0, 0)
    if scores.slopes is not None:
        made[2] = (DTYPES["f32"], 0, case.Hq, 1, 0, 0)
    return [(ctypes.c_int64 * 6)(*layout) for layout in made]


def plan(problem: problems.Problem, lse: bool = True) -> Plan:
    """The library's plan on an Apple GPU."""
    case, places = problem.case, problem.places
    if case.packed_params:
        return _plan_packed(case)

    def int64s(numbers: list[int]) -> Any:
        return (ctypes.c_int64 * len(numbers))(*numbers) if numbers else None

    def each(numbers: list[int]) -> Any:
        return int64s(numbers) if case.per_sequence else None

    kernel = {"auto": "", "straight": "sdpa"}.get(case.kernel, f"sdpa_{case.kernel}")
    layouts = [
        (ctypes.c_int64 * 4)(tensor.offset, *tensor.strides)
        for tensor in (problem.q, problem.k, problem.v, problem.out)
    ]
    c_problem = GpuProblem(
        DTYPES[case.dtype], case.B, case.Hq, case.Hkv, case.L, case.S, case.D, case.value_dim,
        int(case.causal), int(lse), case.lengths()[0], case.starts()[0], case.span_len,
        *case.window, case.first_slots()[0], case.rows_in_use()[0], case.key_offset,
        case.key_stride, int(case.out_f32), places.q_total, places.kv_total, case.page_len,
        places.n_pages, 0 if places.table is None else places.table.shape[1],
        int(case.table == "i64"), *layouts, *_score_layouts(problem), case.softmax_scale,
        case.softcap, kernel.encode(), each(case.lengths()), each(case.starts()),
        each(case.first_slots()), each(case.rows_in_use()), int64s(places.q_rows),
        int64s(places.kv_rows),
    )  # fmt: skip
    made = json.loads(planner().plan_json(ctypes.byref(c_problem)))
    if "error" in made:
        raise ValueError(made["error"])
    return Plan([_step(step) for step in made["steps"]], tuple(made["scratch"]))


def pack_params(case: problems.Case) -> bytes:
    """SdpaParamsBlock."""
    return struct.pack(
        "<5If2I", case.Hq, case.Hkv, case.D, case.L, case.lengths()[0], case.softmax_scale, case.S,
        int(case.causal),
    )  # fmt: skip


def _filled(byte_len: int) -> Memory:
    """Device memory full of NaN, so that what is not written shows."""
    memory = Memory(byte_len)
    memory.write(b"\xff" * byte_len)
    return memory


def _in_memory(array: np.ndarray) -> bytes:
    """Elements in the order of their addresses, of an array whose axes may be permuted."""
    order = np.argsort([-stride for stride in array.strides], kind="stable")
    return array.transpose(order).tobytes()


class Run:
    """A problem on the device with its plan; `launch` enqueues all steps."""

    def __init__(self, library: Library, problem: problems.Problem, poison: bool = True) -> None:
        case = problem.case
        self.case, self.problem, self.library = case, problem, library
        self.plan = plan(problem)
        allocate = _filled if poison else Memory
        self.inputs = {}
        for index, tensor in enumerate((problem.q, problem.k, problem.v)):
            self.inputs[index] = Memory(tensor.byte_len)
            self.inputs[index].fill(tensor.storage.tobytes())
        scores = problem.scores
        arrays = ((14, scores.mask), (15, scores.sinks), (16, scores.slopes))
        for index, stored in (*arrays, (17, problem.places.table)):
            if stored is not None:
                self.inputs[index] = Memory(stored.nbytes)
                self.inputs[index].write(_in_memory(stored))
        self.out = Memory(problem.out.byte_len)
        self.out.fill(problem.out.storage.tobytes())
        # Nobody writes that of rows of no sequence.
        allocate_lse = _filled if problem.places.q_rows else allocate
        self.lse = allocate_lse(math.prod(problem.out.shape[:3]) * 4)
        self.partial_o, self.partial_ms = (allocate(max(n, 4)) for n in self.plan.scratch)
        self.work = {}
        for step in self.plan.steps:
            if step.work:
                self.work[step] = Memory(len(step.work))
                self.work[step].write(step.work)

    def kernel_keys(self) -> list[KernelKey]:
        return [step.key for step in self.plan.steps]

    def _argument(
        self, step: Step, buffer: msl_to_cuda.Buffer, inputs: dict[int, Memory]
    ) -> int | bytes:
        if buffer.type_name == "SdpaArgs":
            return step.args or bytes(SDPA_ARGS_BYTES)
        if buffer.type_name == "SdpaParamsBlock":
            return pack_params(self.case)
        memory = {
            3: self.out,
            6: self.lse,
            8: self.partial_o,
            9: self.partial_ms,
            12: self.work.get(step, self.lse),
        }
        # A buffer that a function constant switches off is a parameter here all the same.
        return (memory | inputs).get(buffer.index, self.lse).address

    def launch(self, inputs: dict[int, Memory] | None = None) -> None:
        for step in self.plan.steps:
            arguments = [
                self._argument(step, b, inputs or self.inputs)
                for b in self.library.buffers[step.key]
            ]
            kernel = self.library.kernels[step.key]
            kernel.launch(step.grid, step.key.threads, step.shared_bytes, arguments)

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Output as float64 [B, Hq, L, Dv] and lse; the storage around the output is as it was."""
        cuda_driver.synchronize()
        case, out, places = self.case, self.problem.out, self.problem.places
        storage = np.frombuffer(self.out.read(), problems.STORAGE[case.out_dtype])
        values = problems.Tensor(storage, out.offset, out.strides, out.shape).view()
        lse = np.frombuffer(self.lse.read(), np.float32).reshape(*out.shape[:3], 1)
        return (
            problems.from_storage(places.take_queries(values), case.out_dtype),
            places.take_queries(lse, -math.inf)[..., 0],
        )
