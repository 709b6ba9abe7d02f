"""docs/gpu-results.md from docs/gpu-results.json, for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hashes import RESULT_FILE


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _decode(speed: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{row['us']:.1f}", f"{row['GB/s']:.0f}", f"{100 * row['of copy']:.0f} %"]
        for name, row in speed["decode"].items()
    ]
    return _table(["problem", "us", "GB/s", "of copy"], rows)


def _prefill(speed: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{row['us']:.0f}", f"{row['TFLOP/s']:.2f}"]
        for name, row in speed["prefill"].items()
    ]
    return _table(["problem", "us", "TFLOP/s"], rows)


def report(results: dict[str, Any]) -> str:
    correctness, speed = results["correctness"], results["speed"]
    lines = [
        "# What the shaders reached on a GPU",
        "",
        "Made by `python tests/gpu/run.py` from `gpu-results.json`; do not edit. The `.metal` files"
        f" ran translated to CUDA on one {results['device']}, {results['date']},"
        f" NVRTC {results['nvrtc']}."
        " These are figures of that GPU, not of any Apple GPU: `metal-kernels.md` says what"
        " carries over.",
        "",
        "## Correctness",
        f"{correctness['cases']} problems against float64, {len(correctness['failures'])} failures."
        " Largest error over its bound:",
        "",
        *_table(
            ["kernel, dtype", "error / bound"],
            [[k, f"{v:.3f}"] for k, v in correctness["largest_error_over_bound"].items()],
        ),
        "compute-sanitizer:",
        "",
        *_table(["tool", "summary"], [[k, v] for k, v in results["checkers"].items()]),
        "## Bytes",
        "DRAM bytes read by decode and merge, over the bytes of K and V (ncu):",
        "",
        *_table(
            ["problem", "read / (K + V)"], [[k, f"{v:.3f}"] for k, v in results["bytes"].items()]
        ),
        "## Speed",
        f"Copy bandwidth of the same run: {speed['copy_bytes_per_s'] / 1e9:.0f} GB/s, bytes read"
        " and written. Decode, GB/s of K and V counted once; L = 1 where no L is given, causal:",
        "",
        *_decode(speed),
        "Causal prefill, L = S, visible pairs counted:",
        "",
        *_prefill(speed),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write_report() -> None:
    RESULT_FILE.with_suffix(".md").write_text(report(json.loads(RESULT_FILE.read_text())))


if __name__ == "__main__":
    write_report()
