"""Plans, compiles and launches our kernels on the GPU."""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import cuda_driver
import msl_to_cuda
import numpy as np
import problem as problems
from cuda_driver import Memory

SHADERS = Path(__file__).resolve().parents[2] / "shaders"
GENERAL, LSE, SEQUENCES, ALIGNED, PADDED, PARTIAL, SHARED = range(7)
TILE_Q = 32


@functools.cache
def tile_facts() -> ctypes.CDLL:
    """sdpa_tiles.h and sdpa_spans.h, compiled for this machine."""
    library = Path(tempfile.mkdtemp()) / "tile_facts.so"
    source = Path(__file__).with_name("tile_facts.cpp")
    command = ["c++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{SHADERS}", str(source), "-o"]
    subprocess.run([*command, str(library)], check=True)
    facts = ctypes.CDLL(str(library))
    facts.span_keys.restype = ctypes.c_longlong
    facts.span_keys.argtypes = [ctypes.c_longlong, ctypes.c_longlong, ctypes.c_int]
    return facts


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
    grid: tuple[int, int, int]
    shared_bytes: int = 0


@dataclass
class Plan:
    steps: list[Step]
    args: dict[str, int | float]
    span_count: int
    fast: bool


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


def _is_aligned(tensor: problems.Tensor) -> bool:
    elements = (
        tensor.offset,
        *(s for s, n in zip(tensor.strides, tensor.shape, strict=False) if n > 1),
    )
    return all(n * tensor.storage.itemsize % 16 == 0 for n in elements)


def choose_kernel(case: problems.Case) -> str:
    """The rule of shaders/README.md."""
    if case.kernel != "auto":
        return case.kernel
    if case.D % 8 or case.value_dim != case.D:
        return "straight"
    return "decode" if case.L * case.group <= 8 else "prefill"


