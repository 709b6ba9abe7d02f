"""Attention for torch tensors.

scaled_dot_product_attention has torch's meaning of every argument; enable(), disable() and
enabled() send torch's own function of that name here, and stats() and why_not() tell what they
could not; varlen_attn fills torch.nn.attention.varlen on the CPU. sdpa, sdpa_varlen, sdpa_paged,
write_kv and merge_states are metal_sdpa's functions as torch.compile(fullgraph=True) takes them;
torch.ops.metal_sdpa holds the operators behind them.
"""

from metal_sdpa.integrations._route import Stats

from ._calls import merge_states, sdpa, sdpa_paged, sdpa_varlen, write_kv
from ._functional import scaled_dot_product_attention
from ._route import disable, enable, enabled, is_enabled, reset_stats, stats, why_not
from ._varlen import varlen_attn, varlen_attn_out

__all__ = [
    "Stats",
    "disable",
    "enable",
    "enabled",
    "is_enabled",
    "merge_states",
    "reset_stats",
    "scaled_dot_product_attention",
    "sdpa",
    "sdpa_paged",
    "sdpa_varlen",
    "stats",
    "varlen_attn",
    "varlen_attn_out",
    "why_not",
    "write_kv",
]
