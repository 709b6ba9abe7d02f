"""How far a result may be from the float64 oracle, written once.

u is the unit roundoff: f32 2^-24, f16 2^-11, bf16 2^-8. For a query row with output o, let
m = || sum_j p_j |v_j| || and z = |scale| max_j ||q|| ||k_j|| over the keys j that it sees, plus the
largest |bias| (mask and ALiBi) of the keys that have weight:

  f32         ||o - ref|| <= 2^-24 (16 + 6 z) m
  f16, bf16   the same plus 1.25 u m (2 u m where Dv < 8), plus the smallest subnormal an element
  lse         |lse - ref| <= 2^-24 (16 + 6 z + 2 |ref|)

A row that sees no key is exactly 0, and its lse -inf or the sink.
"""

from __future__ import annotations

import numpy as np

from arrays import as_f64
from oracle import Reference

F32_UNIT = 2.0**-24
UNIT = {"f32": F32_UNIT, "f16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST_SUBNORMAL = {"f16": 2.0**-24, "bf16": 2.0**-133}


def f32_term(reference: Reference) -> np.ndarray:
    """[B, Hq, L], relative to magnitude: what computing in f32 may cost."""
    return F32_UNIT * (16 + 6 * reference.logit_size)


def output_bound(reference: Reference, dtype: str) -> np.ndarray:
    """[B, Hq, L]: the largest allowed norm over Dv of out - reference.out."""
    relative = f32_term(reference)
    if dtype == "f32":
        return relative * reference.magnitude
    value_dim = reference.out.shape[3]
    rounding = (1.25 if value_dim >= 8 else 2.0) * UNIT[dtype]
    absolute = SMALLEST_SUBNORMAL[dtype] * np.sqrt(value_dim)
    return (relative + rounding) * reference.magnitude + absolute


def lse_bound(reference: Reference) -> np.ndarray:
    """[B, Hq, L]: the largest allowed |lse - reference.lse|, for rows that see a key."""
    seen = np.where(np.isneginf(reference.lse), 0.0, reference.lse)
    return F32_UNIT * (16 + 6 * reference.logit_size + 2 * np.abs(seen))


def output_errors(out: np.ndarray, reference: Reference, dtype: str) -> np.ndarray:
    """[B, Hq, L]: error in bounds; more than 1 is wrong. A row with a NaN is infinitely wrong."""
    error = np.linalg.norm(as_f64(out) - reference.out, axis=3)
    bound = np.where(reference.sees, output_bound(reference, dtype), 0.0)
    return _in_bounds(error, bound)


def lse_errors(lse: np.ndarray, reference: Reference) -> np.ndarray:
    """[B, Hq, L]: error in bounds; -inf where the reference has it, and only there."""
    empty = np.isneginf(reference.lse)
    with np.errstate(invalid="ignore"):
        error = np.abs(as_f64(lse) - reference.lse)
    wrong_kind = np.isneginf(lse) != empty
    error = np.where(wrong_kind, np.inf, np.where(empty, 0.0, error))
    return _in_bounds(error, lse_bound(reference))


def squared_errors(out: np.ndarray, reference: Reference) -> float:
    """Sum over rows with a magnitude of the squared error relative to it."""
    rows = reference.magnitude > 0
    error = np.linalg.norm(as_f64(out) - reference.out, axis=3)
    return float(np.sum((error[rows] / reference.magnitude[rows]) ** 2))


def _in_bounds(error: np.ndarray, bound: np.ndarray) -> np.ndarray:
    ratio = np.full(error.shape, np.inf)
    np.divide(error, bound, out=ratio, where=bound > 0)
    ratio[error == 0] = 0
    ratio[np.isnan(error)] = np.inf
    return ratio
