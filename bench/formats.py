"""Times, rates and shares as text."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


def format_seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def format_rate(cell: Record) -> str:
    """GB/s of K and V where loads are the limit, else GFLOP/s."""
    ours = cell["ours"]
    if "reason" in ours:
        return "-"
    if cell["shape"]["L"] == 1 and cell["shape"]["S"] > 1:
        return f"{ours['gbytes']:.1f} GB/s"
    return f"{ours['gflops']:.0f} GF/s"


def format_share(cell: Record) -> str:
    share, target = cell["share_of_limit"], cell["target_share"]
    if share is None or cell["family"] == "tiny":
        return "-"
    return f"{share:.0%}" + (f" of {target:.0%}" if target else "")