def _plan_straight(case: problems.Case, lse: bool) -> Plan:
    suffix = {"f32": "", "f16": "_f16", "bf16": "_bf16"}[case.dtype]
    constants = [GENERAL] * (not case.packed_params) + [LSE] * lse + [SEQUENCES] * case.per_sequence
    key = KernelKey("sdpa.metal", f"sdpa{suffix}", tuple(constants), TILE_Q)
    grid = (case.B, case.Hq, -(-case.L // TILE_Q))
    return Plan([Step(key, grid)], {"span_len": 2048, "n_spans": 1, "group_split": 1}, 1, False)


def _span_len(case: problems.Case, kind: str, size: int) -> int:
    if case.span_len:
        return case.span_len
    if kind == "prefill" and case.L > 64:
        return max(1, *case.lengths())
    facts = tile_facts()
    return facts.span_len(int(kind == "prefill"), size, case.D)


def plan(case: problems.Case, aligned: bool, lse: bool = True) -> Plan:
    kind = choose_kernel(case)
    if kind == "straight":
        return _plan_straight(case, lse)
    facts = tile_facts()
    prefill = int(kind == "prefill")
    size = problems.STORAGE[case.dtype].itemsize
    dim = facts.tile_head_dim(case.D)
    tile_rows = facts.tile_rows(prefill, size, dim)
    rows = case.L * case.group
    row_teams = facts.tile_row_teams(prefill, size, dim, rows)
    span_len = _span_len(case, kind, size)
    keys = [facts.span_keys(span_len, n, int(case.group > 1)) for n in case.lengths()]
    spans = max(1, *(-(-n // of) for n, of in zip(case.lengths(), keys, strict=True)))
    partial = spans > 1
    constants = (
        [LSE] * (lse and not partial) + [SEQUENCES] * case.per_sequence + [ALIGNED] * aligned
    )
    constants += [PADDED] * (dim > case.D) + [PARTIAL] * partial
    constants += [SHARED] * (row_teams < facts.tile_teams(prefill, size, dim))
    threads = 32 * facts.tile_simdgroups(prefill, size, dim)
    key = KernelKey(
        f"sdpa_{kind}.metal", f"sdpa_{kind}_{case.dtype}_d{dim}", tuple(constants), threads
    )
    row_blocks = -(-rows // (tile_rows * row_teams))
    grid = (case.B, case.Hkv, row_blocks * spans)
    steps = [Step(key, grid, facts.tile_memory(prefill, size, dim, row_teams))]
    if partial:
        suffix = {"f32": "", "f16": "_f16", "bf16": "_bf16"}[case.dtype]
        merge = tuple([LSE] * lse + [SEQUENCES] * case.per_sequence)
        simdgroups = facts.merge_simdgroups(spans)
        merge_key = KernelKey("sdpa_merge.metal", f"sdpa_merge{suffix}", merge, 32 * simdgroups)
        blocks = -(-case.value_dim // facts.merge_columns())
        grid = (case.B, case.Hq, case.L * blocks)
        steps.append(Step(merge_key, grid, facts.merge_bytes()))
    args = {"span_len": span_len, "n_spans": spans, "group_split": row_teams}
    return Plan(steps, args, spans, True)


def pack_args(
    case: problems.Case, layout: dict[str, tuple[int, tuple[int, int, int]]], plan: Plan
) -> bytes:
    """SdpaArgs. layout: offset and strides of q, k, v, out."""
    names = ("q", "k", "v", "out")
    strides = [s for name in names for s in layout[name][1]]
    offsets = [layout[name][0] for name in names]
    return struct.pack(
        "<12q4q2q6If9I",
        *strides, *offsets, case.starts()[0], case.lengths()[0],
        case.B, case.Hq, case.Hkv, case.L, case.D, case.value_dim, case.softmax_scale,
        int(case.causal), plan.args["span_len"], plan.args["n_spans"], 0, case.L, 0,
        plan.args["group_split"], 0, 0,
    )  # fmt: skip


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


class Run:
    """A problem on the device with its plan; `launch` enqueues all steps."""

    def __init__(self, library: Library, problem: problems.Problem, poison: bool = True) -> None:
        case = problem.case
        self.case, self.problem, self.library = case, problem, library
        self.plan = plan(case, all(_is_aligned(t) for t in (problem.q, problem.k, problem.v)))
        allocate = _filled if poison else Memory
        rows = case.B * case.Hq * case.L
        self.inputs = {}
        for index, tensor in enumerate((problem.q, problem.k, problem.v)):
            self.inputs[index] = Memory(tensor.byte_len)
            self.inputs[index].fill(tensor.storage.tobytes())
        self.out = Memory(problem.out.byte_len)
        self.out.fill(problem.out.storage.tobytes())
        self.lse = allocate(rows * 4)
        states = rows * self.plan.span_count
        self.partial_o = allocate(states * case.value_dim * 4 if self.plan.fast else 4)
        self.partial_ms = allocate(states * 8 if self.plan.fast else 4)
        self.sequences = Memory(16 * case.B)
        pairs = [n for pair in zip(case.starts(), case.lengths(), strict=True) for n in pair]
        self.sequences.write(struct.pack(f"<{len(pairs)}q", *pairs))
        layout = {
            name: (tensor.offset, tensor.strides)
            for name, tensor in zip(
                ("q", "k", "v", "out"), (problem.q, problem.k, problem.v, problem.out), strict=True
            )
        }
        self.args = pack_args(case, layout, self.plan)

    def kernel_keys(self) -> list[KernelKey]:
        return [step.key for step in self.plan.steps]

    def _argument(self, buffer: msl_to_cuda.Buffer, inputs: dict[int, Memory]) -> int | bytes:
        if buffer.type_name == "SdpaArgs":
            return self.args
        if buffer.type_name == "SdpaParamsBlock":
            return pack_params(self.case)
        memory = {
            3: self.out,
            6: self.lse,
            7: self.sequences,
            8: self.partial_o,
            9: self.partial_ms,
        }
        return (inputs | memory)[buffer.index].address

    def launch(self, inputs: dict[int, Memory] | None = None) -> None:
        for step in self.plan.steps:
            arguments = [
                self._argument(b, inputs or self.inputs) for b in self.library.buffers[step.key]
            ]
            kernel = self.library.kernels[step.key]
            kernel.launch(step.grid, step.key.threads, step.shared_bytes, arguments)

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Output as float64 [B, Hq, L, Dv] and lse; the storage around the output is as it was."""
        cuda_driver.synchronize()
        case, out = self.case, self.problem.out
        storage = np.frombuffer(self.out.read(), problems.STORAGE[case.dtype])
        values = problems.Tensor(storage, out.offset, out.strides, out.shape).view()
        lse = np.frombuffer(self.lse.read(), np.float32).reshape(case.B, case.Hq, case.L)
        return problems.from_storage(values, case.dtype), lse
