"""Tiny models with random weights that spread the softmax, as directories that vLLM loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCAB = 256
WINDOW = 24

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LAYER_TYPES = ["sliding_attention", "full_attention"]

# The windows and caps are such that these prompts meet them.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"intermediate_size": 96}),
    "qwen3": ("Qwen3Config", {"intermediate_size": 96}),
    "gemma2": (
        "Gemma2Config",
        {
            "intermediate_size": 96,
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 20.0,
            "query_pre_attn_scalar": 32,
            "layer_types": LAYER_TYPES,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "intermediate_size": 96,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 32,
            "layer_types": LAYER_TYPES,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "sliding_window": WINDOW,
            "layer_types": LAYER_TYPES,
            "num_local_experts": 4,
            # All of them: a close choice between two would be decided by roundoff.
            "num_experts_per_tok": 4,
            "intermediate_size": 64,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": VOCAB, "hidden_size": 128, "n_layer": 2, "n_head": 4},
    ),
    # An encoder, which generates nothing.
    "bert": (
        "BertConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 128,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
}


def _spread(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random weight: scores have a deviation of about 3."""
    noise = torch.randn(weight.shape, generator=generator)
    if name.endswith(".sinks"):
        return noise + 1
    if name.endswith("weight") and weight.dim() == 1:  # of a norm
        base = 1.7 if "q_norm" in name or "k_norm" in name else 1.0
        # Gemma multiplies by 1 + weight.
        return torch.full_like(noise, base) + 0.1 * noise
    if weight.dim() == 1:
        return 0.1 * noise
    scored = ("q_proj", "k_proj", "query", "key")
    gain = 1.7 if any(part in name for part in scored) else 1.0
    fan_in = weight.shape[-1] if weight.dim() == 2 else weight.shape[-2]
    # Embeddings are the head's weights too in some: logits of a deviation of about 2.
    return noise * (0.2 if "embed" in name else gain / fan_in**0.5)


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words w0, w1, ... and nothing else."""
    words = {f"w{i}": i for i in range(VOCAB)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")


def make(kind: str, where: Path) -> Path:
    """Writes config and weights of a model; the same for the same kind."""
    config_name, extra = CONFIGS[kind]
    with_own_names = kind in ("bloom", "bert")
    config = getattr(transformers, config_name)(**{**({} if with_own_names else COMMON), **extra})
    loader = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    model = loader.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_spread(name, weight, generator))
            if kind.startswith("gemma") and "norm" in name and "q_norm" not in name:
                weight.sub_(1.0 if "k_norm" not in name else 0.0)
    path = where / kind
    model.save_pretrained(path)
    if kind == "bert":
        _tokenizer().save_pretrained(path)  # vLLM's pooling wants one
    config_file = path / "config.json"
    stored = json.loads(config_file.read_text())
    stored.pop("quantization_config", None)
    config_file.write_text(json.dumps(stored))
    return path
