"""Architectures of transformers with "metal_attention": logits against attention in float64, and
the greedy tokens of their own eager attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import EncoderDecoderCache

import float64_attention
import metal_sdpa
import zoo
from metal_sdpa.integrations import transformers as metal
from metal_sdpa.integrations.transformers import attention

pytestmark = [
    pytest.mark.usefixtures("registered"),
    pytest.mark.filterwarnings("default"),  # what transformers and torch warn of among themselves
]

NEW_TOKENS = 5
PROMPT = 13  # longer than the window
# Largest difference of logits, in roundings of the dtype at the largest logit.
ROUNDINGS = {torch.float32: 64, torch.bfloat16: 8, torch.float16: 8}

IN_HALF = {
    "llama": torch.float16,
    "qwen3": torch.bfloat16,
    "mistral": torch.bfloat16,
    "gemma2": torch.bfloat16,
    "gemma3": torch.float16,
    "cohere2": torch.bfloat16,
    "phi3": torch.bfloat16,
    "olmo2": torch.bfloat16,
    "exaone4": torch.bfloat16,
    "gpt2": torch.bfloat16,
}


@pytest.fixture
def calls(keywords_of: Callable[[Any, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The keywords of every call of metal_sdpa.sdpa."""
    return keywords_of(attention, "sdpa")


def tokens(rows: int = 2, length: int = PROMPT) -> torch.Tensor:
    return torch.randint(3, zoo.VOCABULARY, (rows, length), generator=torch.manual_seed(1))


def left_padding() -> torch.Tensor:
    mask = torch.ones((2, PROMPT), dtype=torch.long)
    mask[0, :4] = 0
    return mask


def generate(model: Any, implementation: str, ids: torch.Tensor, **keywords: Any) -> Any:
    model.set_attn_implementation(implementation)
    return model.generate(
        ids,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **keywords,
    )


def assert_close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.shape == wanted.shape
    assert wanted.isfinite().all()
    error = (got.double() - wanted.double()).abs().max()
    assert error <= ROUNDINGS[dtype] * torch.finfo(dtype).eps * wanted.double().abs().max()


def assert_same(got: Any, wanted: Any, own: Any, dtype: torch.dtype = torch.float32) -> None:
    assert len(got.logits) == NEW_TOKENS
    for ours, reference in zip(got.logits, wanted.logits, strict=True):
        assert_close(ours, reference, dtype)
    assert got.sequences.tolist() == own.sequences.tolist()


@pytest.mark.parametrize("name", zoo.DECODERS)
def test_decoder(name: str, calls: list[dict[str, Any]]) -> None:
    """Dynamic and static caches and our own, each with and without left padding."""
    architecture = zoo.DECODERS[name]
    model, ids = architecture.build(), tokens()
    for mask in (None, left_padding()):
        padding = {} if mask is None else {"attention_mask": mask}
        own = generate(model, "eager", ids, **padding)
        wanted = generate(model, "float64", ids, **padding)
        assert not calls
        for cache in ({}, {"cache_implementation": "static"}, {"cache": metal.Cache(model.config)}):
            if "cache_implementation" in cache and not architecture.static:
                continue
            got = generate(model, "metal_attention", ids, **padding, **cache)
            assert_same(got, wanted, own)
            assert len(calls) >= NEW_TOKENS
            # Causality, windows and padding are said by arguments; chunks are not.
            assert name == "llama4" or all(call["mask"] is None for call in calls)
            calls.clear()


@pytest.mark.parametrize("name", IN_HALF)
def test_decoder_in_half_precision(name: str) -> None:
    dtype = IN_HALF[name]
    model, ids, mask = zoo.DECODERS[name].build(dtype), tokens(), left_padding()
    wanted = generate(model, "float64", ids, attention_mask=mask)
    for cache in ({}, {"cache_implementation": "static"}, {"cache": metal.Cache(model.config)}):
        got = generate(model, "metal_attention", ids, attention_mask=mask, **cache)
        assert_same(got, wanted, wanted, dtype)


