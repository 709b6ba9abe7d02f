"""Serves several requests at once on a paged KV cache, and checks itself while it does.

Requests arrive one after the other, their prompts share a beginning, are taken in piece by piece
beside others' decode steps, and leave when their text is done. Every attention row is compared with
the same row attended alone; the texts with those of a server that takes one request at a time.
"""

from __future__ import annotations

import argparse
import sys

import metal_sdpa
from generate import PROMPT, UserError, read_model, write
from paged_cache import PagedCache
from sampling import Sampler
from server import Request, Server, Totals
from tokenizer import FILE_START, Tokenizer

# What each request adds to the common prompt.
ENDINGS = (
    "def read_header(self):",
    "def close(self):",
    "class TableIndex:",
    "def __enter__(self):",
    "def write_row(self, row):",
    "import struct",
    "def seek(self, offset):",
    "class Dialect:",
)
BAR = 28


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=6, help="how many come")
    parser.add_argument("--tokens", type=int, default=40, help="that each of them gets")
    parser.add_argument("--every", type=int, default=3, help="steps between two arrivals")
    parser.add_argument("--budget", type=int, default=64, help="tokens of a step")
    parser.add_argument("--page", type=int, default=16, help="tokens of a page")
    parser.add_argument("--device", choices=("auto", "cpu", "metal"), default="auto")
    parser.add_argument("--dtype", choices=("f32", "f16"), default="f32", help="of the KV cache")
    parser.add_argument(
        "--merge", action="store_true", help="attend the common prompt once for all"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    try:
        return run(arguments)
    except (UserError, metal_sdpa.Error, ValueError) as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    for name in ("requests", "tokens", "every", "budget", "page"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} takes 1 or more, but got {getattr(arguments, name)}")
    model, tokenizer, _ = read_model()
    device = metal_sdpa.Device(arguments.device)
    common = [FILE_START, *tokenizer.encode(PROMPT.read_text(encoding="utf-8").rstrip())]
    longest = len(common) + 16 + arguments.tokens
    if longest > model.config.context:
        raise UserError(
            f"--tokens takes at most {arguments.tokens - longest + model.config.context} here, "
            f"but got {arguments.tokens}"
        )
    print(
        f"device    {device.kind}: {device.name}\n"
        f"requests  {arguments.requests}, one every {arguments.every} steps, a common prompt of "
        f"{len(common)} tokens\n"
        f"KV cache  {arguments.dtype}, pages of {arguments.page} tokens, free ones hold NaN\n"
    )

    def serve(requests: list[Request], *, one_by_one: bool = False, check: bool = False) -> Totals:
        most = max(len(request.prompt) + request.n_new for request in requests)
        n_pages = -(-most // arguments.page) * (1 if one_by_one else 4)  # some have to wait
        cache = PagedCache(model.config, n_pages, arguments.page, arguments.dtype)
        server = Server(
            model,
            device,
            cache,
            Sampler(0, 1).pick,
            stop=FILE_START,
            budget=arguments.budget,
            common=() if one_by_one else common,
            merge=arguments.merge and not one_by_one,
            check=check,
        )
        n_all = sum(request.n_new for request in requests)
        for batch in server.run(requests):
            if check:
                show_progress(requests, batch, n_all, server.totals)
        if cache.n_free != n_pages:
            raise ValueError(f"{n_pages - cache.n_free} pages were not given back")
        return server.totals

    requests = make_requests(arguments, tokenizer, common)
    checked = serve(requests, check=True)
    print()
    print_texts(requests, tokenizer)
    together = serve(make_requests(arguments, tokenizer, common))
    alone = [Request(request.prompt, request.n_new) for request in requests]
    singly = [serve([request], one_by_one=True) for request in alone]
    print_costs(requests, together, singly)
    return verdict(arguments, requests, alone, checked)


def make_requests(
    arguments: argparse.Namespace, tokenizer: Tokenizer, common: list[int]
) -> list[Request]:
    requests = []
    for i in range(arguments.requests):
        ending = tokenizer.encode("\n\n" + ENDINGS[i % len(ENDINGS)])
        requests.append(Request(common + ending, arguments.tokens, i * arguments.every))
    return requests


def show_progress(
    requests: list[Request], batch: list[Request], n_all: int, totals: Totals
) -> None:
    """One line that is written over; where nobody watches, none."""
    if not sys.stdout.isatty():
        return
    n_done = sum(r.n_new if r.is_done else len(r.generated) for r in requests)
    filled = BAR * n_done // n_all
    rows = sum(request.n_running for request in batch)
    write(
        f"\r[{'#' * filled}{'.' * (BAR - filled)}] {n_done}/{n_all} tokens, "
        f"{len(batch)} sequences and {rows} rows in this step, "
        f"{totals.tokens / totals.seconds:,.0f} tokens/s "
    )


def print_texts(requests: list[Request], tokenizer: Tokenizer) -> None:
    for i, request in enumerate(requests):
        ending = ENDINGS[i % len(ENDINGS)]
        text = b"".join(tokenizer.token_bytes(t) for t in request.generated if t != FILE_START)
        first = text.decode("utf-8", errors="replace").strip().splitlines()
        write(f"{i + 1:>3}  {ending}  {' / '.join(line.strip() for line in first[:3])[:70]}\n")


def print_costs(requests: list[Request], together: Totals, singly: list[Totals]) -> None:
    """Both without the checks."""
    n = sum(len(request.generated) for request in requests)
    alone = sum(totals.seconds for totals in singly)
    print(
        f"\ntogether  {n} tokens in {together.steps} steps, {together.seconds:.2f} s: "
        f"{n / together.seconds:,.0f} tokens/s, "
        f"{together.attention_seconds / together.seconds:.0%} of it in attention\n"
        f"one by one {alone:.2f} s: {n / alone:,.0f} tokens/s"
    )


def verdict(
    arguments: argparse.Namespace, requests: list[Request], alone: list[Request], totals: Totals
) -> int:
    """Prints what the checks found; the exit status."""
    rest = totals.rows - totals.equal_rows
    print(
        f"rows      {totals.equal_rows:,} of {totals.rows:,} equal the same row attended alone, "
        f"bit for bit"
    )
    if arguments.merge:
        print(
            f"          {rest:,} merged ones differ by {totals.worst_share:.2f} of what they may, "
            "at most"
        )
    same = sum(a.generated == b.generated for a, b in zip(requests, alone, strict=True))
    print(f"texts     {same} of {len(requests)} are those of a server that takes one at a time")
    failures = []
    if not arguments.merge and totals.equal_rows != totals.rows:
        failures.append("rows differ from the same rows attended alone")
    if totals.worst_share > 1:
        failures.append("a merged row is further from the same row attended alone than it may be")
    if arguments.dtype == "f32" and same != len(requests):
        failures.append("texts differ")
    for failure in failures:
        print(f"\nFAILED: {failure}")
    if not failures:
        print("\nOK: every request got what it would have got alone")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
