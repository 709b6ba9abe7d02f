"""The table of cases: every shape and dtype that is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .features import FULL_MASK, PLAIN, Feature

DTYPES = ("f32", "f16", "bf16")
ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}

HEAD_DIMS = (40, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512)

# L of the chunks; t(L) of ours is measured at each of CURVE_LENGTHS.
CHUNK_LENGTHS = (16, 32, 64)
SHORT_LENGTHS = (2, 4, 8, 12, 24, 48)
CURVE_LENGTHS = tuple(range(1, 65))


@dataclass(frozen=True)
class Case:
    """One cell: q [B, Hq, L, D], k and v [B, Hkv, S, D]. With `causal` the last query meets the
    last key, so query i stands at S - L + i."""

    family: str
    dtype: str
    L: int
    S: int
    D: int = 128
    B: int = 1
    Hq: int = 32
    Hkv: int = 8
    causal: bool = True
    arrays: str = "numpy"  # what our side is called with: "numpy" or "torch"
    quick: bool = False  # part of --quick
    target: str = ""  # a row of the targets in roofline.py; empty: only the ratio counts
    feature: Feature = PLAIN

    @property
    def name(self) -> str:
        batch = f"B{self.B} " if self.B > 1 else ""
        lengths = f"L{self.L}" if self.L == self.S else f"L{self.L} S{self.S}"
        mask = "" if self.causal or self.L == 1 else " full"
        arrays = f" {self.arrays}" if self.family == "tiny" else ""
        feature = f" {self.feature.name}" if self.feature.name else ""
        heads = f"{self.Hq}/{self.Hkv}"
        return f"{batch}{lengths} D{self.D} {heads} {self.dtype}{mask}{feature}{arrays}"

    @property
    def key(self) -> str:
        """What --only matches and the JSON file calls the case: `family/name`."""
        return f"{self.family}/{self.name}"

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.Hq // self.Hkv

    @property
    def without(self) -> Case | None:
        """What the cost of the feature is held against; None for a case that has none."""
        if self.feature.needs == PLAIN.needs or self.feature is FULL_MASK:
            return None
        feature = FULL_MASK if self.feature.mask == "blocks" else PLAIN
        causal = self.causal or self.feature.mask == "causal"
        return replace(self, feature=feature, causal=causal)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V of one cache."""
        return 2 * self.B * self.Hkv * self.S * self.D * ELEMENT_BYTES[self.dtype]

    @property
    def rotates(self) -> bool:
        """Whether calls walk over several caches, so that K and V come from memory."""
        return self.L <= 64 and self.kv_bytes >= 1 << 20


def _prefill() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case("prefill", dtype, 2048, 2048, quick=True, target="prefill")
        yield Case("prefill", dtype, 1024, 1024, D=64, Hq=16, Hkv=16, target="prefill")
        yield Case("prefill", dtype, 1024, 1024, D=256, Hq=16, target="prefill")
        yield Case("prefill", dtype, 512, 512, D=64, Hq=16, Hkv=16, quick=True)
        yield Case("prefill", dtype, 1024, 1024, Hkv=1, target="prefill")


def _full() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case("full", dtype, 1024, 1024, D=64, Hq=16, Hkv=16, causal=False, quick=True,
                   target="prefill")  # fmt: skip
        yield Case("full", dtype, 1024, 1024, causal=False, target="prefill")


def _head_dims() -> Iterator[Case]:
    for dtype in DTYPES:
        for D in HEAD_DIMS:
            quick = dtype == "f32" and D in (40, 80, 320)
            yield Case("prefill-dims", dtype, 512, 512, D=D, Hq=8, Hkv=8, quick=quick)
    for dtype in DTYPES:
        for D in HEAD_DIMS:
            quick = dtype == "f16" and D in (72, 192)
            yield Case("decode-dims", dtype, 1, 4096, D=D, quick=quick, target="decode")


def _chunk() -> Iterator[Case]:
    for dtype in DTYPES:
        for L in CHUNK_LENGTHS:
            yield Case("chunk", dtype, L, 4096, quick=L == 64, target="chunk")
        for L in SHORT_LENGTHS:
            yield Case("chunk", dtype, L, 4096, quick=dtype == "f32" and L == 8)
        yield Case("chunk", dtype, 16, 32768)
        yield Case("chunk", dtype, 4, 32768, Hkv=1)
        yield Case("chunk", dtype, 64, 32768, Hkv=1)


def _decode() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case("decode", dtype, 1, 4096, quick=True, target="decode")
        yield Case("decode", dtype, 1, 32768, quick=True, target="decode")
        yield Case("decode", dtype, 1, 131072, target="decode")
        yield Case("decode", dtype, 1, 4096, Hkv=32, target="decode")
        yield Case("decode", dtype, 1, 32768, Hkv=1, target="decode")
        yield Case("decode", dtype, 1, 2048, B=8, quick=dtype == "f32", target="")
        yield Case("decode", dtype, 1, 128, B=64, quick=dtype == "f16", target="")
        yield Case("decode", dtype, 1, 512)
    yield Case("decode", "f16", 1, 32768, Hkv=32, target="decode")


def _tiny() -> Iterator[Case]:
    for arrays in ("numpy", "torch"):
        for dtype in DTYPES:
            yield Case("tiny", dtype, 1, 1, D=64, Hq=1, Hkv=1, arrays=arrays,
                       quick=dtype == "f32", target=f"tiny {arrays}")  # fmt: skip
    for dtype in DTYPES:
        yield Case("tiny", dtype, 16, 16, D=64, Hq=8, Hkv=8)


def _features() -> Iterator[Case]:
    """Limits of section 6 of the contract of the features; None: nothing is promised."""
    window = Feature("window 1024", window=1024, cost_limit=1 / 6)
    for dtype in ("f32", "bf16"):
        yield Case("features", dtype, 16384, 16384, Hq=4, Hkv=1, feature=window)
        yield Case("features", dtype, 1, 32768, feature=Feature("window 1024", window=1024))
        for feature in (
            Feature("softcap", softcap=30.0, cost_limit=1.25),
            Feature("alibi", alibi=True, cost_limit=1.25),
            Feature("bias", bias=True, cost_limit=1.25),
            Feature("window 256", window=256),
        ):
            yield Case("features", dtype, 1024, 1024, feature=feature)
        mask = Feature("mask", mask="causal", cost_limit=1.15)
        yield Case("features", dtype, 1024, 1024, causal=False, feature=mask)
        blocks = Feature("8 blocks", mask="blocks", cost_limit=1 / 4)
        yield Case("features", dtype, 2048, 2048, causal=False, feature=blocks)
        for feature in (Feature("softcap", softcap=30.0), Feature("sinks", sinks=True)):
            yield Case("features", dtype, 1, 4096, feature=feature)
        for page, limit in ((16, 1.05), (1, 1.25), (24, None)):
            pages = Feature(f"pages of {page}", page=page, cost_limit=limit)
            yield Case("features", dtype, 1, 8192, feature=pages)


def curve_case(dtype: str, L: int) -> Case:
    """One point of the curve t(L), which is measured for ours alone."""
    return Case("curve", dtype, L, 4096)


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    families = (_prefill, _full, _chunk, _decode, _features, _tiny, _head_dims)
    return [case for family in families for case in family()]