@pytest.mark.parametrize("name", zoo.DECODERS)
def test_comparison_can_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are wrong by a thousandth are seen in the logits."""
    model, ids = zoo.DECODERS[name].build(), tokens()
    model.set_attn_implementation("float64")
    with torch.no_grad():
        right = model(ids).logits
        monkeypatch.setattr(float64_attention, "scale_factor", 1.001)
        wrong = model(ids).logits
    with pytest.raises(AssertionError):
        assert_close(wrong, right, torch.float32)


@pytest.mark.parametrize("name", zoo.ENCODER_DECODERS)
def test_encoder_decoder(name: str, calls: list[dict[str, Any]]) -> None:
    model, ids = zoo.ENCODER_DECODERS[name].build(), tokens()
    right_padding = left_padding().flip(1)
    for mask in (None, left_padding(), right_padding):
        padding = {} if mask is None else {"attention_mask": mask}
        own = generate(model, "eager", ids, **padding)
        wanted = generate(model, "float64", ids, **padding)
        both = EncoderDecoderCache(metal.Cache(model.config), metal.Cache(model.config))
        for cache in ({}, {"cache_implementation": "static"}, {"cache": both}):
            calls.clear()
            assert_same(generate(model, "metal_attention", ids, **padding, **cache), wanted, own)
            # Encoder, self-attention and cross-attention of every layer and step.
            assert len(calls) == 2 + 4 * NEW_TOKENS


@pytest.mark.parametrize("name", zoo.ENCODERS)
def test_encoder(name: str, calls: list[dict[str, Any]]) -> None:
    model, ids = zoo.ENCODERS[name].build(), tokens()
    holes = torch.ones_like(ids)
    holes[0, 3] = holes[1, 7:9] = 0
    for mask in (None, left_padding(), left_padding().flip(1), holes):
        states = []
        for implementation in ("float64", "metal_attention"):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                states.append(model(ids, attention_mask=mask).last_hidden_state)
        assert len(calls) == 2
        assert all((call["mask"] is None) == (mask is not holes) for call in calls)
        calls.clear()
        used = torch.ones_like(ids).bool() if mask is None else mask.bool()
        assert_close(states[1][used], states[0][used], torch.float32)


@pytest.mark.parametrize("name", zoo.TOWERS)
def test_vision_tower(name: str, calls: list[dict[str, Any]]) -> None:
    model = zoo.TOWERS[name].build()
    pictures = torch.randn((2, 3, 24, 24), generator=torch.manual_seed(2))
    states = []
    for implementation in ("float64", "metal_attention"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            states.append(model(pictures).last_hidden_state)
    assert len(calls) == 2
    assert_close(states[1], states[0], torch.float32)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_packed_sequences(name: str) -> None:
    """Position ids that begin anew begin a sequence."""
    model, ids = zoo.DECODERS[name].build(), tokens(1, 17)
    positions = torch.cat((torch.arange(9), torch.arange(8)))[None]
    model.set_attn_implementation("metal_attention")
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits[0]
        alone = [model(part).logits[0] for part in (ids[:, :9], ids[:, 9:])]
    assert_close(packed, torch.cat(alone), torch.float32)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "t5"])
def test_masks_of_the_caller(name: str) -> None:
    """Four dimensions, boolean or to add."""
    model = (zoo.DECODERS | zoo.ENCODER_DECODERS)[name].build()
    ids = tokens()
    keep = torch.rand((2, 1, PROMPT, PROMPT), generator=torch.manual_seed(3)) < 0.6
    keep |= torch.eye(PROMPT, dtype=torch.bool)
    added = torch.where(keep, 0.0, torch.finfo(torch.float32).min)
    inputs: dict[str, Any] = {"decoder_input_ids": ids} if name == "t5" else {}
    logits = []
    for implementation, mask in (
        ("float64", keep),
        ("metal_attention", keep),
        ("metal_attention", added),
        ("metal_attention", added.double()),
    ):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(model(ids, attention_mask=mask, **inputs).logits)
    for got in logits[1:]:
        assert_close(got, logits[0], torch.float32)


@pytest.mark.parametrize("cache", [None, "static"])
def test_prompt_in_two_parts(cache: str | None) -> None:
    """A second block of queries behind a cache, with a window and padding."""
    model, ids = zoo.DECODERS["gemma3"].build(), tokens()
    mask = left_padding()
    model.set_attn_implementation("float64")
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits[:, 8:]
    model.set_attn_implementation("metal_attention")
    if cache is None:
        past: Any = metal.Cache(model.config)
    else:
        from transformers import StaticCache

        past = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        model(ids[:, :8], attention_mask=mask[:, :8], cache=past)
        got = model(ids[:, 8:], attention_mask=mask, cache=past).logits
    assert_close(got, wanted, torch.float32)


def test_autocast_casts_as_sdpa_does() -> None:
    model, ids = zoo.DECODERS["qwen3"].build(), tokens()
    logits = []
    for implementation in ("sdpa", "metal_attention"):
        model.set_attn_implementation(implementation)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits.append(model(ids).logits)
    assert_close(logits[1], logits[0], torch.bfloat16)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_compiled_without_a_graph_break(name: str) -> None:
    model, ids = zoo.DECODERS[name].build(), tokens()
    model.set_attn_implementation("metal_attention")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for mask in (None, left_padding()):
        with torch.no_grad():
            wanted = model(ids, attention_mask=mask, use_cache=False).logits
            got = compiled(ids, attention_mask=mask, use_cache=False).logits
        assert_close(got, wanted, torch.float32)


def test_refusals() -> None:
    model, ids = zoo.DECODERS["llama"].build(), tokens()
    model.set_attn_implementation("metal_attention")
    with pytest.raises(metal_sdpa.Unsupported, match=r"metal_attention: query: requires grad"):
        model(ids)
    with torch.no_grad(), pytest.raises(metal_sdpa.Unsupported, match="output_attentions"):
        model(ids, output_attentions=True)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with torch.no_grad(), pytest.raises(metal_sdpa.Unsupported, match=r"dropout: 0\.5, takes 0"):
        model.train()(ids)
    with torch.inference_mode():
        assert model.eval()(ids).logits.isfinite().all()


def test_refusals_of_sparse_attention_and_sinks_a_token() -> None:
    q = torch.ones((1, 2, 3, 8))
    module = torch.nn.Module()
    for name in ("indices", "block_indices"):
        with pytest.raises(metal_sdpa.Unsupported, match=f"metal_attention: {name}"):
            metal.attention_forward(module, q, q, q, None, **{name: torch.zeros(1)})
    with pytest.raises(metal_sdpa.Unsupported, match=r"s_aux: shape \(1, 2, 3, 1\)"):
        metal.attention_forward(module, q, q, q, None, sinks=torch.zeros((1, 2, 3, 1)))
    bias = torch.zeros((1, 2, 3, 3), requires_grad=True)
    with pytest.raises(metal_sdpa.Unsupported, match="position_bias: requires gradients"):
        metal.attention_forward(module, q, q, q, None, position_bias=bias)


def test_result_is_contiguous_and_not_copied() -> None:
    module = torch.nn.Module()
    rows = torch.randn((2, 5, 4, 8))
    for q in (
        rows.transpose(1, 2),
        rows.transpose(1, 2).contiguous(),
        rows.transpose(1, 2)[:, :, :1],
    ):
        out, weights = metal.attention_forward(module, q, q, q[..., :3], None, is_causal=False)
        assert weights is None
        assert out.shape == (2, q.shape[2], 4, 3)
        assert out.is_contiguous()
        wanted, _ = float64_attention.attention(module, q, q, q[..., :3], None, is_causal=False)
        assert_close(out, wanted, torch.float32)


def test_batches_broadcast_and_last_axes_are_made_contiguous() -> None:
    module = torch.nn.Module()
    q = torch.randn((1, 4, 3, 8))
    k = torch.randn((3, 2, 8, 7)).transpose(2, 3)
    mask = torch.rand((3, 1, 3, 7)) < 0.8
    got, _ = metal.attention_forward(module, q, k, k, mask)
    wanted, _ = float64_attention.attention(module, q, k, k, mask)
    assert_close(got, wanted, torch.float32)


def test_registering_twice_and_taking_it_back() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations import hub_kernels

    metal.register()
    metal.register()
    assert hub_kernels.load_and_register_attn_kernel("metal_flash") is not None
    metal.unregister()
    metal.unregister()
    for name in ("metal_attention", "metal_flash"):
        assert name not in AttentionInterface().valid_keys()
        assert name not in AttentionMaskInterface().valid_keys()
    assert hub_kernels.load_and_register_attn_kernel("metal_flash") is None


def test_registering_again_over_somebody_elses_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import hub_kernels

    ours = hub_kernels.load_and_register_attn_kernel

    def theirs(*arguments: Any, **keywords: Any) -> Any:
        return ours(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(hub_kernels, "load_and_register_attn_kernel", theirs)
        metal.register()
        assert hub_kernels.load_and_register_attn_kernel("metal_flash") is not None
        assert hub_kernels.load_and_register_attn_kernel("of_nobody") is None
        metal.unregister()
        assert hub_kernels.load_and_register_attn_kernel is theirs
        assert theirs("metal_flash") is None
