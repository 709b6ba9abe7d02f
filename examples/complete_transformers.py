"""Completes a text with Hugging Face transformers, by its own attention and by metal_sdpa's.

    python examples/complete_transformers.py --prompt 'class Queue:' --tokens 200

The model is the one of generate.py, as transformers' Llama. Both runs must give the same tokens;
then their speed is shown. Needs the wheel, torch, transformers and safetensors.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

from metal_sdpa.integrations import transformers as metal_transformers
from model import load_model
from tokenizer import Tokenizer

WEIGHTS = Path(__file__).parent / "stdlib.safetensors"
PROMPT = Path(__file__).parent / "prompt.txt"
ATTENTIONS = ("sdpa", "metal_attention")
# What transformers' Llama calls the weights of a layer here.
LAYER_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "wq.weight": "self_attn.q_proj.weight",
    "wk.weight": "self_attn.k_proj.weight",
    "wv.weight": "self_attn.v_proj.weight",
    "wo.weight": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "w_gate.weight": "mlp.gate_proj.weight",
    "w_up.weight": "mlp.up_proj.weight",
    "w_down.weight": "mlp.down_proj.weight",
}


def llama_name(name: str) -> str:
    """What transformers' Llama calls a weight of ours."""
    if not name.startswith("layers."):
        return {"embedding.weight": "model.embed_tokens.weight"}.get(name, "model.norm.weight")
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{LAYER_NAMES[rest]}"


def load_llama(dtype: torch.dtype) -> tuple[transformers.LlamaForCausalLM, Tokenizer, int]:
    """The small model of this directory, its tokenizer and the longest text that it knows."""
    model, tokenizer, _ = load_model(WEIGHTS)
    config = model.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.hidden_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    weights = {llama_name(name): torch.from_numpy(x) for name, x in model.weights.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    llama.load_state_dict(weights)
    return llama.to(dtype).eval(), tokenizer, config.context


def complete(
    model: transformers.LlamaForCausalLM, prompt: torch.Tensor, count: int
) -> tuple[list[int], float]:
    """Tokens behind the prompt, each the likeliest one, and seconds a token."""
    begin = time.perf_counter()
    with torch.inference_mode():
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
        )
    seconds = time.perf_counter() - begin
    return tokens[0, prompt.shape[1] :].tolist(), seconds / count


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default=PROMPT.read_text(), help="text to go on from")
    parser.add_argument("--tokens", type=int, default=200, help="how many to add (200)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each attention (3)")
    chosen = parser.parse_args(arguments)
    if chosen.tokens < 1 or chosen.repeats < 1:
        parser.error("--tokens and --repeats take 1 or more")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    metal_transformers.register()
    model, tokenizer, context = load_llama(getattr(torch, chosen.dtype))
    prompt = torch.tensor([tokenizer.encode(chosen.prompt)])
    if prompt.shape[1] == 0 or prompt.shape[1] + chosen.tokens > context:
        print(f"prompt and --tokens take 1 to {context} tokens together", file=sys.stderr)
        return 2
    texts: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ATTENTIONS}
    for _ in range(chosen.repeats):
        for name in ATTENTIONS:
            model.set_attn_implementation(name)
            texts[name], taken = complete(model, prompt, chosen.tokens)
            seconds[name].append(taken)
    print(chosen.prompt + tokenizer.decode(texts["metal_attention"]))
    print()
    for name in ATTENTIONS:
        print(f"{name:16} {1 / statistics.median(seconds[name]):8.1f} tokens/s")
    same = texts["sdpa"] == texts["metal_attention"]
    print("the same tokens" if same else "other tokens than transformers' own attention")
    return 0 if same or chosen.dtype != "float32" else 1


if __name__ == "__main__":
    sys.exit(main())
