"""The cases that run on the GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from problem import Case


def _lengths_around_tiles(kernel: str, dtype: str) -> list[Case]:
    rows = {"decode": (1, 2), "prefill": (5, 17, 33, 65), "straight": (1, 31, 33)}[kernel]
    keys = (1, 7, 15, 16, 17, 31, 33, 127, 129, 300)
    return [
        Case(L=L, S=S, dtype=dtype, kernel=kernel, span_len=64 if S > 100 else 0, D=64, B=2)
        for L in rows
        for S in keys
    ]


def correctness_cases() -> list[Case]:
    """The case table: every kernel, dtype and head_dim, tails, masks, layouts, spreads."""
    cases = []
    for dtype in ("f32", "f16", "bf16"):
        for kernel in ("decode", "prefill", "straight"):
            base = Case(dtype=dtype, kernel=kernel, L=3 if kernel == "decode" else 21, S=150, B=2)
            cases += _lengths_around_tiles(kernel, dtype)
            for D in (8, 32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 576):
                cases += [replace(base, D=D, S=77), replace(base, D=D, S=200, span_len=64, L=2)]
            for spread in ("peaked", "match", "constant", "mean", "rising"):
                cases += [
                    replace(base, spread=spread, D=128, S=999),
                    replace(base, spread=spread, D=64, S=3000, causal=False, B=1),
                ]
            for layout in ("bshd", "odd"):
                cases += [
                    replace(base, layout=layout, D=D, span_len=s)
                    for D in (64, 80, 128, 256)
                    for s in (0, 64)
                ]
            for Hq, Hkv in ((1, 1), (3, 1), (6, 2), (8, 8), (8, 1)):
                cases += [replace(base, Hq=Hq, Hkv=Hkv, L=L) for L in (1, 9)]
            for q_start in (-5, 0, 3, 149, 400):
                cases += [replace(base, q_start=q_start), replace(base, q_start=q_start, D=256)]
            ragged = replace(base, B=4, S=256, kv_lens=(0, 1, 100, 256))
            cases += [
                ragged,
                replace(ragged, span_len=64),
                replace(ragged, span_len=64, D=256),
                replace(ragged, span_len=64, q_starts=(0, -1, 50, 255), causal=True),
                replace(base, causal=False),
                replace(base, scale=0.0),
                replace(base, scale=-0.7),
                replace(base, nan_query=True),
                replace(base, nan_query=True, D=256, span_len=64),
            ]
            for D in (64, 256):
                cases += [
                    replace(base, poison=what, D=D, L=L, Hq=7, Hkv=1, span_len=s)
                    for what in ("nan", "inf", "score")
                    # A product of floats, made of tf32 parts, has no infinite factors (NaN).
                    if what != "score" or dtype != "f32" or kernel == "straight"
                    for L, s in ((3, 0), (3, 64), (70, 0))
                ]
                cases.append(replace(base, poison="nan", D=D, S=21, q_start=-5, L=21))
            scale = 1.0 if dtype != "f16" else 5e33
            for spread in ("huge", "lowest"):
                cases += [
                    replace(base, spread=spread, scale=scale, S=S, D=D, span_len=64, causal=False)
                    for S in (2, 33, 300)
                    for D in (32, 256)
                ]
            cases += [
                replace(base, spread="million", scale=2.0**10, S=S, span_len=64, causal=False)
                for S in (33, 300)
            ]
        straight = Case(dtype=dtype, kernel="straight", L=21, S=150, B=2)
        cases += [replace(straight, D=D, Dv=Dv) for D, Dv in ((1, 1), (3, 5), (65, 33), (576, 512))]
        cases += [replace(straight, D=D, packed_params=True) for D in (5, 64)]
        cases.append(Case(dtype=dtype, kernel="straight", L=1, S=20000, D=32, spread="constant"))
        cases.append(Case(dtype=dtype, kernel="decode", L=1, S=20000, D=64, spread="constant"))
        cases.append(
            Case(dtype=dtype, kernel="prefill", L=70, S=20000, D=64, Hq=1, Hkv=1, spread="constant")
        )
    return cases + feature_cases() + place_cases()


# One feature each, with a window or starts around tiles and spans of 64 keys.
FEATURES: tuple[dict[str, Any], ...] = (
    {"window": (40, -1)},
    {"window": (15, 16), "causal": False},
    {"window": (63, -1), "sinks": "f32"},
    {"kv_starts": (65,)},
    {"kv_starts": (0, 130), "window": (0, -1)},
    {"query_lens": (2,)},
    {"query_lens": (0, 1), "sinks": "f32"},
    {"key_stride": 3, "key_offset": 1, "q_start": 300},
    {"key_stride": 2, "window": (64, 9), "q_start": 200, "causal": False, "alibi": True},
    {"mask": "bool"},
    {"mask": "bool", "mask_axes": "LS", "mask_family": "blocks", "causal": False},
    {"mask": "bool", "mask_axes": "BS", "window": (90, -1), "alibi": True},
    {"mask": "bool", "mask_keys_last": False, "sinks": "f32", "out_f32": True},
    {"mask": "f32", "mask_axes": "LS"},
    {"mask": "f16", "mask_axes": "HS", "softcap": 5.0},
    {"mask": "bf16", "mask_keys_last": False, "window": (70, -1)},
    {"mask": "f32", "mask_family": "lowest", "causal": False},
    {"mask": "bf16", "mask_family": "lowest", "sinks": "f32"},
    {"softcap": 2.5},
    {"softcap": 30.0, "alibi": True, "out_f32": True},
    {"alibi": True},
    {"sinks": "f32"},
    {"out_f32": True},
)


def feature_cases() -> list[Case]:
    """Every feature on every kernel and dtype, on rows with one simdgroup and on slices of one."""
    cases = []
    for dtype in ("f32", "f16", "bf16"):
        for kernel, L in (("decode", 3), ("prefill", 21), ("straight", 21)):
            for D, span_len in ((64, 64), (80, 0), (256, 64)):
                if kernel == "straight" and D == 256:
                    continue
                base = Case(dtype=dtype, kernel=kernel, L=L, S=150, B=2, D=D, span_len=span_len)
                cases += [replace(base, **feature) for feature in FEATURES]
                cases += [replace(base, layout="odd", **feature) for feature in FEATURES if D == 64]
            long = Case(dtype=dtype, kernel=kernel, L=70, S=900, span_len=128)
            cases += [
                replace(long, window=(200, -1), sinks=dtype),
                replace(long, mask="bool", mask_family="blocks", mask_axes="LS"),
            ]
    return cases


# Where rows lie: lengths that differ, pages of lengths that tiles divide and that they do not.
PLACES: tuple[dict[str, Any], ...] = (
    {"packed": True},
    {"packed": True, "page_len": 16},
    {"packed": True, "page_len": 1, "table": "i64"},
    {"page_len": 7},
    {"page_len": 24, "table": "i64"},
    {"page_len": 64},
    {"packed": True, "page_len": 256},
    {"packed": True, "page_len": 32, "window": (40, -1)},
    {"packed": True, "page_len": 5, "window": (30, -1), "kv_starts": (0, 9, 3, 100)},
    {"packed": True, "mask": "bool", "mask_axes": "HS"},
    {"packed": True, "page_len": 16, "mask": "f16", "mask_axes": "S", "alibi": True},
    {"packed": True, "page_len": 16, "softcap": 5.0, "sinks": "f32", "out_f32": True},
    {"packed": True, "page_len": 16, "poison": "nan", "causal": True},
    {"packed": True, "page_len": 3, "poison": "inf"},
)


def place_cases() -> list[Case]:
    """Packed rows and pages on every kernel and dtype, and as the planner mixes kernels."""
    cases = []
    for dtype in ("f32", "f16", "bf16"):
        for kernel, L in (("auto", 70), ("decode", 3), ("prefill", 70), ("straight", 21)):
            for D, span_len in ((64, 64), (80, 0), (256, 64)):
                if kernel == "straight" and D == 256:
                    continue
                base = Case(
                    dtype=dtype, kernel=kernel, L=L, S=150, B=4, D=D, span_len=span_len,
                    kv_lens=(150, 33, 0, 128), query_lens=(L, 1, 2, min(L, 5)),
                )  # fmt: skip
                cases += [replace(base, **places) for places in PLACES]
                if D == 64:
                    cases += [replace(base, layout="bshd", **places) for places in PLACES[:5]]
    return cases


def checker_cases() -> list[Case]:
    """A few small cases that take every branch, for the memory and race checkers."""
    cases = []
    for dtype in ("f32", "f16"):
        cases += [
            Case(dtype=dtype, kernel="decode", S=75, D=128, L=2, layout="odd", span_len=32),
            Case(dtype=dtype, kernel="decode", S=375, D=64, L=2, span_len=256),
            Case(dtype=dtype, kernel="decode", S=75, D=256, L=2, span_len=32),
            Case(dtype=dtype, kernel="decode", S=75, D=576, L=2, span_len=32),
            Case(dtype=dtype, kernel="prefill", S=75, D=72, L=37, layout="bshd"),
            Case(
                dtype=dtype, kernel="prefill", S=75, D=256, L=19, B=2, kv_lens=(3, 75), span_len=64
            ),
            Case(dtype=dtype, kernel="prefill", S=275, D=64, L=5, span_len=128),
            Case(dtype=dtype, kernel="prefill", S=75, D=64, L=9),
            Case(dtype=dtype, kernel="prefill", S=75, D=512, L=19),
            Case(dtype=dtype, kernel="straight", S=45, D=35, Dv=19, L=33, layout="odd"),
        ]
        for kernel, D in (("decode", 64), ("decode", 256), ("prefill", 72), ("straight", 35)):
            base = Case(dtype=dtype, kernel=kernel, S=75, D=D, L=5, span_len=32)
            cases += [
                replace(base, window=(20, -1), kv_starts=(17,), sinks="f32", alibi=True),
                replace(base, mask="bool", softcap=5.0, out_f32=True),
                replace(base, mask="bf16", mask_axes="LS", window=(40, 3), causal=False),
            ]
            ragged = replace(base, B=3, kv_lens=(75, 3, 0), query_lens=(5, 1, 2), packed=True)
            cases += [
                ragged,
                replace(ragged, page_len=16),
                replace(ragged, page_len=3, table="i64", window=(20, -1), layout="bshd"),
            ]
    return cases
