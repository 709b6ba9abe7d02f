"""supports(): yes, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._core import Device, InvalidType, unsupported_reason

if TYPE_CHECKING:
    from ._typing import DTypeLike


@dataclass(frozen=True)
class Support:
    """An answer of `supports`: true where the problem runs, else `reason` says why not."""

    reason: str

    def __bool__(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        return self.reason or "supported"


def _require_bools(flags: dict[str, bool]) -> None:
    for name, value in flags.items():
        if isinstance(value, (bool, np.bool_)):
            continue
        got = "None" if value is None else f"type {type(value).__qualname__}"
        raise InvalidType(f"supports: {name}: got {got}, takes a bool")


def supports(
    device: Device | str = "auto",
    *,
    dtype: DTypeLike = "f32",
    head_dim: int = 64,
    value_dim: int | None = None,
    n_heads: int = 1,
    n_kv_heads: int = 1,
    causal: bool = False,
    q_start: bool = False,
    mask: bool = False,
    window: bool = False,
    softcap: bool = False,
    sinks: bool = False,
    kv_lengths: bool = False,
    return_lse: bool = False,
) -> Support:
    """Whether `sdpa` runs such a problem on the device.

    `head_dim` is D, `value_dim` Dv (D unless given). The flags name arguments of `sdpa` that the
    call would give. The same table and checks decide in `sdpa` itself.

    >>> bool(supports("cpu", dtype="bf16", head_dim=128, causal=True))
    True
    >>> supports("cpu", head_dim=2048).reason
    'supports: head_dim: 2048, takes 1 to 1024'

    Errors: InvalidType where a number is no int, or a flag no bool. A dtype or device that does not
    exist is an answer, not an error.
    """
    flags = {
        "causal": causal,
        "q_start": q_start,
        "mask": mask,
        "window": window,
        "softcap": softcap,
        "sinks": sinks,
        "kv_lengths": kv_lengths,
        "return_lse": return_lse,
    }
    _require_bools(flags)
    features = [name for name, wanted in flags.items() if wanted]
    dv = head_dim if value_dim is None else value_dim
    return Support(unsupported_reason(device, dtype, n_heads, n_kv_heads, head_dim, dv, features))
