"""The attention backend that vLLM finds under the name CPU_ATTN once register() was called.

A layer's cache is vLLM's tensor [n_pages, Hkv, page, D + Dv]. Each page of a head holds its keys,
[page, D], and behind them its values, [page, Dv]: two views in layout HND of one tensor.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from vllm.logger import init_logger
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backend import AttentionType, MultipleOf
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec

from metal_sdpa import (
    InvalidArgument,
    Prepared,
    Unsupported,
    prepare,
    sdpa_varlen,
    write_kv,
)

from .threads import follow_openmp

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.v1.attention.backend import CommonAttentionMetadata

# Under vLLM's own name, so that it is shown where vLLM's lines are.
logger = init_logger("vllm.metal_sdpa")

_CALL = "vllm"
_ENCODERS = (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)


class Run(NamedTuple):
    """Sequences of a step, one behind the other, that one call attends for."""

    rows: slice
    """of q and the output"""

    cu_seqlens_q: Tensor
    """[B + 1], from 0"""

    kv_lengths: Tensor
    """[B]"""

    block_table: Tensor
    """[B, max_blocks]"""

    causal: bool


@dataclass
class MetalSdpaMetadata(CPUAttentionMetadata):  # type: ignore[misc]
    """A step of one group of layers, ready for the calls of all of them."""

    runs: list[Run] = field(default_factory=list)

    prepared: dict[Any, Prepared] = field(default_factory=dict)
    """Calls by what makes layers and runs differ."""


class MetalSdpaMetadataBuilder(CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """Works out a step once for all layers that share a block table."""

    def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if getattr(vllm_config, "kv_transfer_config", None) is not None:
            raise Unsupported(
                f"{_CALL}: kv_transfer_config: is given, takes None: other engines hold keys and "
                "values in another order"
            )

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> MetalSdpaMetadata:
        """The step that vLLM describes. Tensors are its own, seen and not copied."""
        common = common_attn_metadata
        of_encoder = isinstance(self.kv_cache_spec, EncoderOnlyAttentionSpec)
        per_request = common.causal if isinstance(common.causal, torch.Tensor) else None
        causal = per_request is None and bool(common.causal) and not self.is_cross_attention
        step = MetalSdpaMetadata(
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=None,
            causal=causal,
            dynamic_causal=per_request,
        )
        # Cross attention reads the whole encoder's cache, whatever the decoder's rows see.
        if of_encoder or per_request is None or self.is_cross_attention:
            step.runs = [_whole_step(step)]
        else:
            step.runs = _runs_of_one_kind(step, per_request)
        return step


class MetalSdpaImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
    """Attention of one layer."""

    sinks: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _require_plain_cache(self.kv_cache_dtype)
        self._softcap = self.logits_soft_cap or None
        has_sinks, has_slopes = self.sinks is not None, self.alibi_slopes is not None
        self._settings = (self.scale, self.sliding_window, self._softcap, has_sinks, has_slopes)
        self._pages_of: Tensor | None = None
        self._pages: tuple[Tensor, Tensor] | None = None
        follow_openmp()
        logger.info_once("Attention by metal_sdpa.")

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        super().process_weights_after_loading(act_dtype)
        if self.sinks is not None and self.sinks.dtype not in (torch.float32, act_dtype):
            self.sinks = self.sinks.to(torch.float32)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: MetalSdpaMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attends for all rows of a step; decode rows and pieces of prompts in one call.

        query [T, Hq, D], key [T, Hkv, D], value [T, Hkv, Dv] (only encoders read these two here),
        kv_cache as the module says. Writes output [T, Hq, Dv] in place and returns it. Without
        metadata (warming up) output stays as it is.

        Errors: Unsupported for output scales; InvalidArgument for page numbers or slots out of
        range; those of sdpa_paged() and sdpa_varlen().
        """
        if output_scale is not None or output_block_scale is not None:
            raise Unsupported(
                f"{_CALL}: output_scale: is given, takes None: outputs are not quantised"
            )
        step = attn_metadata
        if step is None or step.num_actual_tokens == 0:
            return output
        if self.attn_type in _ENCODERS:
            self._attend_packed(query, key, value, step, output)
            return output
        k_pages, v_pages = self._cache_pages(kv_cache, output.shape[-1])
        if not step.prepared:
            _require_slots(step.slot_mapping, k_pages)
        for run in step.runs:
            q, out = query[run.rows], output[run.rows]
            self._prepared(step, run, q, k_pages, v_pages, out).run(
                q, k_pages, v_pages, out, sinks=self.sinks, alibi_slopes=self.alibi_slopes
            )
        return output

    def do_kv_cache_update(
        self,
        layer: Any,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Writes key [T, Hkv, D] and value [T, Hkv, Dv] to their slots; -1 leaves a token out."""
        if self.attn_type in _ENCODERS:
            return
        count = slot_mapping.shape[0]
        if count == 0:
            return
        k_pages, v_pages = self._cache_pages(kv_cache, value.shape[-1])
        # Slots are vLLM's own, and forward() looks at them once a step. Out of range, they would
        # be left out.
        write_kv(
            key[:count],
            value[:count],
            k_pages,
            v_pages,
            slot_mapping=slot_mapping,
            layout="HND",
            check_indices=False,
        )

    def _attend_packed(
        self, query: Tensor, key: Tensor, value: Tensor, step: MetalSdpaMetadata, output: Tensor
    ) -> None:
        """An encoder's rows, which see each other and no cache."""
        rows = slice(0, step.num_actual_tokens)
        sdpa_varlen(
            query[rows],
            key[rows],
            value[rows],
            step.query_start_loc,
            step.query_start_loc,
            causal=step.causal,
            scale=self.scale,
            window=self._window(step.causal),
            softcap=self._softcap,
            sinks=self.sinks,
            alibi_slopes=self.alibi_slopes,
            out=output[rows],
        )

    def _prepared(
        self, step: MetalSdpaMetadata, run: Run, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> Prepared:
        """The call of a run, planned and its page numbers checked by the first layer like this."""
        key = (
            run.rows.start,
            self._settings,
            *((x.dtype, x.shape, x.stride()) for x in (q, k, v, out)),
        )
        found = step.prepared.get(key)
        if found is None:
            found = prepare(
                "sdpa_paged",
                q,
                k,
                v,
                run.block_table,
                run.kv_lengths,
                cu_seqlens_q=run.cu_seqlens_q,
                causal=run.causal,
                scale=self.scale,
                window=self._window(run.causal),
                softcap=self._softcap,
                sinks=self.sinks,
                alibi_slopes=self.alibi_slopes,
                layout="HND",
                out=out,
            )
            step.prepared[key] = found
        return found

    def _window(self, causal: bool) -> tuple[int, int] | None:
        """vLLM counts a window's keys with the query's own, on each side where it has two."""
        if self.sliding_window < 0:
            return None
        return self.sliding_window - 1, 0 if causal else self.sliding_window - 1

    def _cache_pages(self, kv_cache: Tensor, value_dim: int) -> tuple[Tensor, Tensor]:
        """[n_pages, Hkv, page, D] and [n_pages, Hkv, page, Dv] over a layer's cache."""
        if self._pages is None or self._pages_of is not kv_cache:
            self._pages = split_pages(kv_cache, value_dim)
            self._pages_of = kv_cache
        return self._pages


class MetalSdpaBackend(CPUAttentionBackend):  # type: ignore[misc]
    """vLLM's CPU backend with metal_sdpa's attention, under its own name."""

    supported_kv_cache_dtypes = ("auto", "float16", "bfloat16")

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [MultipleOf(16)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Any."""
        return []

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @staticmethod
    def get_impl_cls() -> type[MetalSdpaImpl]:
        return MetalSdpaImpl

    @staticmethod
    def get_builder_cls() -> type[MetalSdpaMetadataBuilder]:
        return MetalSdpaMetadataBuilder


def split_pages(kv_cache: Tensor, value_dim: int) -> tuple[Tensor, Tensor]:
    """Keys [n_pages, Hkv, page, D] and values [n_pages, Hkv, page, Dv] of a cache, as views.

    kv_cache [n_pages, Hkv, page, D + Dv]; what its memory holds has the order of the views, not of
    the tensor. RuntimeError where [page, D + Dv] is not contiguous.
    """
    n_pages, n_heads, page, width = kv_cache.shape
    flat = kv_cache.view(n_pages, n_heads, page * width)
    key_dim = width - value_dim
    keys, values = flat.split((page * key_dim, page * value_dim), dim=-1)
    return keys.unflatten(-1, (page, key_dim)), values.unflatten(-1, (page, value_dim))


def _whole_step(step: MetalSdpaMetadata) -> Run:
    rows = slice(0, step.num_actual_tokens)
    return Run(rows, step.query_start_loc, step.seq_lens, step.block_table, step.causal)


def _runs_of_one_kind(step: MetalSdpaMetadata, causal: Tensor) -> list[Run]:
    """The step cut where causal [B] changes."""
    kinds = np.asarray(causal.cpu(), dtype=bool)
    starts = step.query_start_loc
    cuts = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(kinds)]
    return [
        Run(
            slice(int(starts[begin]), int(starts[end])),
            starts[begin : end + 1] - starts[begin],
            step.seq_lens[begin:end],
            step.block_table[begin:end],
            bool(kinds[begin]),
        )
        for begin, end in itertools.pairwise(cuts)
    ]


def _require_plain_cache(kv_cache_dtype: str) -> None:
    """A cache of the model's own dtype: quantised ones are refused by name."""
    if kv_cache_dtype == "auto":
        return
    from vllm.config import get_current_vllm_config

    model = get_current_vllm_config().model_config
    try:
        dtype = kv_cache_dtype_str_to_dtype(kv_cache_dtype, model)
    except (KeyError, ValueError):
        dtype = None
    if dtype != model.dtype:
        raise Unsupported(
            f"{_CALL}: kv_cache_dtype: {kv_cache_dtype}, takes auto: there are no quantised caches"
        )


def _require_slots(slot_mapping: Tensor, pages: Tensor) -> None:
    n_slots = pages.shape[0] * pages.shape[2]
    slots = slot_mapping.numpy()
    if slots.size == 0 or (slots.max() < n_slots and slots.min() >= -1):
        return
    bad = slots[(slots < -1) | (slots >= n_slots)][0]
    raise InvalidArgument(f"{_CALL}: slot_mapping: {bad}, takes -1 to {n_slots - 1}")
