"""Over the sweep's problems, results are as accurate as PyTorch's on the same inputs."""

from __future__ import annotations

import metal_sdpa
import numpy as np
import pytest

import accuracy
from arrays import DTYPES, as_f64
from oracle import visibility
from problems import Limits, Problem, random_problem
from targets import Target, sweep_seed

pytestmark = pytest.mark.frameworks

LIMITS = Limits(capacity=2100, work=400_000, elements=200_000)
PROBLEMS = 120  # of each dtype


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


def problems_of(dtype: str) -> list[Problem]:
    found: list[Problem] = []
    index = 0
    while len(found) < PROBLEMS:
        problem = random_problem(sweep_seed(), index, LIMITS)
        index += 1
        if problem.dtype == dtype:
            found.append(problem)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_error_is_at_most_pytorchs(target: Target, dtype: str) -> None:
    if target.kind != "cpu":
        pytest.skip("the comparison is between CPU results; Metal keeps the bounds of the sweep")
    ours = theirs = 0.0
    for problem in problems_of(dtype):
        reference = problem.reference()
        out = metal_sdpa.sdpa(*problem.arrays(), **problem.arguments(), device=target.device())
        other = torch_attention(problem)
        finite = np.isfinite(as_f64(other)).all(axis=3)  # PyTorch gives NaN for some empty rows
        reference.magnitude[~finite] = 0
        ours += accuracy.relative_rms(out, reference)[0]
        theirs += accuracy.relative_rms(other, reference)[0]
    ratio = float(np.sqrt(ours / theirs))
    print(f"{target} {dtype}: RMS error {ratio:.3f} times PyTorch's")
    assert ratio <= 1.1
