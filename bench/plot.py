"""The plot: for each dtype, every peer's time over ours, and our share of the machine's limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .roofline import WINS_BELOW
from .shapes import DTYPES

Record = dict[str, Any]

# Okabe and Ito's palette, which colour-blind readers can tell apart, and a marker for print.
STYLES = {
    "PyTorch": ("#D55E00", "o"),
    "ONNX Runtime": ("#0072B2", "s"),
    "OpenVINO": ("#CC79A7", "D"),
    "ggml": ("#009E73", "^"),
    "MLX": ("#999999", "v"),
}
OURS = "#333333"
GOOD, SHORT = "#5A9E6F", "#E0A030"
MAX_RATIO = 32.0  # slower peers are drawn at the edge
MIN_RATIO = 0.5
ROW_INCHES = 0.21


def row_label(cell: Record) -> str:
    return cell["name"].replace(f" {cell['dtype']}", "")


def rows_of(cells: list[Record]) -> list[tuple[str, str]]:
    """(family, label) of every row, each once, in the order of the table."""
    return list(dict.fromkeys((cell["family"], row_label(cell)) for cell in cells))


def draw_ratios(axes: Axes, cells: dict[int, Record]) -> None:
    axes.axvspan(MIN_RATIO, 1.0, color="#D55E00", alpha=0.10, lw=0)
    axes.axvline(1.0, color=OURS, lw=1.4)
    for y, cell in cells.items():
        for name, record in cell["peers"].items():
            if "ratio" not in record:
                continue
            colour, marker = STYLES.get(name, (OURS, "x"))
            x = min(max(record["ratio"], MIN_RATIO * 1.05), MAX_RATIO * 0.93)
            axes.plot(x, y, marker, color=colour, ms=5, mew=0, alpha=0.9)
        if cell["ratio"] is not None and cell["ratio"] < WINS_BELOW:
            axes.axhspan(y - 0.5, y + 0.5, color="#D55E00", alpha=0.25, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xlim(MIN_RATIO, MAX_RATIO)
    ticks = [0.5, 1, 2, 4, 8, 16, 32]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)


def draw_shares(axes: Axes, cells: dict[int, Record]) -> None:
    for y, cell in cells.items():
        share, target = cell["share_of_limit"], cell["target_share"]
        if share is None or cell["family"] == "tiny":
            continue
        met = target is None or share >= target
        axes.barh(y, min(share, 1.05), height=0.68, color=GOOD if met else SHORT, lw=0)
        if target is not None:
            axes.plot([target, target], [y - 0.45, y + 0.45], color=OURS, lw=1.6)
        axes.text(0.03, y, f"{share:.0%}", va="center", fontsize=6.5, color="white" if share > 0.2
                  else OURS, transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_xlim(0, 1.05)
    axes.set_xticks([0, 0.5, 1.0], ["0", "50", "100 %"])


def draw_families(axes: Axes, rows: list[tuple[str, str]]) -> None:
    """A line between families."""
    for y in range(1, len(rows)):
        if rows[y][0] != rows[y - 1][0]:
            axes.axhline(y - 0.5, color="#888888", lw=0.8)


def draw_curves(axes: Axes, curves: list[Record]) -> None:
    for curve, colour in zip(curves, ("#0072B2", "#D55E00", "#009E73"), strict=False):
        lengths = [int(L) for L in curve["seconds"]]
        times = [seconds * 1e3 for seconds in curve["seconds"].values()]
        label = f"{curve['dtype']} (steepest step {curve['worst_step']:.2f})"
        axes.plot(lengths, times, ".-", color=colour, lw=1.2, ms=4, label=label)
    axes.set_title("our time for L queries on a cache of 4096 keys, 32/8 heads, D 128", fontsize=9)
    axes.set_xlabel("L")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.legend(fontsize=8, frameon=False)


def heading(document: Record) -> str:
    peaks, machine = document["peaks"], document["machine"]
    dot = f", bf16 dot {peaks['bf16_dot'] / 1e9:.0f}" if peaks["bf16_dot"] else ""
    return (
        f"metal-sdpa {document['versions'].get('metal-sdpa', '')} on {machine['processor']}, "
        f"{document['settings']['threads']} threads\n"
        f"limits in this run: FMA {peaks['fma_f32'] / 1e9:.0f} GFLOP/s{dot} GFLOP/s, "
        f"read {peaks['read'] / 1e9:.1f} GB/s; {document['date'][:10]}"
    )


def write_plot(document: Record, path: Path) -> None:
    cells, curves = document["cells"], document["curves"]
    dtypes = [dtype for dtype in DTYPES if any(cell["dtype"] == dtype for cell in cells)]
    if not cells:
        return
    rows = rows_of(cells)
    height = ROW_INCHES * len(rows)
    curve_height = 2.6 if curves else 0.01
    figure = plt.figure(figsize=(4 + 5 * len(dtypes), height + curve_height + 2.6),
                        layout="constrained")  # fmt: skip
    figure.suptitle(heading(document), fontsize=11)
    grid = figure.add_gridspec(
        2, 2 * len(dtypes), height_ratios=[height, curve_height], width_ratios=[3, 1] * len(dtypes)
    )
    first: Axes | None = None
    for column, dtype in enumerate(dtypes):
        by_row = {
            rows.index((cell["family"], row_label(cell))): cell
            for cell in cells
            if cell["dtype"] == dtype
        }
        for part, draw in enumerate((draw_ratios, draw_shares)):
            axes = figure.add_subplot(grid[0, 2 * column + part], sharey=first)
            first = first or axes
            draw(axes, by_row)
            draw_families(axes, rows)
            axes.tick_params(axis="y", length=0, labelleft=axes is first, labelsize=8)
            axes.tick_params(axis="x", labelsize=7)
            title = f"{dtype}: time over ours" if part == 0 else "of the limit"
            axes.set_title(title, fontsize=9, fontweight="bold" if part == 0 else "normal")
    first.set_yticks(range(len(rows)), [f"{family}  {label}" for family, label in rows])
    first.set_ylim(len(rows) - 0.5, -0.5)
    if curves:
        draw_curves(figure.add_subplot(grid[1, :]), curves)
    add_legend(figure, document)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def add_legend(figure: plt.Figure, document: Record) -> None:
    present = {name for cell in document["cells"] for name in cell["peers"]}
    handles = [
        Line2D([], [], color=colour, marker=marker, lw=0, label=name)
        for name, (colour, marker) in STYLES.items()
        if name in present
    ]
    handles.append(Line2D([], [], color=OURS, lw=1.4, label="ours = 1; right of it we are faster"))
    handles.append(Line2D([], [], color=GOOD, lw=6, label="share of the limit"))
    handles.append(Line2D([], [], color=SHORT, lw=6, label="under its target (black mark)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8,
                  frameon=False)  # fmt: skip
