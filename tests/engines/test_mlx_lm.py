"""mlx-lm generates through metal_sdpa.integrations.mlx: its own tokens, exact logits."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map_with_path
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache

from metal_sdpa.integrations import mlx as ours

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
UNIT = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
VOCAB = 211

COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "head_dim": 16,
}
# What the attention of each has: grouped heads, norms of q and k, windows, sinks, added scores.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "qwen3": COMMON
    | {"rope_theta": 1e4, "max_position_embeddings": 512, "tie_word_embeddings": True},
    "gemma3_text": COMMON
    | {"sliding_window": 12, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "gpt_oss": COMMON
    | {
        "sliding_window": 12,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_scaling": {"rope_type": "default"},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "deepseek_v3": {
        name: x for name, x in COMMON.items() if name not in ("head_dim", "num_key_value_heads")
    }
    | {
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "qk_nope_head_dim": 16,
    },
}
# MLX multiplies the matrices of experts in f32 only, on the CPU.
CASES = [(name, dtype) for name in ARCHITECTURES for dtype in DTYPES if name != "gpt_oss"]
CASES.append(("gpt_oss", "f32"))


def made(name: str, dtype: str = "f32") -> nn.Module:
    """A model whose weights are random and whose softmax is spread."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    model = module.Model(module.ModelArgs(model_type=name, **ARCHITECTURES[name]))
    rng = np.random.default_rng(22)

    def weight(path: str, x: mx.array) -> mx.array:
        values = rng.standard_normal(x.shape).astype(np.float32)
        if path.endswith("norm.weight"):
            return mx.array(1 + 0.1 * values)
        if "sinks" in path:
            return mx.array(values)
        # Rows of about unit length: what comes out is as large as what goes in, scores larger.
        larger = 3.0 if "q_proj" in path or "q_b_proj" in path else 1.0
        return mx.array(larger * values / np.sqrt(x.shape[-1]))

    model.update(tree_map_with_path(weight, model.parameters()))
    model.set_dtype(DTYPES[dtype])
    mx.eval(model.parameters())
    return model


def prompt(length: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(1, VOCAB, length))


def tokens(model: nn.Module, length: int, n: int, **options: Any) -> list[int]:
    return [int(t) for t, _ in generate_step(prompt(length), model, max_tokens=n, **options)]


def exact_attention(q: Any, k: Any, v: Any, *, scale: float, mask: Any = None, sinks: Any = None):
    """Attention in float64 of the whole score matrix, rounded once to q's dtype."""
    q64, k64, v64 = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (q, k, v))
    k64, v64 = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k64, v64))
    scores = scale * np.einsum("bhld,bhsd->bhls", q64, k64)
    if isinstance(mask, str):
        assert mask == "causal"
        behind = np.arange(k.shape[2]) - np.arange(q.shape[2])[:, None] > k.shape[2] - q.shape[2]
        scores = np.where(behind, -np.inf, scores)
    elif mask is not None and mask.dtype == mx.bool_:
        scores = np.where(np.array(mask), scores, -np.inf)
    elif mask is not None:
        scores = scores + np.array(mask.astype(mx.float32))
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        sink = np.array(sinks.astype(mx.float32)).astype(np.float64)[None, :, None, None]
        top = np.maximum(top, sink)
    with np.errstate(invalid="ignore"):  # a row of padding that sees nothing
        weights = np.nan_to_num(np.exp(scores - np.where(np.isneginf(top), 0, top)))
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sink - top)
    out = np.einsum("bhls,bhsd->bhld", weights / np.where(total == 0, 1, total), v64)
    return mx.array(out.astype(np.float32)).astype(q.dtype)


@pytest.fixture(autouse=True)
def _counted() -> Iterator[None]:
    ours.reset_stats()
    yield
    assert not ours.is_enabled()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_greedy_tokens_are_mlxs_own(name: str, dtype: str) -> None:
    """From a prompt longer than the window, through steps that leave its first keys behind."""
    model = made(name, dtype)
    for length in (1, 20):
        wanted = tokens(model, length, 16)
        assert ours.stats().taken == 0
        with ours.enabled():
            assert tokens(model, length, 16) == wanted
        assert len(set(wanted)) > 4
        assert ours.stats().taken >= 2 * 16
        assert not ours.stats().fell_back
        ours.reset_stats()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_logits_are_those_of_exact_attention(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(name, dtype)

    def logits() -> np.ndarray:
        cache = make_prompt_cache(model)
        parts = [model(prompt(20)[None, at : at + n], cache=cache) for at, n in ((0, 15), (15, 1))]
        parts += [model(prompt(20)[None, 16:], cache=cache)]
        return np.array(mx.concatenate(parts, axis=1).astype(mx.float32))

    with ours.enabled():
        got = logits()
    assert ours.stats().taken == 3 * 2
    own = logits()
    with monkeypatch.context() as patch:
        patch.setattr(mx.fast, "scaled_dot_product_attention", exact_attention)
        wanted = logits()
    # An attention that rounds to a neighbour moves what two layers make of it by some roundings.
    tolerance = 24 * UNIT[dtype] * np.abs(wanted).max()
    assert np.abs(got - wanted).max() <= tolerance
    assert np.abs(got - wanted).max() <= 2 * np.abs(own - wanted).max() + tolerance / 8


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_a_rotating_cache(name: str) -> None:
    model = made(name)
    wanted = tokens(model, 20, 24, max_kv_size=16)
    with ours.enabled():
        assert tokens(model, 20, 24, max_kv_size=16) == wanted
    assert ours.stats().taken >= 2 * 24


def test_a_left_padded_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of four dimensions; rows of padding see nothing and do not matter."""
    model = made("qwen3")
    paddings = [0, 5, 9]
    rows = [[0] * n + prompt(12 - n, seed=n).tolist() for n in paddings]

    def logits() -> np.ndarray:
        cache = [BatchKVCache(left_padding=paddings) for _ in range(2)]
        first = model(mx.array(rows), cache=cache)
        then = model(mx.argmax(first[:, -1:], axis=-1), cache=cache)
        return np.array(mx.concatenate([first[:, -1:], then], axis=1))

    with ours.enabled():
        got = logits()
    assert ours.stats().taken == 4
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", exact_attention)
    np.testing.assert_allclose(got, logits(), rtol=1e-5, atol=1e-5 * np.abs(got).max())


def test_a_quantised_cache_stays_mlx_lms() -> None:
    """Its attention multiplies quantised keys itself: nothing that could be sent here."""
    module = importlib.import_module("mlx_lm.models.llama")
    arguments = ARCHITECTURES["llama"] | {"head_dim": 32}
    model = module.Model(module.ModelArgs(model_type="llama", **arguments))
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0}
    wanted = tokens(model, 20, 8, **options)
    with ours.enabled():
        assert tokens(model, 20, 8, **options) == wanted
    # The first part of the prompt finds no cache that could be quantised.
    assert ours.stats() == ours.Stats(taken=2)


def test_training_is_refused_while_enabled() -> None:
    model = made("llama")
    x = prompt(8)[None]

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(x), x).mean()

    value_and_grad = nn.value_and_grad(model, loss)
    with ours.enabled(), pytest.raises(Exception, match="forward only"):
        value_and_grad(model)
    _, gradients = value_and_grad(model)
    assert np.abs(np.array(gradients["model"]["layers"][0]["self_attn"]["q_proj"]["weight"])).max()
