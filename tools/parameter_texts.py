"""Texts made from the arguments of sdpa() and its like: parameter_texts.py stub | readme

stub prints the patterns from which stubgen makes python/metal_sdpa/_core.pyi; readme rewrites the
README's tables of arguments. Needs an importable metal_sdpa.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from metal_sdpa._core import parameters

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ROOT / "csrc" / "bindings" / "stub.pat"
README = ROOT / "README.md"
BEGIN = "<!-- made by tools/make_stub.sh -->\n"
END = "<!-- end -->\n"
FIRST_KEYWORDS = {"sdpa": "causal", "sdpa_varlen": "causal", "sdpa_paged": "cu_seqlens_q"}


def stub_signature(call: str, **types: str) -> str:
    """The arguments with their types; `types` replaces type and default of some."""
    entries = []
    for name, type_, value, _, _ in parameters(call):
        if name == FIRST_KEYWORDS[call]:
            entries.append("*")
        entries.append(f"{name}: {types.get(name, type_ + (f' = {value}' if value else ''))}")
    return ", ".join(entries)


def stub_of(call: str) -> str:
    """The overloads of a call, by whether it returns the lse too."""
    results = {
        "Literal[False] = False": "ArrayT",
        "Literal[True]": "tuple[ArrayT, ArrayT]",
        "bool": "ArrayT | tuple[ArrayT, ArrayT]",
    }
    text = f"\n_core.{call}$:\n"
    for index, (return_lse, result) in enumerate(results.items()):
        body = " ..." if index else "\n        \\doc"
        signature = stub_signature(call, return_lse=return_lse)
        text += f"    @overload\n    def {call}({signature}) -> {result}:{body}\n\n"
    return text


def stub_patterns() -> str:
    """stub.pat, and the functions that Python calls without a binding layer."""
    text = PATTERNS.read_text() + "".join(map(stub_of, FIRST_KEYWORDS))
    signature = stub_signature("sdpa", q="Array", out="Array | None = None")
    return f"{text}_core.plan:\n    def plan({signature}) -> str:\n        \\doc\n"


def table_of(rows: list[tuple[str, str, str, str, str]]) -> str:
    """A row an argument, in Markdown."""
    lines = ["| argument | default | |", "|---|---|---|"]
    for name, _, value, _, meaning in rows:
        shown = f"`{value}`" if value else ""
        lines.append(f"| `{name}` | {shown} | {marked(meaning)} |")
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """All arguments of sdpa(), and of the others those that sdpa() does not take so."""
    of_sdpa = parameters("sdpa")
    text = table_of(of_sdpa)
    for call in list(FIRST_KEYWORDS)[1:]:
        own = [row for row in parameters(call) if row not in of_sdpa]
        text += f"\nOther than `sdpa`, `{call}` takes:\n\n{table_of(own)}"
    return text


CODE = (
    r"\[(?:[A-Z]|n_pages)[^\]]*\]",  # shapes
    r"__\w+__",
    r"\w+=0",
    r"layout=\"HND\"",
    r"indices\[[^\]]*\[b\] : [^\]]*\]\]",
    r"cu_seqlens_q\[[^\]]*\]",
    r"block_table\[[^\]]*\]",
    r"c \* tanh\(x / c\)",
    r"key_offset \+ j \* key_stride",
    r"slope \* \|[^|]*\|",
)


def marked(meaning: str) -> str:
    """Shapes, names and formulas as code."""
    return re.sub("|".join(CODE), lambda found: f"`{found[0]}`", meaning).replace("|", r"\|")


def with_table(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + readme_table() + END + rest.split(END)[1]


def main() -> None:
    if sys.argv[1:] == ["stub"]:
        print(stub_patterns())
    elif sys.argv[1:] == ["readme"]:
        README.write_text(with_table(README.read_text()))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
