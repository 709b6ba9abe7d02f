"""Milliseconds a token of mlx-lm, with its own attention and with ours, on a cache of any length.

python -m bench.engines_mlx_lm --prompt 2048 16384 --dtype f32 bf16 f16

Random weights of a Llama of 2 layers with 16/4 heads of 64. The cache is filled without a prompt:
only decoding is measured. Both take turns, token by token; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama
from mlx_lm.models.cache import KVCache

from metal_sdpa.integrations import mlx as ours

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def made(dtype: mx.Dtype, layers: int, heads: int, kv_heads: int, head_dim: int) -> nn.Module:
    mx.random.seed(0)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=512,
        num_hidden_layers=layers,
        intermediate_size=512,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        vocab_size=512,
        head_dim=head_dim,
    )
    model = llama.Model(arguments)
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


def filled(model: nn.Module, length: int, dtype: mx.Dtype) -> list[KVCache]:
    arguments = model.args
    shape = (1, arguments.num_key_value_heads, length, arguments.head_dim)
    caches = [KVCache() for _ in range(arguments.num_hidden_layers)]
    for cache in caches:
        mx.eval(cache.update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in "kv")))
    return caches


def seconds(model: nn.Module, caches: list[KVCache], token: mx.array) -> tuple[float, mx.array]:
    """Of one token, and the next one; the caches stay as long as they were."""
    begin = time.perf_counter()
    following = mx.argmax(model(token, cache=caches)[:, -1:], axis=-1)
    mx.eval(following)
    took = time.perf_counter() - begin
    for cache in caches:
        cache.trim(1)
    return took, following


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, nargs=2, default=[16, 4], metavar=("HQ", "HKV"))
    parser.add_argument("--head-dim", type=int, default=64)
    given = parser.parse_args()
    print(f"{'dtype':5} {'prompt':>7} {'mlx ms':>9} {'ours ms':>9} {'times':>6}")
    for dtype in given.dtype:
        model = made(DTYPES[dtype], given.layers, *given.heads, given.head_dim)
        for length in given.prompt:
            caches = filled(model, length, DTYPES[dtype])
            token = mx.array([[1]])
            taken: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(given.tokens + 2):
                followers = []
                for routed, times in taken.items():
                    if routed:
                        with ours.enabled():
                            took, following = seconds(model, caches, token)
                    else:
                        took, following = seconds(model, caches, token)
                    times.append(took)
                    followers.append(following)
                token = followers[0]
            own, mine = (1e3 * statistics.median(times[2:]) for times in taken.values())
            print(f"{dtype:5} {length:7} {own:9.2f} {mine:9.2f} {own / mine:6.2f}", flush=True)


if __name__ == "__main__":
    main()
