"""ggml on the CPU: GGML_OP_FLASH_ATTN_EXT through the C interface of a shared libggml.

The library is the one of the package libggml-python, or of the directory METAL_SDPA_GGML_DIR.
"""

from __future__ import annotations

import ctypes as c
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..data import Inputs, aligned_empty
from ..features import ALIBI_MAX_BIAS, distances
from ..roofline import flop_count
from ..shapes import Case
from .base import Bound, Peer, UnsupportedCaseError, fold_queries, folded_mask, needs_mask

GGML_TYPES = {"f32": 0, "f16": 1, "bf16": 30}  # enum ggml_type
GRAPH_MEMORY = 1 << 20  # bytes for the descriptions of a graph of one node
ONE_THREAD_BELOW = 10e6  # flops: then waking a second thread may cost more than it saves
POLL = 100  # threads spin between graphs, as an engine sets it while it generates


class InitParams(c.Structure):
    """struct ggml_init_params"""

    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool))


class Tensor(c.Structure):
    """struct ggml_tensor of ggml 0.9 to 0.20"""

    _fields_ = (
        ("type", c.c_int),
        ("buffer", c.c_void_p),
        ("ne", c.c_int64 * 4),
        ("nb", c.c_size_t * 4),
        ("op", c.c_int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", c.c_void_p * 10),
        ("view_src", c.c_void_p),
        ("view_offs", c.c_size_t),
        ("data", c.c_void_p),
    )


class Plan(c.Structure):
    """struct ggml_cplan; the room behind it is for fields of later versions."""

    _fields_ = (
        ("work_size", c.c_size_t),
        ("work_data", c.c_void_p),
        ("n_threads", c.c_int),
        ("threadpool", c.c_void_p),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        ("use_ref", c.c_bool),
    )


class ThreadpoolParams(c.Structure):
    """struct ggml_threadpool_params"""

    _fields_ = (
        ("cpumask", c.c_bool * 512),
        ("n_threads", c.c_int),
        ("prio", c.c_int),
        ("poll", c.c_uint32),
        ("strict_cpu", c.c_bool),
        ("paused", c.c_bool),
    )


TensorPointer = c.POINTER(Tensor)


def library_directory() -> Path:
    """Where libggml-base and libggml-cpu are. ImportError where there are none."""
    given = os.environ.get("METAL_SDPA_GGML_DIR")
    if given:
        return Path(given)
    spec = find_spec("libggml")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("libggml-python is not installed and METAL_SDPA_GGML_DIR is not set")
    root = Path(spec.submodule_search_locations[0])
    for name in ("lib", "lib64"):
        if any((root / name).glob("libggml-cpu.*")):
            return root / name
    raise ImportError(f"no libggml-cpu in {root}")


@cache
def load() -> tuple[c.CDLL, c.CDLL]:
    """(base, cpu), with the signatures that are used."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    directory = library_directory()
    base = c.CDLL(str(directory / f"libggml-base{suffix}"), mode=c.RTLD_GLOBAL)
    cpu = c.CDLL(str(directory / f"libggml-cpu{suffix}"), mode=c.RTLD_GLOBAL)
    base.ggml_init.argtypes, base.ggml_init.restype = [InitParams], c.c_void_p
    base.ggml_free.argtypes, base.ggml_free.restype = [c.c_void_p], None
    base.ggml_new_tensor_4d.argtypes = [c.c_void_p, c.c_int, *[c.c_int64] * 4]
    base.ggml_new_tensor_4d.restype = TensorPointer
    base.ggml_get_data.argtypes, base.ggml_get_data.restype = [TensorPointer], c.c_void_p
    base.ggml_flash_attn_ext.argtypes = [c.c_void_p, *[TensorPointer] * 3, c.c_void_p,
                                         *[c.c_float] * 3]  # fmt: skip
    base.ggml_flash_attn_ext.restype = TensorPointer
    base.ggml_new_graph.argtypes, base.ggml_new_graph.restype = [c.c_void_p], c.c_void_p
    base.ggml_build_forward_expand.argtypes = [c.c_void_p, TensorPointer]
    base.ggml_build_forward_expand.restype = None
    base.ggml_threadpool_params_default.argtypes = [c.c_int]
    base.ggml_threadpool_params_default.restype = ThreadpoolParams
    cpu.ggml_threadpool_new.argtypes = [c.POINTER(ThreadpoolParams)]
    cpu.ggml_threadpool_new.restype = c.c_void_p
    cpu.ggml_threadpool_pause.argtypes, cpu.ggml_threadpool_pause.restype = [c.c_void_p], None
    cpu.ggml_threadpool_resume.argtypes, cpu.ggml_threadpool_resume.restype = [c.c_void_p], None
    cpu.ggml_graph_plan.argtypes = [c.c_void_p, c.c_int, c.c_void_p]
    cpu.ggml_graph_plan.restype = Plan
    cpu.ggml_graph_compute.argtypes = [c.c_void_p, c.POINTER(Plan)]
    cpu.ggml_graph_compute.restype = c.c_int
    cpu.ggml_cpu_init.argtypes, cpu.ggml_cpu_init.restype = [], None
    cpu.ggml_cpu_init()
    return base, cpu


def instruction_sets(cpu: c.CDLL) -> str:
    """What the library was compiled for."""
    names = ("neon", "avx2", "avx512", "avx512_bf16")
    return " ".join(n for n in names if getattr(cpu, f"ggml_cpu_has_{n}", lambda: 0)())


def package_version() -> str:
    if "METAL_SDPA_GGML_DIR" in os.environ:
        return "own build"
    return version("libggml-python")


class Context:
    """One graph of one node. Frees its memory when dropped."""

    def __init__(self, base: c.CDLL) -> None:
        self._base = base
        self.handle = base.ggml_init(InitParams(GRAPH_MEMORY, None, True))
        self._arrays: list[np.ndarray] = []

    def __del__(self) -> None:
        self._base.ggml_free(self.handle)

    def tensor(self, array: np.ndarray, dtype: str) -> TensorPointer:
        """The same memory [B, H, L, D] as a tensor."""
        ne = reversed(array.shape)
        tensor = self._base.ggml_new_tensor_4d(self.handle, GGML_TYPES[dtype], *ne)
        self.point(tensor, array)
        return tensor

    def point(self, tensor: TensorPointer, array: np.ndarray) -> None:
        tensor.contents.data = array.ctypes.data
        if self._base.ggml_get_data(tensor) != array.ctypes.data:
            raise UnsupportedCaseError("this libggml lays out struct ggml_tensor differently")
        self._arrays.append(array)


def feature_mask(inputs: Inputs) -> np.ndarray:
    """What is added to the scores [1, 1, L, S] in f16; with ALiBi distances, which the operator
    multiplies by its slopes, the same as ours."""
    case = inputs.case
    added = np.zeros((case.L, case.S), dtype=np.float32)
    if case.feature.alibi:
        added = -distances(case.L, case.S)
    if inputs.bias is not None:
        added = inputs.bias
    return np.where(inputs.seen, added, -np.inf).astype(np.float16)[None, None]


class Ggml(Peer):
    name = "ggml"
    features = frozenset({"window", "softcap", "alibi", "bias", "mask"})

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._base, self._cpu = load()
        params = self._base.ggml_threadpool_params_default(threads)
        params.poll = POLL
        params.paused = True
        self._pool = self._cpu.ggml_threadpool_new(c.byref(params))
        self.version = f"{package_version()} ({instruction_sets(self._cpu)})"

    @contextmanager
    def awake(self) -> Iterator[None]:
        self._cpu.ggml_threadpool_resume(self._pool)
        try:
            yield
        finally:
            self._cpu.ggml_threadpool_pause(self._pool)

    def variants(self, case: Case) -> list[str]:
        may_fold = case.group > 1 and case.L <= 64 and not case.feature.needs
        variants = ["gqa", "folded"] if may_fold else ["gqa"]
        if flop_count(case) < ONE_THREAD_BELOW:
            variants.append("one thread")
        return variants

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        """q and the output are f32, as the operator has them; K and V have the case's dtype."""
        case = inputs.case
        folded = variant == "folded"
        source = fold_queries(inputs.q, case.Hkv) if folded else inputs.q
        q = aligned_empty(source.shape, np.dtype(np.float32))
        q[:] = source
        B, H, L, D = q.shape
        out = aligned_empty((B, L, H, D), np.dtype(np.float32))
        mask = None
        if case.feature.needs - {"softcap"}:
            mask = feature_mask(inputs)
        elif needs_mask(case):
            seen = folded_mask(case) if folded else folded_mask(case)[: case.L]
            mask = np.where(seen, 0, -np.inf).astype(np.float16)[None, None]
        threads = 1 if variant == "one thread" else self.threads
        calls = [self._graph(q, k, v, out, mask, inputs, threads) for k, v in inputs.caches]
        return Bound(calls, lambda: out.transpose(0, 2, 1, 3).reshape(inputs.q.shape))

    def _graph(self, q, k, v, out, mask, inputs: Inputs, threads: int):
        base, cpu, dtype = self._base, self._cpu, inputs.case.dtype
        context = Context(base)
        mask_tensor = None
        if mask is not None:
            mask_tensor = c.cast(context.tensor(mask, "f16"), c.c_void_p)
        node = base.ggml_flash_attn_ext(
            context.handle, context.tensor(q, "f32"), context.tensor(k, dtype),
            context.tensor(v, dtype), mask_tensor, inputs.scale,
            ALIBI_MAX_BIAS if inputs.case.feature.alibi else 0.0,
            inputs.case.feature.softcap)  # fmt: skip
        context.point(node, out)
        graph = base.ggml_new_graph(context.handle)
        base.ggml_build_forward_expand(graph, node)
        pool = self._pool if threads > 1 else None
        plan = cpu.ggml_graph_plan(graph, threads, pool)
        work = aligned_empty((max(plan.work_size, 1),), np.dtype(np.uint8))
        plan.work_data = work.ctypes.data
        plan_pointer = c.pointer(plan)

        def call() -> None:
            if cpu.ggml_graph_compute(graph, plan_pointer) != 0:
                raise RuntimeError("ggml_graph_compute failed")

        call.keep_alive = (context, work)
        return call
