"""Small random models of transformers, one an architecture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

VOCABULARY = 160
WINDOW = 6

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_WINDOWS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_OWN_HEAD_DIM = {"head_dim": None}
_ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": None,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True)
class Architecture:
    """A model class and what its configuration differs in; None drops an entry."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: _SIZES)
    static: bool = True

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model in eval mode, with weights that spread the softmax."""
        model_class = getattr(transformers, self.model)
        settings = self.base | self.settings
        dropped = {k for k, v in settings.items() if v is None and not k.endswith("token_id")}
        config = model_class.config_class(**{k: v for k, v in settings.items() if k not in dropped})
        torch.manual_seed(0)
        model = model_class(config)
        _spread(model)
        return model.to(dtype).eval()


def _spread(model: Any) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                embedding = "embed" in name or "wte" in name or "wpe" in name or "shared" in name
                scale = 0.7 if embedding else 1.3 / math.sqrt(weight[0].numel())
                weight.normal_(0, scale)
            elif "sink" in name:
                weight.normal_(0, 1)


DECODERS = {
    "llama": Architecture("LlamaForCausalLM"),
    "mistral": Architecture("MistralForCausalLM", {"sliding_window": WINDOW}),
    "ministral": Architecture("MinistralForCausalLM", _WINDOWS),
    "mixtral": Architecture("MixtralForCausalLM", {"sliding_window": None} | _EXPERTS),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", _WINDOWS | {"use_sliding_window": True} | _OWN_HEAD_DIM
    ),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3_moe": Architecture(
        "Qwen3MoeForCausalLM", _EXPERTS | {"moe_intermediate_size": 32, "head_dim": 32}
    ),
    "gemma": Architecture("GemmaForCausalLM", {"num_key_value_heads": 1}),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        _WINDOWS
        | {
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": Architecture("Gemma3ForCausalLM", _WINDOWS | {"query_pre_attn_scalar": 16}),
    "phi": Architecture("PhiForCausalLM", _OWN_HEAD_DIM),
    "phi3": Architecture("Phi3ForCausalLM", {"sliding_window": WINDOW} | _OWN_HEAD_DIM),
    "cohere": Architecture("CohereForCausalLM", _OWN_HEAD_DIM),
    "cohere2": Architecture("Cohere2ForCausalLM", _WINDOWS),
    "gpt_oss": Architecture("GptOssForCausalLM", _WINDOWS | _EXPERTS),
    "deepseek_v3": Architecture(
        "DeepseekV3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "head_dim": None,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "deepseek_v2": Architecture(
        "DeepseekV2ForCausalLM",
        {
            "num_key_value_heads": 4,
            "head_dim": 8,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        {
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"],
            "intermediate_size_mlp": 96,
            "moe_layers": [],
            "num_local_experts": 2,
        },
    ),
    "granite": Architecture("GraniteForCausalLM", _OWN_HEAD_DIM),
    "olmo2": Architecture("Olmo2ForCausalLM", _OWN_HEAD_DIM),
    "olmo3": Architecture("Olmo3ForCausalLM", _WINDOWS | _OWN_HEAD_DIM),
    "starcoder2": Architecture("Starcoder2ForCausalLM", {"sliding_window": WINDOW} | _OWN_HEAD_DIM),
    "stablelm": Architecture("StableLmForCausalLM", _OWN_HEAD_DIM),
    "smollm3": Architecture("SmolLM3ForCausalLM", _OWN_HEAD_DIM),
    "glm4": Architecture("Glm4ForCausalLM"),
    "exaone4": Architecture("Exaone4ForCausalLM", _WINDOWS | _OWN_HEAD_DIM),
    "nemotron": Architecture("NemotronForCausalLM", _OWN_HEAD_DIM),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", {"num_key_value_heads": None, "head_dim": None}),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
        {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0},
    ),
    "opt": Architecture(
        "OPTForCausalLM",
        {
            "num_key_value_heads": None,
            "head_dim": None,
            "intermediate_size": None,
            "ffn_dim": 96,
            "word_embed_proj_dim": 64,
        },
    ),
    "lfm2": Architecture(
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention"], "head_dim": None, "block_ff_dim": 96},
        static=False,
    ),
    "falcon_h1": Architecture(
        "FalconH1ForCausalLM",
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
        static=False,
    ),
    "qwen3_next": Architecture(
        "Qwen3NextForCausalLM",
        _EXPERTS
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        static=False,
    ),
}

ENCODER_DECODERS = {
    "bart": Architecture("BartForConditionalGeneration", {}, _ENCODER_DECODER),
    "mbart": Architecture("MBartForConditionalGeneration", {}, _ENCODER_DECODER),
    "pegasus": Architecture("PegasusForConditionalGeneration", {}, _ENCODER_DECODER),
    "marian": Architecture("MarianMTModel", {}, _ENCODER_DECODER),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        {"d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "d_model": 64},
        {
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "eos_token_id": None,
            "decoder_start_token_id": 2,
        },
    ),
}

_BERT = _SIZES | {"num_key_value_heads": None, "head_dim": None, "type_vocab_size": 2}
ENCODERS = {
    "bert": Architecture("BertModel", {}, _BERT),
    "roberta": Architecture("RobertaModel", {}, _BERT),
    "electra": Architecture("ElectraModel", {"embedding_size": 64}, _BERT),
    "distilbert": Architecture(
        "DistilBertModel",
        {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
        {"vocab_size": VOCABULARY, "pad_token_id": 0, "max_position_embeddings": 128},
    ),
    "modernbert": Architecture(
        "ModernBertModel",
        {
            "local_attention": WINDOW,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        _BERT,
    ),
}

_PICTURES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
}
TOWERS = {
    "vit": Architecture("ViTModel", {}, _PICTURES),
    "clip": Architecture("CLIPVisionModel", {}, _PICTURES),
    "siglip": Architecture("SiglipVisionModel", {}, _PICTURES),
    "dinov2": Architecture("Dinov2Model", {}, _PICTURES),
}
