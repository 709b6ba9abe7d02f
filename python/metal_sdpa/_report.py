"""What a bug report should say of the machine; no probe that fails hides the others."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path

from ._core import Device, Error, __version__, get_num_threads
from ._paths import get_library_dir

_FRAMEWORKS = ("numpy", "ml_dtypes", "torch", "jax", "mlx")


def _device(kind: str) -> str:
    try:
        device = Device(kind)
    except Error as error:
        return str(error)
    origin = device.library_origin
    return f"{device.name}, head_dim up to {device.limits.max_head_dim}" + (
        f", kernels from {origin}" if origin else ""
    )


def _plan_of_cpu() -> str:
    """The kernel of a small problem names the instruction set in use."""
    import numpy as np

    from ._core import plan

    q = np.zeros((1, 1, 1, 64), np.float32)
    return plan(q, q, q, device="cpu").splitlines()[0]


def _library() -> str:
    found = sorted(Path(get_library_dir()).glob("libmetal_sdpa.*"))
    return ", ".join(map(str, found)) or f"none in {get_library_dir()}"


def _version_of(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _guarded(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"


def environment_report() -> str:
    """The report, a line a fact."""
    probes: dict[str, Callable[[], str]] = {
        "metal_sdpa": lambda: __version__,
        "library": _library,
        "cpu": lambda: _device("cpu"),
        "metal": lambda: _device("metal"),
        "threads": lambda: str(get_num_threads()),
        "tiny plan": _plan_of_cpu,
        "python": lambda: f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform,
    }
    for name in _FRAMEWORKS:
        probes[name] = lambda name=name: _version_of(name)  # type: ignore[misc]
    return "\n".join(f"{name + ':':12} {_guarded(probe)}" for name, probe in probes.items())
