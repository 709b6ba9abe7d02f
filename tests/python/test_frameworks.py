"""Over the sweep's problems, results are as accurate as PyTorch's on the same inputs."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import accuracy
import metal_sdpa
from arrays import DTYPES
from oracle import Reference, visibility
from problems import Limits, Problem, random_problem
from targets import Target, sweep_seed

pytestmark = pytest.mark.frameworks

LIMITS = Limits(capacity=2100, work=400_000, elements=200_000)
PROBLEMS = 100  # of each dtype


def torch_attention(problem: Problem) -> np.ndarray:
    """What PyTorch makes of the same inputs; stale slots are zeroed, for it does read them."""
    import torch

    visible = visibility(
        problem.shape.L,
        problem.shape.S,
        problem.causal,
        problem.starts(),
        problem.lengths(),
    )
    group = problem.shape.Hq // problem.shape.Hkv
    tensors = []
    for name, x in zip("qkv", problem.arrays(), strict=True):
        values = np.array(x)
        if name != "q":
            for b, length in enumerate(problem.lengths()):
                values[b, :, length:] = 0
            values = np.repeat(values, group, axis=1)
        half = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[problem.dtype]
        tensors.append(torch.from_numpy(values.astype(np.float32)).to(half))
    out = torch.nn.functional.scaled_dot_product_attention(
        *tensors,
        attn_mask=torch.from_numpy(visible[:, None]),
        scale=problem.softmax_scale(),
    )
    return out.float().numpy()


@functools.cache
def problems_with_pytorchs_error(dtype: str) -> tuple[list[tuple[Problem, Reference]], float]:
    """Problems with their answers, and the sum of PyTorch's squared relative errors."""
    found: list[tuple[Problem, Reference]] = []
    total = 0.0
    index = 0
    while len(found) < PROBLEMS:
        problem = random_problem(sweep_seed(), index, LIMITS)
        index += 1
        if problem.dtype != dtype:
            continue
        reference = problem.reference()
        out = torch_attention(problem)
        readable = np.isfinite(out).all(axis=3)  # PyTorch gives NaN for some empty rows
        reference.magnitude[~readable] = 0
        total += accuracy.squared_errors(out, reference)
        found.append((problem, reference))
    return found, total


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_error_is_at_most_pytorchs(target: Target, dtype: str) -> None:
    if target.kind != "cpu":
        pytest.skip("the comparison is between CPU results; Metal keeps the bounds of the sweep")
    if target.isa == "baseline" and dtype == "f32":
        pytest.skip("each product is rounded too without FMA, which PyTorch's kernels use")
    problems, theirs = problems_with_pytorchs_error(dtype)
    ours = 0.0
    for problem, reference in problems:
        out = metal_sdpa.sdpa(*problem.arrays(), **problem.arguments(), device=target.device())
        ours += accuracy.squared_errors(out, reference)
    ratio = float(np.sqrt(ours / theirs))
    print(f"{target} {dtype}: RMS error {ratio:.3f} times PyTorch's")
    assert ratio <= 1.1
