"""Decoding with transformers: its "sdpa" and DynamicCache against "metal_attention" and our Cache.

python -m bench.engines_transformers [--out FILE.json]

A random model of Qwen3-0.6B's shape with 14 layers. Caches are filled with random numbers in place
of a prompt; then every contestant in turn decodes a few tokens, round after round. Times are
medians, in milliseconds a token, of the whole model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

import metal_sdpa
from metal_sdpa.integrations import transformers as metal

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
# (name, attention, whether the cache is ours)
CONTESTANTS = (
    ("sdpa, DynamicCache", "sdpa", False),
    ("metal_attention, DynamicCache", "metal_attention", False),
    ("metal_attention, Cache", "metal_attention", True),
)


@dataclass
class Row:
    dtype: str
    prompt: int
    contestant: str
    ms_per_token: float
    samples: int


def model_of(options: argparse.Namespace, dtype: torch.dtype) -> Any:
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=max(options.heads // 2, 1),
        head_dim=options.head_dim,
        max_position_embeddings=1 << 17,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).to(dtype).eval()


def filled(cache: Any, config: Any, n_rows: int, dtype: torch.dtype) -> Any:
    generator = torch.manual_seed(1)
    shape = (1, config.num_key_value_heads, n_rows, config.head_dim)
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


def decode(model: Any, cache: Any, n_tokens: int) -> list[float]:
    """Seconds of each token."""
    token, seconds = torch.ones((1, 1), dtype=torch.long), []
    for _ in range(n_tokens):
        start = time.perf_counter()
        logits = model(token, cache=cache, use_cache=True).logits
        token = logits[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - start)
    return seconds


@torch.inference_mode()
def measure(options: argparse.Namespace, name: str, prompt: int) -> list[Row]:
    dtype = DTYPES[name]
    model = model_of(options, dtype)
    caches = [
        filled(
            metal.Cache(model.config) if ours else DynamicCache(config=model.config),
            model.config,
            prompt,
            dtype,
        )
        for _, _, ours in CONTESTANTS
    ]
    seconds: list[list[float]] = [[] for _ in CONTESTANTS]
    for round_number in range(options.rounds + 1):
        for (_, attention, _), cache, found in zip(CONTESTANTS, caches, seconds, strict=True):
            model.set_attn_implementation(attention)
            times = decode(model, cache, options.tokens)
            if round_number:  # the first round warms up
                found.extend(times)
    return [
        Row(name, prompt, contestant[0], 1e3 * statistics.median(found), len(found))
        for contestant, found in zip(CONTESTANTS, seconds, strict=True)
    ]


def print_table(rows: list[Row]) -> None:
    print(f"{'dtype':6}{'prompt':>8}  {'ms a token':>10}  {'times':>6}  ")
    stock = 1.0
    for row in rows:
        if row.contestant == CONTESTANTS[0][0]:
            stock = row.ms_per_token
        ratio = stock / row.ms_per_token
        print(
            f"{row.dtype:6}{row.prompt:8}  {row.ms_per_token:10.2f}  {ratio:6.2f}  {row.contestant}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--dtypes", default="bf16,f16,f32")
    parser.add_argument("--prompts", default="2048,16384")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4, help="tokens a round")
    for name, default in (
        ("layers", 14),
        ("heads", 16),
        ("head-dim", 128),
        ("hidden", 1024),
        ("vocabulary", 1024),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    metal_sdpa.set_num_threads(options.threads)
    metal.register(cache=False)
    rows: list[Row] = []
    for name in options.dtypes.split(","):
        for prompt in map(int, options.prompts.split(",")):
            rows += measure(options, name, prompt)
    print_table(rows)
    if options.out is None:
        return
    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "metal_sdpa": metal_sdpa.__version__,
        "processors": os.cpu_count(),
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "rows": [asdict(row) for row in rows],
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
