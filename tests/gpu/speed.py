"""Timings on the GPU, beside the copy bandwidth of the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import cuda_driver
import numpy as np
import problem as problems
from cuda_driver import Graph, Memory, Timer
from harness import Library, Run
from problem import Case

DECODE = {
    "B1 32/8 S32768 D128 bf16": Case(Hq=32, Hkv=8, S=32768, D=128, dtype="bf16"),
    "B1 32/8 S32768 D128 f16": Case(Hq=32, Hkv=8, S=32768, D=128, dtype="f16"),
    "B1 32/8 S32768 D128 f32": Case(Hq=32, Hkv=8, S=32768, D=128, dtype="f32"),
    "B16 32/8 S8192 D128 bf16": Case(B=16, Hq=32, Hkv=8, S=8192, D=128, dtype="bf16"),
    "B16 32/8 S8192 D128 f16": Case(B=16, Hq=32, Hkv=8, S=8192, D=128, dtype="f16"),
    "B16 32/8 S8192 D128 f32": Case(B=16, Hq=32, Hkv=8, S=8192, D=128, dtype="f32"),
    "B1 32/8 S32768 D64 bf16": Case(Hq=32, Hkv=8, S=32768, D=64, dtype="bf16"),
    "B16 32/8 S8192 D64 bf16": Case(B=16, Hq=32, Hkv=8, S=8192, D=64, dtype="bf16"),
    "B1 32/8 S32768 D64 f16": Case(Hq=32, Hkv=8, S=32768, D=64, dtype="f16"),
    "B1 32/8 S32768 D256 f16": Case(Hq=32, Hkv=8, S=32768, D=256, dtype="f16"),
    "B1 32/8 S32768 D256 bf16": Case(Hq=32, Hkv=8, S=32768, D=256, dtype="bf16"),
    "B16 32/8 S8192 D256 bf16": Case(B=16, Hq=32, Hkv=8, S=8192, D=256, dtype="bf16"),
    "B1 32/32 S16384 D128 bf16": Case(Hq=32, Hkv=32, S=16384, D=128, dtype="bf16"),
    "B1 32/32 S16384 D128 f16": Case(Hq=32, Hkv=32, S=16384, D=128, dtype="f16"),
    "B1 24/8 S16384 D64 f16": Case(Hq=24, Hkv=8, S=16384, D=64, dtype="f16"),
    "B1 16/8 S16384 D256 f16": Case(Hq=16, Hkv=8, S=16384, D=256, dtype="f16"),
    "B1 64/8 S32768 D128 f16": Case(Hq=64, Hkv=8, S=32768, D=128, dtype="f16"),
    "B1 32/8 S4096 D128 bf16": Case(Hq=32, Hkv=8, S=4096, D=128, dtype="bf16"),
    "B1 32/8 S4096 L4 D128 f16": Case(Hq=32, Hkv=8, L=4, S=4096, D=128, dtype="f16"),
    "B1 32/8 S32768 L16 D128 f16": Case(Hq=32, Hkv=8, L=16, S=32768, D=128, dtype="f16"),
    "B1 32/8 S32768 L64 D128 f16": Case(Hq=32, Hkv=8, L=64, S=32768, D=128, dtype="f16"),
}
PREFILL = {
    "L2048 32/8 D128 f16": Case(Hq=32, Hkv=8, L=2048, S=2048, D=128, dtype="f16"),
    "L8192 32/8 D128 f16": Case(Hq=32, Hkv=8, L=8192, S=8192, D=128, dtype="f16"),
    "L4096 16/16 D64 f16": Case(Hq=16, Hkv=16, L=4096, S=4096, D=64, dtype="f16"),
    "L2048 32/8 D128 bf16": Case(Hq=32, Hkv=8, L=2048, S=2048, D=128, dtype="bf16"),
    "L1024 32/8 D128 f16": Case(Hq=32, Hkv=8, L=1024, S=1024, D=128, dtype="f16"),
    "L2048 16/8 D256 f16": Case(Hq=16, Hkv=8, L=2048, S=2048, D=256, dtype="f16"),
    "L1024 32/8 D128 f32": Case(Hq=32, Hkv=8, L=1024, S=1024, D=128, dtype="f32"),
}
STRAIGHT = {
    "L2048 32/8 D128 f16 straight": Case(Hq=32, Hkv=8, L=2048, S=2048, D=128, kernel="straight")
}
BYTES_CASES = {name: DECODE[name] for name in list(DECODE)[:4]}
ROTATE_BYTES = 400 << 20  # inputs are rotated over this much, many times the L2


def kv_bytes(case: Case) -> int:
    """Bytes of K and V, each counted once."""
    size = problems.STORAGE[case.dtype].itemsize
    return case.B * case.Hkv * case.S * (case.D + case.value_dim) * size


def causal_flops(case: Case) -> float:
    """Two products over the visible pairs of a causal problem with L == S."""
    return case.B * case.Hq * (case.L * (case.L + 1) / 2) * 2 * (case.D + case.value_dim)


def timing_problem(case: Case) -> problems.Problem:
    """Random values, a block of them repeated: time does not depend on more. The block's length has
    no common factor with a row's, so that no two keys are alike."""
    rng = np.random.default_rng(2)
    block = problems.to_storage(rng.standard_normal((1 << 20) + 7).astype(np.float32), case.dtype)
    places = problems.places_of(case, rng)

    def tensor(heads: int, extent: tuple[int, int], width: int) -> problems.Tensor:
        batches, rows = extent
        count = batches * heads * rows * width
        strides = (heads * rows * width, rows * width, width)
        return problems.Tensor(block, 0, strides, (batches, heads, rows, width), count)

    return problems.Problem(
        case,
        tensor(case.Hq, places.query_extent, case.D),
        tensor(case.Hkv, places.key_extent, case.D),
        tensor(case.Hkv, places.key_extent, case.value_dim),
        tensor(case.Hq, places.query_extent, case.value_dim),
        places,
    )


