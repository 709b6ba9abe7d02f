"""A cache that grows in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import cache_utils

from metal_sdpa import Unsupported

from .layers import GROWING, GrowingLayer, GrowingSlidingWindowLayer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedConfig


class Cache(cache_utils.DynamicCache):  # type: ignore[misc]
    """transformers' DynamicCache without its copy of the whole cache for every token.

    Keys and values lie in memory [B, Hkv, capacity, D] with spare room behind the rows in use;
    `update` writes new rows into it and returns views of what is in use. No length is needed. All
    that DynamicCache has works alike: layers with windows (which hold their window alone), hybrid
    models, crop, beams, copies, pickling, EncoderDecoderCache of two.

    config          The model's configuration: which layers have a window or other states. Without
                    it, all layers are full attention, and are made as they are first updated.
    ddp_cache_data  (keys, values) or (keys, values, window) of each layer to begin with.

    What `update` returned stays as it is until rows that it shows are cropped and written anew.

    Errors: Unsupported for `offloading`.

    >>> cache = Cache(model.config)                            # doctest: +SKIP
    >>> model.generate(ids, past_key_values=cache)             # doctest: +SKIP
    """

    def __init__(
        self,
        config: PreTrainedConfig | None = None,
        *,
        ddp_cache_data: Iterable[tuple[torch.Tensor | None, ...]] | None = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = False,
    ) -> None:
        if offloading:
            raise Unsupported("Cache: offloading: not taken, use transformers' DynamicCache")
        super().__init__(config=config)
        self.layers: list[Any] = [_grown(layer) for layer in self.layers]
        self.layer_class_to_replicate: type | None = GrowingLayer if config is None else None
        if ddp_cache_data is not None:
            self._fill(list(ddp_cache_data), make_layers=config is None)

    def _fill(self, layers: list[tuple[torch.Tensor | None, ...]], make_layers: bool) -> None:
        if make_layers:
            self.layer_class_to_replicate = None
            self.layers = [_layer(*data[2:]) for data in layers]
        for layer, data in zip(self.layers, layers, strict=True):
            if data[0] is not None and data[1] is not None:
                layer.update(data[0], data[1])


def _grown(layer: Any) -> Any:
    """The layer, which holds nothing yet, as one that grows in place, where there is one."""
    growing = GROWING.get(type(layer))
    if growing is None:
        return layer
    grown: Any = object.__new__(growing)
    grown.__dict__.update(layer.__dict__)
    return grown


def _layer(window: torch.Tensor | None = None) -> Any:
    return GrowingLayer() if window is None else GrowingSlidingWindowLayer(int(window.item()))


# What transformers' own DynamicCache(config) made of a layer's type before `grow_by_default`.
_replaced: dict[str, type] = {}


def grow_by_default() -> None:
    """DynamicCache(config=...), as generate and models make it, grows in place too."""
    mapping = cache_utils.DYNAMIC_LAYER_TYPE_MAPPING
    for layer_type, stock in list(mapping.items()):
        if stock in GROWING:
            _replaced[layer_type] = stock
            mapping[layer_type] = GROWING[stock]


def concatenate_by_default() -> None:
    """Takes `grow_by_default` back."""
    mapping = cache_utils.DYNAMIC_LAYER_TYPE_MAPPING
    for layer_type, stock in _replaced.items():
        if mapping.get(layer_type) is GROWING[stock]:
            mapping[layer_type] = stock
    _replaced.clear()
