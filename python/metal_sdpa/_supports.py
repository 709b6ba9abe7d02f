"""supports(): yes, or the reason why not."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._core import Device, InvalidType, parameters, unsupported_reason

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


# What arguments of the calls ask for.
_CALLS = ("sdpa", "sdpa_varlen", "sdpa_paged")
_FLAGS = tuple(dict.fromkeys(row[3] for call in _CALLS for row in parameters(call) if row[3]))


def supports(
    device: Device | str = "auto",
    *,
    dtype: DTypeLike = "f32",
    head_dim: int = 64,
    value_dim: int | None = None,
    n_heads: int = 1,
    n_kv_heads: int = 1,
    **flags: bool,
) -> Support:
    """Whether `sdpa` runs such a problem on the device.

    `head_dim` is D, `value_dim` Dv (D unless given). The flags, all False unless given, name
    arguments of `sdpa` that the call would give (`causal`, `mask`, `window`, ...; `key_offset` goes
    for `key_stride` too, `out_f32` is an f32 `out` of other q; `varlen` is `sdpa_varlen` or
    `cu_seqlens_q`, `paged` is `sdpa_paged`). The same table and checks decide in
    `sdpa` itself.

    >>> bool(supports("cpu", dtype="bf16", head_dim=128, causal=True))
    True
    >>> supports("cpu", head_dim=2048).reason
    'supports: head_dim: 2048, takes 1 to 1024'

    Errors: InvalidType where a number is no int, or a flag no bool. A dtype or device that does not
    exist is an answer, not an error.
    """
    for name in flags:
        if name not in _FLAGS:
            raise TypeError(f"supports: got an unexpected argument {name!r}, takes {_FLAGS}")
    _require_bools(flags)
    features = [name for name, wanted in flags.items() if wanted]
    dv = head_dim if value_dim is None else value_dim
    return Support(unsupported_reason(device, dtype, n_heads, n_kv_heads, head_dim, dv, features))


def _signature_with_flags() -> inspect.Signature:
    own = inspect.signature(supports)
    flag = inspect.Parameter.KEYWORD_ONLY
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = [inspect.Parameter(n, flag, default=False, annotation="bool") for n in _FLAGS]
    return own.replace(parameters=named + flags)


supports.__signature__ = _signature_with_flags()  # type: ignore[attr-defined]
