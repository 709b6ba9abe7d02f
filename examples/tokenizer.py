"""A byte-level byte-pair encoding: text to token ids and back.

Ids 0 to 255 are the bytes, 256 marks the start of a file, and id 257 + i is the i-th merge, a pair
of earlier ids. Every text can be encoded, and decoding returns exactly the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np

FILE_START = 256
FIRST_MERGE = 257

# Text is cut into these pieces, and no token crosses a cut: a word with its leading space and
# underscores, one digit, a run of punctuation, a run of line ends with the indentation after it.
PIECES = re.compile(
    r" ?_*[A-Za-z]+_*| ?[0-9]| ?[^\sA-Za-z0-9_]+| ?_+|\n+ *| +(?= )|\s",
)

Pair = tuple[int, int]


class Tokenizer:
    """Encodes and decodes with a table of merges [n_merges, 2]."""

    def __init__(self, merges: np.ndarray) -> None:
        self.merges = merges
        self._rank: dict[Pair, int] = {(int(a), int(b)): i for i, (a, b) in enumerate(merges)}
        self._bytes = [bytes([i]) for i in range(256)] + [b""]
        for a, b in merges:
            self._bytes.append(self._bytes[a] + self._bytes[b])
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        return [token for piece in PIECES.findall(text) for token in self._encode_piece(piece)]

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; a character may be spread over several tokens."""
        return self._bytes[token]

    def decode(self, tokens: list[int]) -> str:
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    def _encode_piece(self, piece: str) -> list[int]:
        if piece not in self._cache:
            self._cache[piece] = self._merge(list(piece.encode("utf-8")))
        return self._cache[piece]

    def _merge(self, ids: list[int]) -> list[int]:
        """Applies the earliest merge that fits, again and again: the order of training."""
        never = len(self._rank)
        while len(ids) > 1:
            best = min(pairwise(ids), key=lambda pair: self._rank.get(pair, never))
            if best not in self._rank:
                break
            ids = replace_pair(ids, best, FIRST_MERGE + self._rank[best])
        return ids


def replace_pair(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """`ids` with every occurrence of `pair`, from the left, replaced by `new_id`."""
    out: list[int] = []
    for token in ids:
        if out and out[-1] == pair[0] and token == pair[1]:
            out[-1] = new_id
        else:
            out.append(token)
    return out


def train_merges(texts: list[str], vocab_size: int) -> np.ndarray:
    """The most frequent pair becomes a token, until there are `vocab_size`; u16 [n_merges, 2]."""
    counts = Counter(piece for text in texts for piece in PIECES.findall(text))
    pieces = [(list(piece.encode("utf-8")), count) for piece, count in counts.items()]
    pair_counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # pieces that may hold the pair
    for index, (ids, count) in enumerate(pieces):
        for pair in pairwise(ids):
            pair_counts[pair] += count
            where[pair].add(index)

    merges: list[Pair] = []
    while FIRST_MERGE + len(merges) < vocab_size:
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        new_id = FIRST_MERGE + len(merges)
        merges.append(best)
        for index in where.pop(best):
            ids, count = pieces[index]
            merged = replace_pair(ids, best, new_id)
            for pair in pairwise(ids):
                pair_counts[pair] -= count
            for pair in pairwise(merged):
                pair_counts[pair] += count
                where[pair].add(index)
            pieces[index] = (merged, count)
        del pair_counts[best]
    return np.array(merges, dtype=np.uint16)
