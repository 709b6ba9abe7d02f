"""Continuous batching and generate with "metal_flash"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import zoo
from metal_sdpa.integrations import flash_attn
from metal_sdpa.integrations import transformers as metal

pytestmark = [
    pytest.mark.usefixtures("registered"),
    pytest.mark.filterwarnings("default"),
]

NEW_TOKENS = 5


@pytest.fixture
def calls(keywords_of: Callable[[Any, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The keywords of every call of flash_attn_varlen_func."""
    return keywords_of(flash_attn, "sdpa_varlen")


def settings() -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )


def prompts() -> list[list[int]]:
    generator = torch.manual_seed(1)
    lengths = (1, 3, 17, 9, 30, 2)
    return [torch.randint(3, zoo.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def own_tokens(model: Any) -> list[list[int]]:
    model.set_attn_implementation("eager")
    found = []
    for prompt in prompts():
        out = model.generate(torch.tensor([prompt]), generation_config=settings())
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("budget", [16, 64])
def test_generate_batch(
    name: str, budget: int, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of mixed lengths; a small budget of tokens a step cuts them into chunks."""
    model = zoo.DECODERS[name].build()
    if name == "gpt_oss":  # lists the flash attentions that it takes
        listed = [*model._compatible_flash_implementations, "metal_flash"]
        monkeypatch.setattr(type(model), "_compatible_flash_implementations", listed)
    wanted = own_tokens(model)
    model.set_attn_implementation("metal_flash")
    batching = ContinuousBatchingConfig(
        page_size=8, num_blocks=64, max_batch_tokens=budget, allow_block_sharing=False
    )
    found = model.generate_batch(
        prompts(),
        generation_config=settings(),
        continuous_batching_config=batching,
        warmup=False,
        progress_bar=False,
    )
    assert [found[f"req_{i}"].generated_tokens for i in range(len(wanted))] == wanted
    assert len(calls) >= 2 * NEW_TOKENS


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "deepseek_v3"])
def test_generate(name: str) -> None:
    model = zoo.DECODERS[name].build()
    ids = torch.randint(3, zoo.VOCABULARY, (2, 13), generator=torch.manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for padding in ({}, {"attention_mask": mask}):
        found = []
        for attention in ("eager", "metal_flash"):
            model.set_attn_implementation(attention)
            cache = metal.Cache(model.config)
            keywords = {"cache": cache, "generation_config": settings()}
            found.append(model.generate(ids, **keywords, **padding).tolist())
        assert found[0] == found[1]
