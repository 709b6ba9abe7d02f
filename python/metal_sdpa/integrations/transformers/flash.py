"""The name "metal_flash": transformers' own flash-attention path, with our functions behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations import hub_kernels
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

from metal_sdpa.integrations import flash_attn

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "metal_flash"

_stock_load: Callable[..., Any] | None = None


def _load(attn_implementation: str, *arguments: Any, **keywords: Any) -> Any:
    """transformers' loader of kernels, which knows one more name."""
    if attn_implementation.rpartition("|")[2] == NAME:
        return flash_attn
    assert _stock_load is not None
    return _stock_load(attn_implementation, *arguments, **keywords)


def register_flash() -> None:
    """Gives attention "metal_flash" to generate, generate_batch and serve."""
    global _stock_load
    AttentionInterface.register(NAME, flash_attention_forward)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    if hub_kernels.load_and_register_attn_kernel is not _load:
        _stock_load = hub_kernels.load_and_register_attn_kernel
        hub_kernels.load_and_register_attn_kernel = _load


def unregister_flash() -> None:
    """Takes `register_flash` back."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(NAME, None)
    if hub_kernels.load_and_register_attn_kernel is _load:
        hub_kernels.load_and_register_attn_kernel = _stock_load
    if modeling_flash_attention_utils._loaded_implementation == NAME:
        modeling_flash_attention_utils._loaded_implementation = None
