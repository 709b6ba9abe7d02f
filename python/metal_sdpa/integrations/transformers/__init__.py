"""Attention and a cache for Hugging Face transformers, for inference.

>>> from metal_sdpa.integrations import transformers as metal_transformers
>>> metal_transformers.register()
>>> model = AutoModelForCausalLM.from_pretrained(        # doctest: +SKIP
...     name, attn_implementation="metal_attention")
"""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from .attention import NAME, attention_forward
from .cache import Cache, concatenate_by_default, grow_by_default
from .flash import register_flash, unregister_flash
from .masks import attention_mask

__all__ = ["Cache", "attention_forward", "attention_mask", "register", "unregister"]


def register(*, cache: bool = True) -> None:
    """Gives transformers the attentions "metal_attention" and "metal_flash".

    They are chosen as any other: `attn_implementation="metal_attention"` in from_pretrained, or
    `model.set_attn_implementation("metal_attention")`. "metal_flash" is for continuous batching
    (`generate_batch`, `serve`), which takes only names with "flash".

    cache  Also lets the DynamicCache that generate and models make by themselves grow in place, as
           `Cache` does: `torch.cat` of the whole cache for every token costs more than attention.
           It concerns every model of the process, whatever its attention; tokens stay the same.

    Calling it again changes nothing but `cache`. `unregister` takes all of it back.
    """
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)
    register_flash()
    if cache:
        grow_by_default()
    else:
        concatenate_by_default()


def unregister() -> None:
    """Takes `register` back; models that use the names must be given another attention first."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(NAME, None)
    unregister_flash()
    concatenate_by_default()
