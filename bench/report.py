"""python -m bench.report RUN.json [RUN.json ...]: the results section of docs/performance.md.

Every figure of that section comes from the files; several runs are merged by their medians, and
"a peer wins" means that it wins in each of them. The plot and the merged figures are written beside
the page, in docs/performance/. `--page` names another page with such a section.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from .formats import format_rate, format_seconds
from .results import loses, steepest, summary, under_target
from .shapes import DTYPES
from .stats import median

Record = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- results: begin (written by python -m bench.report) -->"
END = "<!-- results: end -->"


# ----- merging runs -------------------------------------------------------------------------------


def merged(records: list[Record]) -> Record:
    """One record of several of the same kind: numbers by their medians, the rest from the first.
    Samples are left out."""
    first = records[0]
    out: Record = {}
    for key, value in first.items():
        values = [record[key] for record in records if key in record]
        if key == "samples":
            continue
        if isinstance(value, dict):
            out[key] = merged(values)
        elif isinstance(value, float) and all(isinstance(v, (int, float)) for v in values):
            out[key] = float(f"{median(values):.5g}")
        else:
            out[key] = value
    return out


def merged_cell(cells: list[Record]) -> Record:
    """`peer_wins` is true where a peer wins in every run."""
    return merged(cells) | {"peer_wins": all(loses(cell) for cell in cells)}


def merge_runs(documents: list[Record]) -> Record:
    """The first document with its cells and curves merged over all. ValueError if the runs differ
    in their cells."""
    by_key = [{cell["key"]: cell for cell in document["cells"]} for document in documents]
    if any(cells.keys() != by_key[0].keys() for cells in by_key):
        raise ValueError("the runs hold different cells")
    cells = [merged_cell([cells[key] for cells in by_key]) for key in by_key[0]]
    curves = [merged(list(same)) for same in zip(*(d["curves"] for d in documents), strict=True)]
    peaks = merged([document["peaks"] for document in documents])
    return documents[0] | {
        "runs": len(documents),
        "cells": cells,
        "curves": curves,
        "peaks": peaks,
        "summary": summary(cells, curves),
    }


# ----- Markdown -----------------------------------------------------------------------------------


def markdown_cell(cell: Record | None) -> str:
    """`time, rate, share of the limit; ratio against the rival`; bold where a target is missed."""
    if cell is None:
        return ""
    ours = cell["ours"]
    if "reason" in ours:
        return f"not computed: {ours['reason']}"
    text = format_seconds(ours["seconds"])
    if cell["family"] != "tiny":
        share = f"{cell['share_of_limit']:.0%}"
        text += f", {format_rate(cell)}, " + (f"**{share}**" if under_target(cell) else share)
    if cell["ratio"] is None:
        return text
    ratio = f"{cell['ratio']:.2f}x"
    return f"{text}; {f'**{ratio}**' if loses(cell) else ratio} {cell['rival']}"


def family_table(family: str, cells: list[Record]) -> list[str]:
    rows: dict[str, dict[str, Record]] = {}
    for cell in cells:
        label = cell["name"].replace(f" {cell['dtype']}", "")
        rows.setdefault(label, {})[cell["dtype"]] = cell
    lines = [f"| {family} | " + " | ".join(DTYPES) + " |", "|---" * (1 + len(DTYPES)) + "|"]
    for label, by_dtype in rows.items():
        texts = [markdown_cell(by_dtype.get(dtype)) for dtype in DTYPES]
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def header_lines(document: Record) -> list[str]:
    machine, peaks = document["machine"], document["peaks"]
    dot = f", bf16 dot {peaks['bf16_dot'] / 1e9:.0f} GFLOP/s" if peaks["bf16_dot"] else ""
    cache = machine["last_level_cache_bytes"] / (1 << 20)
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    absent = "; ".join(f"{name}: {reason}" for name, reason in document["absent"].items())
    runs = document.get("runs", 1)
    return [
        f"{machine['processor']} ({document['isa']}), {document['settings']['threads']} threads, "
        f"last-level cache {cache:.0f} MB. Measured limits: FMA {peaks['fma_f32'] / 1e9:.0f} "
        f"GFLOP/s{dot}, read {peaks['read'] / 1e9:.1f} GB/s. {document['date'][:10]}, "
        f"{'one run' if runs == 1 else f'{runs} runs'} of {document['settings']['runs']} rounds.",
        "",
        f"Versions: {versions}." + (f" Absent: {absent}." if absent else ""),
        "",
    ]


def results_markdown(document: Record, folder: str) -> str:
    """The section between the markers; the picture is in `folder`, beside the page."""
    lines = header_lines(document)
    lines += [f"![time against peers and share of the limit]({folder}/bench.png)", ""]
    families = dict.fromkeys(cell["family"] for cell in document["cells"])
    for family in families:
        lines += family_table(family, [c for c in document["cells"] if c["family"] == family])
    for curve in document["curves"]:
        lines.append(
            f"t(L) for L = 1..64 on 4096 keys, {curve['dtype']}: steepest step {steepest(curve)}.  "
        )
    wins = [cell["key"] for cell in document["cells"] if cell.get("peer_wins", loses(cell))]
    under = document["summary"]["under_target"]
    lines += ["", f"Cells where a peer wins: {listed(wins)}  ",
              f"Cells under their target share of the limit: {listed(under)}"]  # fmt: skip
    return "\n".join(lines)


def listed(keys: list[str]) -> str:
    return "none." if not keys else f"{len(keys)} ({', '.join(keys)})."


def replace_section(page: str, section: str) -> str:
    """The page with what stands between the markers replaced. ValueError without markers."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no section from {BEGIN} to {END}")
    return f"{head}{begin}\n\n{section}\n\n{end}{tail}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="bench.json of a run")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    document = merge_runs([json.loads(path.read_text()) for path in options.runs])
    beside = options.page.with_suffix("")
    beside.mkdir(exist_ok=True)
    section = results_markdown(document, beside.name)
    page = replace_section(options.page.read_text(), section)
    options.page.write_text(page)
    (beside / "bench.json").write_text(json.dumps(document, indent=1) + "\n")
    plot = options.runs[0].with_name("bench.png")
    if plot.exists():
        shutil.copyfile(plot, beside / "bench.png")
    print(f"{options.page}: {len(document['cells'])} cells, merged from {document['runs']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
