"""The names of flash-attn against attention in float64, one sequence at a time."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from metal_sdpa import InvalidArgument, Unsupported, UnsupportedDType
from sequences import DTYPES, check_sequence, tensor

pytestmark = pytest.mark.frameworks

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32

# What may be asked of the scores, each as flash-attn names it.
FEATURES = ("plain", "causal", "left", "both_sides", "softcap", "alibi", "sinks", "everything")


def options_of(feature: str, rng: np.random.Generator) -> dict[str, Any]:
    import torch

    slopes = torch.from_numpy(rng.uniform(0.02, 0.3, HEADS)).float()
    sinks = torch.from_numpy(rng.standard_normal(HEADS)).float()
    return {
        "plain": {"softmax_scale": 0.31},
        "causal": {"causal": True},
        "left": {"causal": True, "window_size": (3, -1)},
        "both_sides": {"window_size": [5, 2]},
        "softcap": {"softcap": 1.5, "window_size": (-1, 4)},
        "alibi": {"alibi_slopes": slopes},
        "sinks": {"s_aux": sinks},
        "everything": {
            "causal": True,
            "window_size": (9, 9),
            "softcap": 2.0,
            "alibi_slopes": slopes,
            "learnable_sink": sinks,
            "softmax_scale": 0.4,
        },
    }[feature]


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(5, 70), (37, 37), (9, 4), (1, 33)])
def test_batches(feature: str, dtype: str, lengths: tuple[int, int]) -> None:
    from metal_sdpa.integrations.flash_attn import flash_attn_func

    rng = np.random.default_rng(lengths[0])
    queries, keys = lengths
    q = tensor(rng, dtype, 2, queries, HEADS, HEAD_DIM)
    k = tensor(rng, dtype, 2, keys, KV_HEADS, HEAD_DIM)
    v = tensor(rng, dtype, 2, keys, KV_HEADS, 24)
    options = options_of(feature, rng)
    out, lse, probs = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert out.is_contiguous()
    assert (out.dtype, lse.dtype, probs.shape) == (q.dtype, lse.float().dtype, (0,))
    for b in range(2):
        check_sequence((out[b], lse[b]), q[b], k[b], v[b], dtype, **options)
    assert flash_attn_func(q, k, v, **options).equal(out)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", ["packed", "seqused", "paged", "paged_seqused", "entries"])
def test_packed_sequences(feature: str, kind: str) -> None:
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_varlen_func

    rng = np.random.default_rng(7)
    n_queries, n_keys = [1, 6, 0, 19], [40, 6, 3, 30]
    used = [33, 5, 3, 21] if "seqused" in kind or kind == "entries" else n_keys
    ends_q, ends_k = (
        torch.tensor([0, *np.cumsum(n)], dtype=torch.int32) for n in (n_queries, n_keys)
    )
    q = tensor(rng, "f32", sum(n_queries), HEADS, HEAD_DIM)
    keys = [tensor(rng, "f32", n, 2, KV_HEADS, HEAD_DIM) for n in n_keys]
    options = options_of(feature, rng)
    call: dict[str, Any] = {"return_attn_probs": True, **options}
    if used != n_keys:
        call["seqused_k"] = torch.tensor(used, dtype=torch.int32)
    if kind in ("packed", "seqused"):
        kv = torch.cat(keys)
        call["cu_seqlens_k"] = ends_k
    else:
        page = 64 if kind == "entries" else 16
        blocks = 1 if kind == "entries" else 3
        order = torch.arange(4) if kind == "entries" else torch.randperm(12)
        table = order.reshape(4, blocks).int()
        kv = torch.full((4 * blocks, page, 2, KV_HEADS, HEAD_DIM), torch.nan)
        for b, rows in enumerate(keys):
            for j, row in enumerate(rows):
                kv[table[b, j // page], j % page] = row
        if kind != "entries":
            call["block_table"] = table
        if kind == "paged":
            call["cu_seqlens_k"] = ends_k
    out, lse, _ = flash_attn_varlen_func(
        q, kv.select(-3, 0), kv.select(-3, 1), ends_q, max_seqlen_q=19, max_seqlen_k=40, **call
    )
    assert lse.shape == (HEADS, len(q))
    for b, rows in enumerate(keys):
        own = slice(int(ends_q[b]), int(ends_q[b + 1]))
        k, v = rows[: used[b]].unbind(1)
        check_sequence((out[own], lse[:, own]), q[own], k, v, "f32", **options)


def test_queries_in_use() -> None:
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_varlen_func

    rng = np.random.default_rng(3)
    ends = torch.tensor([0, 5, 12])
    q, k, v = (tensor(rng, "f32", 12, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
    used = torch.tensor([2, 7])
    out, lse, _ = flash_attn_varlen_func(
        q, k, v, ends, ends, 7, 7, seqused_q=used, causal=True, return_attn_probs=True
    )
    assert not out[2:5].any()
    assert (lse[:, 2:5] == -torch.inf).all()
    for begin, end, kv_end in ((0, 2, 5), (5, 12, 12)):
        keys, values = k[begin:kv_end], v[begin:kv_end]
        got = (out[begin:end], lse[:, begin:end])
        check_sequence(got, q[begin:end], keys, values, "f32", causal=True)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("appended", [0, 1, 5])
@pytest.mark.parametrize("kind", ["cache", "larger", "entries", "paged", "packed", "packed_paged"])
def test_cache(feature: str, appended: int, kind: str) -> None:
    """With left padding, except where the sequence has queries before its first key."""
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_with_kvcache

    rng = np.random.default_rng(11)
    batch, slots, page = 3, 48, 16
    lengths, leftpad = [20, 0, 43], [4, 0, 40]
    history = [tensor(rng, "f32", n, 2, KV_HEADS, HEAD_DIM) for n in lengths]
    new = tensor(rng, "f32", batch, appended, 2, KV_HEADS, HEAD_DIM)
    paged = kind in ("paged", "packed_paged")
    per_entry = page if paged else slots
    n_entries = {"cache": 3, "packed": 3}.get(kind, 9 if paged else 5)
    table = torch.arange(3)[:, None]
    if kind == "entries":
        table = torch.tensor([[4], [0], [3]])
    elif paged:
        table = torch.from_numpy(rng.permutation(9).reshape(3, 3))
    cache = torch.full((n_entries, per_entry, 2, KV_HEADS, HEAD_DIM), torch.nan)

    def slot(b: int, j: int) -> tuple[int, int]:
        return int(table[b, j // per_entry]), j % per_entry

    for b in range(batch):
        for j, row in enumerate(history[b]):
            cache[slot(b, j)] = row
    before = cache.clone()
    n_queries = [2, 1, 6] if kind.startswith("packed") else [4, 4, 4]
    queries = [tensor(rng, "f32", n, HEADS, HEAD_DIM) for n in n_queries]
    options = options_of(feature, rng)
    call: dict[str, Any] = {"return_softmax_lse": True, "num_splits": 3, **options}
    if kind.startswith("packed"):
        call["cu_seqlens_q"] = torch.tensor([0, *np.cumsum(n_queries)], dtype=torch.int32)
    if kind == "entries":
        call["cache_batch_idx"] = table[:, 0].int()
    if paged:
        call["block_table"] = table.int()
    if appended:
        call |= {"k": new[:, :, 0], "v": new[:, :, 1]}
    out, lse = flash_attn_with_kvcache(
        torch.cat(queries) if kind.startswith("packed") else torch.stack(queries),
        cache[:, :, 0],
        cache[:, :, 1],
        cache_seqlens=torch.tensor(lengths, dtype=torch.int32),
        cache_leftpad=torch.tensor(leftpad, dtype=torch.int32),
        **call,
    )
    for b in range(batch):
        for j in range(appended):
            before[slot(b, lengths[b] + j)] = new[b, j]
    assert cache.nan_to_num(77).equal(before.nan_to_num(77))
    begin = 0
    for b in range(batch):
        end = begin + n_queries[b]
        got = (out[b], lse[b])
        if kind.startswith("packed"):
            got = (out[begin:end], lse[:, begin:end])
        k, v = torch.cat((history[b], new[b])).unbind(1)
        check_sequence(got, queries[b], k, v, "f32", leftpad=leftpad[b], **options)
        begin = end


def test_lengths_of_a_cache() -> None:
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_with_kvcache

    rng = np.random.default_rng(5)
    q = tensor(rng, "bf16", 2, 1, HEADS, HEAD_DIM)
    k, v = (tensor(rng, "bf16", 2, 21, KV_HEADS, HEAD_DIM) for _ in range(2))
    everything = flash_attn_with_kvcache(q, k, v, return_softmax_lse=True)
    part = flash_attn_with_kvcache(q, k, v, cache_seqlens=9, return_softmax_lse=True)
    table = torch.tensor([[1], [0]], dtype=torch.int32)
    paged = flash_attn_with_kvcache(q, k, v, page_table=table, return_softmax_lse=True)
    for b in range(2):
        check_sequence(tuple(x[b] for x in everything), q[b], k[b], v[b], "bf16")
        check_sequence(tuple(x[b] for x in part), q[b], k[b, :9], v[b, :9], "bf16")
        check_sequence(tuple(x[b] for x in paged), q[b], k[1 - b], v[1 - b], "bf16")
    assert flash_attn_with_kvcache(q, k, v, cache_seqlens=9).equal(part[0])


def test_one_entry_twice() -> None:
    """Of two sequences that append to one entry either's token stays, whole."""
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_with_kvcache

    q = torch.ones(2, 1, 2, 8)
    cache = torch.zeros(3, 4, 2, 8)
    new = torch.stack((torch.full((1, 2, 8), 1.0), torch.full((1, 2, 8), 2.0)))
    index = torch.tensor([2, 2])
    flash_attn_with_kvcache(
        q, cache, cache.clone(), new, new, cache_seqlens=1, cache_batch_idx=index
    )
    assert cache[2, 1].unique().tolist() in ([1.0], [2.0])
    with pytest.raises(InvalidArgument, match="slot"):
        flash_attn_with_kvcache(
            q,
            cache,
            cache.clone(),
            new,
            new,
            cache_seqlens=1,
            block_table=index.reshape(2, 1).int(),
        )


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_sinks_of_another_dtype(dtype: str) -> None:
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_func

    rng = np.random.default_rng(2)
    q, k, v = (tensor(rng, dtype, 1, 5, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
    sinks = torch.tensor([0.5, -0.25, 1.5, -torch.inf])
    want = flash_attn_func(q, k, v, s_aux=sinks)
    for other in (torch.float16, torch.bfloat16, torch.float64):
        assert flash_attn_func(q, k, v, s_aux=sinks.to(other)).equal(want)


def test_copies_only_where_a_row_is_not_contiguous() -> None:
    import torch

    from metal_sdpa.integrations import flash_attn

    q = torch.randn(2, 5, HEADS, HEAD_DIM)
    k, v = torch.randn(2, 2, 7, KV_HEADS, HEAD_DIM)
    wanted = flash_attn.flash_attn_func(q, k, v)
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    assert flash_attn.flash_attn_func(*turned).equal(wanted)
    heads_first = q.transpose(1, 2).contiguous().transpose(1, 2)
    out = flash_attn.flash_attn_func(heads_first, k, v)
    assert out.equal(wanted)
    assert out.stride() == heads_first.stride()
    with pytest.raises(InvalidArgument, match="k_cache: takes a contiguous last"):
        flash_attn.flash_attn_with_kvcache(q, turned[1], v)


@pytest.mark.parametrize("dims", [(2, 7), (9,)])
def test_combine(dims: tuple[int, ...]) -> None:
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_combine

    generator = torch.Generator().manual_seed(1)
    outs = torch.randn(3, *dims, HEADS, 16, generator=generator)
    lses = torch.randn(3, *dims, HEADS, generator=generator) * 3
    lses[0].flatten()[0] = -torch.inf
    lses[:, ..., 1].flatten(1)[:, 0] = -torch.inf  # seen by no part
    rows_last = lses.transpose(-1, -2).contiguous().transpose(-1, -2)  # as flash-attn makes them
    out, lse = flash_attn_combine(outs, rows_last)
    weights = lses.double().softmax(0).nan_to_num(0)
    wanted = (weights[..., None] * outs.double()).sum(0)
    # A weight is off by the rounding of an exponent as large as the lses lie apart.
    largest = lses.nan_to_num(0, neginf=0).abs().max()
    sizes = (weights[..., None] * outs.double().abs()).sum(0)
    assert ((out - wanted).abs() <= 2**-24 * (8 + 4 * largest) * sizes).all()
    bound = 2**-24 * (8 + 2 * largest)
    torch.testing.assert_close(lse.double(), lses.double().logsumexp(0), rtol=0, atol=bound.item())
    half, _ = flash_attn_combine(outs, lses, out_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, wanted.bfloat16(), rtol=2**-7, atol=1e-6)
    own = torch.empty_like(out)
    assert flash_attn_combine(outs, lses, own)[0].data_ptr() == own.data_ptr()
    assert own.equal(out)
    with pytest.raises(InvalidArgument, match="out_dtype"):
        flash_attn_combine(outs, lses, own, torch.float16)


def test_parts_of_a_cache_combined() -> None:
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_combine, flash_attn_func

    rng = np.random.default_rng(8)
    q = tensor(rng, "f32", 2, 3, HEADS, HEAD_DIM)
    k, v = (tensor(rng, "f32", 2, 50, KV_HEADS, HEAD_DIM) for _ in range(2))
    parts = [
        flash_attn_func(q, k[:, part], v[:, part], return_attn_probs=True)[:2]
        for part in (slice(0, 17), slice(17, 50))
    ]
    outs, lses = (torch.stack(x) for x in zip(*parts, strict=True))
    out, lse = flash_attn_combine(outs, lses.transpose(-1, -2))
    for b in range(2):
        check_sequence((out[b], lse[b].T), q[b], k[b], v[b], "f32")


def test_compiled_without_a_graph_break() -> None:
    import torch

    from metal_sdpa.integrations import flash_attn

    ends = torch.tensor([0, 2, 6], dtype=torch.int32)
    lengths = torch.tensor([1, 4], dtype=torch.int32)

    def dense(q: Any, k: Any, v: Any) -> Any:
        call = flash_attn.flash_attn_func
        parts = [
            call(q, k[:, part], v[:, part], return_attn_probs=True)[:2]
            for part in (slice(0, 1), slice(1, 3))
        ]
        outs, lses = (torch.stack(x) for x in zip(*parts, strict=True))
        return flash_attn.flash_attn_combine(outs, lses.transpose(-1, -2))

    def packed(q: Any, k: Any, v: Any) -> Any:
        rows = (x.flatten(0, 1) for x in (q, k, v))
        return flash_attn.flash_attn_varlen_func(*rows, ends, ends, 4, 4, causal=True)

    def cached(q: Any, k: Any, v: Any) -> Any:
        cache = torch.zeros(2, 9, 2, KV_HEADS, HEAD_DIM)
        out = flash_attn.flash_attn_with_kvcache(
            q,
            cache[:, :, 0],
            cache[:, :, 1],
            k,
            v,
            cache_seqlens=lengths,
            cache_leftpad=torch.tensor([1, 2]),
            causal=True,
            window_size=(4, 0),
        )
        return out, cache

    rng = np.random.default_rng(4)
    arguments = [tensor(rng, "f32", 2, 3, n, HEAD_DIM) for n in (HEADS, KV_HEADS, KV_HEADS)]
    for function in (dense, packed, cached):
        want = function(*arguments)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        got = compiled(*arguments)
        if function is packed:
            assert got.equal(want)
            continue
        assert [x.equal(y) for x, y in zip(got, want, strict=True)] == [True, True]


# The arguments of flash-attn 2.8, in their order.
SIGNATURES = {
    "flash_attn_func": "q k v dropout_p softmax_scale causal window_size softcap alibi_slopes "
    "deterministic return_attn_probs",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p "
    "softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs "
    "block_table",
    "flash_attn_with_kvcache": "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens "
    "cache_batch_idx cache_leftpad block_table softmax_scale causal window_size softcap "
    "rotary_interleaved alibi_slopes num_splits return_softmax_lse",
    "flash_attn_combine": "out_partial lse_partial out out_dtype",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    from metal_sdpa.integrations import flash_attn

    parameters = inspect.signature(getattr(flash_attn, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == SIGNATURES[name].split()


def test_what_is_refused() -> None:
    import torch

    from metal_sdpa.integrations import flash_attn

    q = torch.ones(1, 3, 2, 8)
    packed, ends = q[0], torch.tensor([0, 3])
    dense, varlen = flash_attn.flash_attn_func, flash_attn.flash_attn_varlen_func
    cached = flash_attn.flash_attn_with_kvcache
    for call in (
        lambda **options: dense(q, q, q, **options),
        lambda **options: varlen(packed, packed, packed, ends, ends, 3, 3, **options),
    ):
        with pytest.raises(Unsupported, match=r"dropout_p: 0\.1, takes 0"):
            call(dropout_p=0.1)
        for name in ("qv", "q_descale", "k_descale", "v_descale"):
            with pytest.raises(Unsupported, match=f"{name}: is given"):
                call(**{name: torch.ones(1)})
            call(**{name: None})
        with pytest.raises(Unsupported, match="attention_chunk: is given, takes 0"):
            call(attention_chunk=64)
        call(attention_chunk=0, deterministic=True, num_splits=4, pack_gqa=True, sm_margin=2)
        with pytest.raises(TypeError, match="unexpected keyword argument 'sofcap'"):
            call(sofcap=1.0)
        with pytest.raises(InvalidArgument, match="s_aux and learnable_sink"):
            call(s_aux=torch.ones(2), learnable_sink=torch.ones(2))
        with pytest.raises(InvalidArgument, match="window_size"):
            call(window_size=(1, 2, 3))
        with pytest.raises(InvalidArgument, match="softcap"):
            call(softcap=-1.0)
    for name in ("rotary_cos", "rotary_sin", "rotary_seqlens", "cu_seqlens_k_new", "qv"):
        with pytest.raises(Unsupported, match=f"flash_attn_with_kvcache: {name}: is given"):
            cached(q, q, q, **{name: torch.ones(3, 4)})
    with pytest.raises(Unsupported, match="requires gradients"):
        dense(q.clone().requires_grad_(), q, q)
    with pytest.raises(UnsupportedDType):
        dense(*(x.double() for x in (q, q, q)))
    with pytest.raises(InvalidArgument, match=r"flash_attn_func: k: shape \(3, 2, 8\), takes 4"):
        dense(q, packed, q)
    with pytest.raises(InvalidArgument, match="cu_seqlens_k: is None"):
        varlen(packed, q, q, ends, None, 3, 3)
    with pytest.raises(Unsupported, match="seqused_q"):
        varlen(packed, q, q, ends, ends, 3, 3, seqused_q=ends[1:], block_table=ends[:1, None])


def test_a_refused_append_writes_nothing() -> None:
    import torch

    from metal_sdpa.integrations.flash_attn import flash_attn_with_kvcache as cached

    q, new = torch.ones(2, 1, 2, 8), torch.ones(2, 1, 2, 8)
    k, v = torch.zeros(2, 2, 4, 2, 8)
    table = torch.tensor([[0], [1]], dtype=torch.int32)
    for error, text, options in (
        (InvalidArgument, "positions", {"cache_seqlens": 4}),
        (InvalidArgument, "cache_seqlens: is None", {}),
        (InvalidArgument, "cache_seqlens: -1, takes 0", {"cache_seqlens": -1}),
        (InvalidArgument, "takes 0 to 1", {"cache_seqlens": 1, "block_table": table + 1}),
        (InvalidArgument, "takes 0 to 1", {"cache_seqlens": 1, "cache_batch_idx": table[:, 0] + 1}),
        (
            InvalidArgument,
            "cache_batch_idx: is given",
            {"cache_seqlens": 1, "block_table": table, "cache_batch_idx": table[:, 0]},
        ),
        (Unsupported, "rotary_cos", {"cache_seqlens": 1, "rotary_cos": torch.ones(4, 2)}),
    ):
        with pytest.raises(error, match=text):
            cached(q, k, v, new, new, **options)
        assert not k.any()
        assert not v.any()
    assert cached(q[:0], k, v, new[:0], new[:0], cache_seqlens=1).shape == (0, 1, 2, 8)
    with pytest.raises(InvalidArgument, match=r"cache_leftpad: shape \(1,\), takes \(2,\)"):
        cached(q, k, v, cache_leftpad=table[0], block_table=table)
    with pytest.raises(InvalidArgument, match="k, v: one is None"):
        cached(q, k, v, new, cache_seqlens=1)
    with pytest.raises(InvalidArgument, match="k_cache: batch 1, but q has 2"):
        cached(q, k[:1], v[:1], cache_seqlens=1)
