"""Devices and instruction sets under test.

METAL_SDPA_TEST_DEVICES: "cpu" (unless set), "metal" or "cpu,metal"; "metal" is real Metal on a Mac
and the software device in its test build. METAL_SDPA_TEST_ISAS: instruction sets of the CPU, by
name; all that this machine has unless set. METAL_SDPA_SEED: seed of everything random.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import metal_sdpa
from problems import CPU_LIMITS, METAL_LIMITS, Limits

KNOWN_ISAS = (
    "baseline",
    "avx2",
    "amx_emulated",
    "avx512",
    "avx512_bf16",
    "avx512_amx",
    "neon",
    "neon_bf16",
)

# They multiply pairs of bf16.
PAIR_ISAS = ("amx_emulated", "avx512_bf16", "avx512_amx", "neon_bf16")


@dataclass(frozen=True)
class Target:
    """A device kind, and an instruction set where the kind has several."""

    kind: str
    isa: str | None = None

    def device(self, threads: int | None = None) -> metal_sdpa.Device:
        if self.kind == "cpu":
            return metal_sdpa.Device("cpu", threads=threads, isa=self.isa)
        return metal_sdpa.Device(self.kind)

    def rounds_weights(self, dtype: str) -> bool:
        """Whether weights are rounded to bf16 before they are multiplied, for an output in bf16
        alone: one in f32 is then not what that was rounded from."""
        return dtype == "bf16" and self.isa in PAIR_ISAS

    @property
    def limits(self) -> Limits:
        return CPU_LIMITS if self.kind == "cpu" else METAL_LIMITS

    def __str__(self) -> str:
        return self.kind if self.isa is None else f"{self.kind}-{self.isa}"


def sweep_seed() -> int:
    return int(os.environ.get("METAL_SDPA_SEED", "1"))


def device_kinds() -> list[str]:
    return os.environ.get("METAL_SDPA_TEST_DEVICES", "cpu").replace(",", " ").split()


@functools.cache
def supported_isas() -> tuple[str, ...]:
    """Instruction sets that the CPU device takes here, narrowed by METAL_SDPA_TEST_ISAS."""
    wanted = os.environ.get("METAL_SDPA_TEST_ISAS", "").replace(",", " ").split()
    if wanted:
        return tuple(wanted)
    return tuple(isa for isa in KNOWN_ISAS if _takes(isa))


def _takes(isa: str) -> bool:
    try:
        metal_sdpa.Device("cpu", isa=isa)
    except metal_sdpa.InvalidArgument:
        return False
    return True


@functools.cache
def selected_targets() -> tuple[Target, ...]:
    targets: list[Target] = []
    for kind in device_kinds():
        if kind == "cpu":
            targets += [Target("cpu", isa) for isa in supported_isas()]
        else:
            targets.append(Target(kind))
    return tuple(targets)
