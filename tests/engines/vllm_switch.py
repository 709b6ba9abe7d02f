"""One vLLM engine whose attention is changed between two runs: its own, ours, or float64.

`mode` says which. The float64 attention keeps keys and values in a cache of its own, by slot, and
knows nothing of pages' memory. While ours runs, every layer's output of every step is compared with
it, row by row.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from metal_sdpa.integrations.vllm.backend import (
    MetalSdpaBackend,
    MetalSdpaImpl,
    MetalSdpaMetadata,
    MetalSdpaMetadataBuilder,
)

MODES = ("stock", "ours", "float64")


class State:
    """Which attention runs, and what was seen of it."""

    mode = "stock"
    calls = 0
    worst = 0.0
    """Largest difference of ours from float64, in roundoffs of the row's largest value."""
    kinds: set[str]
    """Of steps: decode, prefill, mixed, chunk (a prompt that began earlier)."""

    def __init__(self) -> None:
        self.kinds = set()

    def start(self, mode: str) -> None:
        self.mode, self.calls, self.worst = mode, 0, 0.0
        self.kinds.clear()


STATE = State()


def attend_float64(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    causal: bool,
    window: int = -1,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """[L, Hq, Dv] of the last L positions of S: the whole score matrix, in float64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("lhd,shd->hls", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(k.shape[0] - q.shape[0], k.shape[0])[:, None]
    key_at = torch.arange(k.shape[0])[None, :]
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * (at - key_at).abs()
    hidden = torch.zeros(at.shape[0], key_at.shape[1], dtype=torch.bool)
    if causal:
        hidden |= key_at > at
    if window >= 0:
        hidden |= (at - key_at) >= window
        hidden |= (key_at - at) >= window
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        column = sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("hls,shd->lhd", weights, v)


class SwitchBuilder(MetalSdpaMetadataBuilder):
    """Our metadata, with what vLLM's own kernel needs besides."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> MetalSdpaMetadata:
        step = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if STATE.mode == "stock":
            own = CPUAttentionMetadataBuilder.build(
                self, common_prefix_len, common_attn_metadata, fast_build
            )
            own.runs = step.runs
            return own
        lengths = torch.diff(step.query_start_loc)
        began = step.seq_lens > lengths
        decode = bool((lengths == 1).any())
        prefill = bool((lengths > 1).any())
        STATE.kinds.add("mixed" if decode and prefill else "decode" if decode else "prefill")
        if bool(((lengths > 1) & began).any()):
            STATE.kinds.add("chunk")
        return step


class SwitchImpl(MetalSdpaImpl):
    """The three attentions of a layer."""

    shadow: tuple[torch.Tensor, torch.Tensor] | None = None

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping) -> None:
        if STATE.mode == "stock":
            CPUAttentionBackendImpl.do_kv_cache_update(
                self, layer, key, value, kv_cache, slot_mapping
            )
            return
        if STATE.mode == "ours":
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        if kv_cache.numel() == 0:  # an encoder has none
            return
        if self.shadow is None:
            n_slots = kv_cache.shape[0] * kv_cache.shape[2]
            shape = (n_slots, key.shape[1])
            nan = float("nan")
            self.shadow = (
                torch.full((*shape, key.shape[2]), nan, dtype=torch.float64),
                torch.full((*shape, value.shape[2]), nan, dtype=torch.float64),
            )
        slots = slot_mapping[slot_mapping >= 0]
        self.shadow[0][slots] = key[: len(slot_mapping)][slot_mapping >= 0].double()
        self.shadow[1][slots] = value[: len(slot_mapping)][slot_mapping >= 0].double()

    def forward(
        self, layer, query, key, value, kv_cache, attn_metadata, output, *scales: Any, **more: Any
    ) -> torch.Tensor:
        if attn_metadata is None:
            return output
        STATE.calls += 1
        arguments = (layer, query, key, value, kv_cache, attn_metadata, output)
        if STATE.mode == "stock":
            return CPUAttentionBackendImpl.forward(self, *arguments, *scales, **more)
        expected = self.float64(query, key, value, kv_cache, attn_metadata)
        rows = slice(0, expected.shape[0])
        if STATE.mode == "float64":
            output[rows] = expected.to(output.dtype)
            return output
        super().forward(*arguments, *scales, **more)
        roundoff = torch.finfo(output.dtype).eps / 2
        largest = expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        error = (output[rows].double() - expected).abs() / (largest * roundoff)
        STATE.worst = max(STATE.worst, float(torch.nan_to_num(error, nan=1e9).max()))
        return output

    def float64(self, query, key, value, kv_cache, step) -> torch.Tensor:
        options = {
            "scale": self.scale,
            "causal": step.causal,
            "window": self.sliding_window,
            "softcap": self.logits_soft_cap,
            "sinks": self.sinks,
            "slopes": self.alibi_slopes,
        }
        starts = step.query_start_loc.tolist()
        page = kv_cache.shape[2] if kv_cache.dim() == 4 else 1
        parts = []
        for b, length in enumerate(step.seq_lens.tolist()):
            rows = slice(starts[b], starts[b + 1])
            if self.attn_type in ("encoder", "encoder_only"):
                keys, values = key[rows], value[rows]
            else:
                at = torch.arange(length)
                slots = step.block_table[b].long()[at // page] * page + at % page
                keys, values = (cache[slots] for cache in self.shadow)
                if self.sliding_window >= 0:
                    # What lies before every row's window may belong to others by now.
                    first = max(0, length - (rows.stop - rows.start) - self.sliding_window)
                    keys, values = keys[first:], values[first:]
            parts.append(attend_float64(query[rows], keys, values, **options))
        return torch.cat(parts)


class SwitchBackend(MetalSdpaBackend):
    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        from vllm.v1.attention.backend import MultipleOf

        return [MultipleOf(32)]

    @staticmethod
    def get_impl_cls() -> type[SwitchImpl]:
        return SwitchImpl

    @staticmethod
    def get_builder_cls() -> type[SwitchBuilder]:
        return SwitchBuilder


def install() -> None:
    """Engines made from now on have the switch."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    os.environ["METAL_SDPA_VLLM"] = "0"
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.SwitchBackend")
