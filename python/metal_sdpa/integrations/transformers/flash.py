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


class _Loader:
    """transformers' loader of kernels, which knows one more name while that is registered."""

    def __init__(self, stock: Callable[..., Any]) -> None:
        self.stock = stock

    def __call__(self, attn_implementation: str, *arguments: Any, **keywords: Any) -> Any:
        ours = attn_implementation.rpartition("|")[2] == NAME
        if ours and NAME in AttentionInterface._global_mapping:
            return flash_attn
        return self.stock(attn_implementation, *arguments, **keywords)


def register_flash() -> None:
    """Gives attention "metal_flash" to generate, generate_batch and serve."""
    AttentionInterface.register(NAME, flash_attention_forward)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    stock = hub_kernels.load_and_register_attn_kernel
    if not isinstance(stock, _Loader):
        hub_kernels.load_and_register_attn_kernel = _Loader(stock)


def unregister_flash() -> None:
    """Takes `register_flash` back."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(NAME, None)
    loader = hub_kernels.load_and_register_attn_kernel
    if isinstance(loader, _Loader):
        hub_kernels.load_and_register_attn_kernel = loader.stock
    if modeling_flash_attention_utils._loaded_implementation == NAME:
        modeling_flash_attention_utils._loaded_implementation = None
