"""METAL_SDPA_SWEEP random problems, and as many calls to refuse. METAL_SDPA_SEED sets the seed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import numpy as np
import pytest

import accuracy
import metal_sdpa
from arrays import LayoutChoice, bits, poisoned, same_bits, strided
from bad_calls import FAULTS, Fault, valid_call
from problems import Limits, Problem, random_problem
from targets import Target, selected_targets, sweep_seed

COUNT = int(os.environ.get("METAL_SDPA_SWEEP", "2000"))
CHUNK = 100
CHUNKS = [range(first, min(first + CHUNK, COUNT)) for first in range(0, COUNT, CHUNK)]
SEED = sweep_seed()

pytestmark = pytest.mark.sweep
over_chunks = pytest.mark.parametrize("chunk", CHUNKS, ids=lambda c: f"{c.start}-{c.stop - 1}")


# --- valid problems ------------------------------------------------------------------------------


def groups() -> Iterator[tuple[Limits, list[Target]]]:
    """Targets that take problems of the same size."""
    for limits in dict.fromkeys(target.limits for target in selected_targets()):
        yield limits, [t for t in selected_targets() if t.limits == limits]


@over_chunks
def test_valid_problems(chunk: range) -> None:
    for limits, targets in groups():
        for index in chunk:
            problem = random_problem(SEED, index, limits)
            reference = problem.reference()
            results = [run_checked(problem, target, index) for target in targets]
            for target, (out, lse) in zip(targets, results, strict=True):
                errors = accuracy.output_errors(out, reference, problem.dtype)
                assert errors.max() <= 1, f"{target}: {errors.max():.3f} bounds off: {problem}"
                errors = accuracy.lse_errors(lse, reference)
                assert errors.max() <= 1, f"{target}: lse {errors.max():.3f} bounds off: {problem}"
            turn = index % len(targets)
            check_invariance(problem, targets[turn], *results[turn])


def run_checked(problem: Problem, target: Target, index: int) -> tuple[np.ndarray, np.ndarray]:
    """out and lse of one call with two threads, into strided memory with guards around it."""
    rng = np.random.default_rng((SEED, index, 1))
    shape = problem.shape
    dims = (shape.B, shape.Hq, shape.L, shape.Dv)
    out = strided(rng, dims, problem.q.flat.dtype, "bits", LayoutChoice())
    guards = out.untouched()
    inputs = [bits(x.flat).copy() for x in (problem.q, problem.k, problem.v)]
    result, lse = metal_sdpa.sdpa(
        *problem.arrays(),
        **problem.arguments(),
        out=out.view,
        return_lse=True,
        device=target.device(threads=2),
    )
    assert result is out.view, problem
    assert lse.shape == dims[:3], problem
    assert lse.dtype == np.float32, problem
    assert np.array_equal(out.untouched(), guards), f"{target}: wrote beside out: {problem}"
    for name, before in zip("qkv", inputs, strict=True):
        after = bits(getattr(problem, name).flat)
        assert np.array_equal(before, after), f"{target}: wrote to {name}: {problem}"
    return out.view, lse


def check_invariance(problem: Problem, target: Target, out: np.ndarray, lse: np.ndarray) -> None:
    """The same bits with one thread, without lse, packed, and each sequence by itself."""
    one = target.device(threads=1)
    again = metal_sdpa.sdpa(*problem.arrays(), **problem.arguments(), device=one)
    assert same_bits(again, out), f"{target}: one thread gives other bits: {problem}"
    for b in range(problem.shape.B):
        arrays, arguments = problem.alone(b)
        got, got_lse = metal_sdpa.sdpa(*arrays, **arguments, return_lse=True, device=one)
        assert same_bits(got[0], out[b]), f"{target}: sequence {b} alone differs: {problem}"
        assert same_bits(got_lse[0], lse[b]), f"{target}: lse of {b} alone differs: {problem}"


# --- calls to refuse -----------------------------------------------------------------------------


@over_chunks
def test_bad_calls(chunk: range) -> None:
    device = selected_targets()[0].device()
    probe = valid_call(np.random.default_rng(0))
    expected = metal_sdpa.sdpa(**probe | {"out": None, "return_lse": False}, device=device)
    for index in chunk:
        rng = np.random.default_rng((SEED, index, 2))
        # Every fault comes up: the first round takes them in order.
        fault = FAULTS[index if index < len(FAULTS) else int(rng.integers(len(FAULTS)))]
        check_refused(fault, rng, device, f"METAL_SDPA_SEED={SEED} bad call {index}")
        usable = metal_sdpa.sdpa(**probe | {"out": None, "return_lse": False}, device=device)
        assert same_bits(usable, expected), f"the device is not usable after {fault.name}"


def check_refused(
    fault: Fault, rng: np.random.Generator, device: metal_sdpa.Device, label: str
) -> None:
    call = valid_call(rng) | {"device": device}
    original = call["out"]
    fault.spoil(rng, call)
    before = memory_of(call, original)
    label += f": {fault.name}"
    with pytest.raises(metal_sdpa.Error) as caught:
        accept(call, label)
    text = f"{label}: {type(caught.value).__name__}: {caught.value}"
    assert isinstance(caught.value, getattr(metal_sdpa, fault.error)), text
    begins = fault.argument if ":" in fault.argument else f"sdpa: {fault.argument}"
    assert re.match(rf"{begins}\b.", str(caught.value)), text
    after = memory_of(call, original)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), text


def accept(call: dict, label: str) -> None:
    metal_sdpa.sdpa(**call)
    pytest.fail(f"{label}: accepted")


def memory_of(call: dict, *more: np.ndarray) -> list[np.ndarray]:
    """Bits of every array of the call."""
    arrays = [x for x in call.values() if isinstance(x, np.ndarray) and x.dtype.kind in "fV"]
    return [np.frombuffer(x.tobytes(), np.uint8) for x in (*arrays, *more)]


def test_every_fault_is_a_fault_of_an_otherwise_valid_call() -> None:
    """What the faults start from is accepted, and poison in `out` is replaced."""
    device = selected_targets()[0].device()
    for index in range(50):
        call = valid_call(np.random.default_rng((SEED, index)))
        before = bits(call["out"]).copy()
        metal_sdpa.sdpa(**call, device=device)
        assert not np.array_equal(bits(call["out"]), before)


def test_stale_memory_is_poisoned() -> None:
    """The sweep's problems do hold NaN, infinities and huge numbers where nobody may read."""
    rng = np.random.default_rng(SEED)
    for poison in ("nan", "inf", "huge"):
        values = poisoned(rng, 16, np.dtype(np.float16), poison).astype(np.float32)
        assert not (np.abs(values) < 65504).any()
    problems = [random_problem(SEED, index) for index in range(100)]
    unused = [p for p in problems if (p.lengths() < p.shape.S).any()]
    assert len(unused) > 30