def run_once(case: Case) -> None:
    library = Library()
    run = Run(library, timing_problem(case), poison=False)
    library.prepare(run.kernel_keys())
    run.launch()
    cuda_driver.synchronize()


def _copies(run: Run) -> list[dict[int, Memory]]:
    size = sum(memory.byte_len for memory in run.inputs.values())
    sets = [run.inputs]
    for _ in range(min(8, ROTATE_BYTES // size)):
        copy = {index: Memory(memory.byte_len) for index, memory in run.inputs.items()}
        for index, memory in copy.items():
            memory.copy_from(run.inputs[index])
        sets.append(copy)
    return sets


def time_case(library: Library, case: Case, repeats: int = 7) -> float:
    """Median over `repeats` of the seconds of one call, each over a graph of back-to-back calls."""
    run = Run(library, timing_problem(case), poison=False)
    library.prepare(run.kernel_keys())
    sets = _copies(run)
    timer = Timer()

    def seconds(work: Callable[[], None], calls: int) -> float:
        timer.begin()
        work()
        timer.end()
        return timer.seconds() / calls

    run.launch()
    once = seconds(run.launch, 1)
    count = max(2, min(100, int(0.01 / max(once, 1e-6))))
    graph = Graph(lambda: [run.launch(sets[n % len(sets)]) for n in range(count)])
    graph.replay()
    return statistics.median(seconds(graph.replay, count) for _ in range(repeats))


def copy_bandwidth(byte_len: int = 4 << 30) -> float:
    """Bytes read and written a second by a device-to-device copy."""
    source, target = Memory(byte_len), Memory(byte_len)
    timer, times = Timer(), []
    for _ in range(8):
        timer.begin()
        target.copy_from(source)
        timer.end()
        times.append(timer.seconds())
    return 2 * byte_len / statistics.median(times[2:])


def decode_table(library: Library, cases: dict[str, Case], copy: float) -> dict[str, object]:
    table = {}
    for name, case in cases.items():
        seconds = time_case(library, case)
        rate = kv_bytes(case) / seconds
        table[name] = {"us": seconds * 1e6, "GB/s": rate / 1e9, "of copy": rate / copy}
        print(
            f"{name:30} {seconds * 1e6:9.1f} us {rate / 1e9:8.0f} GB/s {rate / copy:6.1%}",
            flush=True,
        )
    return table


def prefill_table(library: Library, cases: dict[str, Case]) -> dict[str, object]:
    table = {}
    for name, case in cases.items():
        seconds = time_case(library, case, 3)
        rate = causal_flops(case) / seconds
        table[name] = {"us": seconds * 1e6, "TFLOP/s": rate / 1e12}
        print(f"{name:30} {seconds * 1e6:9.1f} us {rate / 1e12:8.2f} TFLOP/s", flush=True)
    return table


def speed() -> dict[str, object]:
    library = Library()
    print(cuda_driver.start())
    copy = copy_bandwidth()
    print(f"copy bandwidth {copy / 1e9:.0f} GB/s")
    decode = decode_table(library, DECODE, copy)
    prefill = prefill_table(library, PREFILL | STRAIGHT)
    facts = {
        key.name: {"registers": kernel.registers, "local_bytes": kernel.local_bytes}
        for key, kernel in library.kernels.items()
    }
    for name, fact in facts.items():
        print(name, fact)
    return {"copy_bytes_per_s": copy, "decode": decode, "prefill": prefill, "kernels": facts}
