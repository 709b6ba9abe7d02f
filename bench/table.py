"""The table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .formats import format_rate, format_seconds, format_share
from .results import is_dear, is_wrong, loses, steepest, under_target
from .roofline import LEAD, WINS_BELOW

Record = dict[str, Any]


def format_ratio(record: Record) -> str:
    return f"{record['ratio']:.2f}" if "ratio" in record else "-"


def colour(ratio: float | None) -> str:
    if ratio is None:
        return "dim"
    if ratio < WINS_BELOW:
        return "bold red"
    return "yellow" if ratio < LEAD else "green"


def cell_row(cell: Record, peers: list[str]) -> list[str]:
    ours = cell["ours"]
    time = "-" if "reason" in ours else format_seconds(ours["seconds"])
    share = format_share(cell)
    if under_target(cell):
        share = f"[yellow]{share}[/]"
    row = [cell["name"], time, format_rate(cell), share]
    for name in peers:
        record = cell["peers"].get(name, {})
        text = f"[{colour(record.get('ratio'))}]{format_ratio(record)}[/]"
        row.append(f"[u]{text}[/u]" if name == cell["best_peer"] else text)
    best = cell["peers"].get(cell["best_peer"], {})
    row.append(f"{best['low']:.2f}-{best['high']:.2f}" if "low" in best else "-")
    marks = [mark for test, mark in ((is_wrong, "WRONG"), (loses, "loses")) if test(cell)]
    row.append(f"[bold red]{' '.join(marks)}[/]" if marks else "")
    if cell["cost"] is not None:
        row[-1] += f"[{'yellow' if is_dear(cell) else 'green'}]{cell['cost']:.2f} of without[/]"
    return row


def print_family(console: Console, family: str, cells: list[Record], peers: list[str]) -> None:
    table = Table(title=family, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("case", no_wrap=True)
    for header in ("ours", "rate", "of the limit", *peers, "spread"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    for cell in cells:
        table.add_row(*cell_row(cell, peers))
    console.print(table)


def print_summary(console: Console, document: Record) -> None:
    by_key = {cell["key"]: cell for cell in document["cells"]}
    headings = {
        "wrong": "[bold red]our result is out of bounds[/]",
        "not_computed": "[bold red]we do not compute[/]",
        "peer_wins": f"[bold red]a peer wins[/] (ratio < {WINS_BELOW})",
        "short_lead": "ahead by less than the target",
        "under_target": "under the target share of the machine's limit",
        "dear_features": "a feature that costs more than its limit",
    }
    for name, heading in headings.items():
        keys = document["summary"][name]
        console.print(f"{heading}: {len(keys) or 'none'}")
        for key in keys:
            console.print(f"    {summary_line(by_key[key], name)}", highlight=False)
    for curve in document["curves"]:
        console.print(
            f"t(L), L = 1..64 on 4k, {curve['dtype']}: steepest step {steepest(curve)}, "
            f"at most {curve['step_limit']} wanted"
        )


def summary_line(cell: Record, name: str) -> str:
    if name == "not_computed":
        return f"{cell['key']}: {cell['ours']['reason']}"
    if name == "wrong":
        return f"{cell['key']}: {cell['ours']['error_share_of_bound']:.2g} times the bound"
    if name == "dear_features":
        return f"{cell['key']}: {cell['cost']:.2f} of without, at most {cell['cost_limit']:.2f}"
    if name == "under_target":
        return f"{cell['key']}: {format_share(cell)}"
    return f"{cell['key']}: {cell['ratio']:.2f} against {cell['rival']}"
