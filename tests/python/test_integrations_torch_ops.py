"""torch.ops.metal_sdpa under torch's own checks, and torch.compile without a graph break."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import metal_sdpa

pytestmark = pytest.mark.frameworks


def operator_calls() -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, arguments and options of each call that is checked."""
    import torch

    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    q, k, v = random(2, 4, 5, 16), random(2, 2, 9, 16), random(2, 2, 9, 8)
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    ends_q, ends_k, lengths = (
        torch.tensor([0, 2, 10]),
        torch.tensor([0, 9, 18]),
        torch.tensor([9, 4]),
    )
    pages = [x.transpose(1, 2).reshape(6, 3, 2, -1) for x in (k, v)]
    table = torch.tensor([[5, 0, 2], [1, 3, 4]])
    head = {"sinks": random(4), "alibi_slopes": random(4).abs()}
    scores = {"causal": True, "window": [3, -1], "softcap": 2.0, "return_lse": True}
    out, packed_out = torch.zeros(2, 4, 5, 8), torch.zeros(10, 4, 8)
    rows_first = q.transpose(1, 2).contiguous().transpose(1, 2)
    states, lses = random(3, 2, 5, 4, 8), random(3, 2, 5, 4)
    return {
        "sdpa": ("sdpa", (q, k, v), {"mask": random(5, 9), "q_start": 1, **scores, **head}),
        "rows first": ("sdpa", (rows_first, k, v), {"kv_lengths": lengths}),
        "into out": ("sdpa.out", (q, k, v), {"q_starts": lengths, "causal": True, "out": out}),
        "packed": ("sdpa_varlen", (*rows, ends_q, ends_k), {"kv_lengths": lengths, **scores}),
        "packed into out": ("sdpa_varlen.out", (*rows, ends_q, ends_k), {"out": packed_out}),
        "paged": ("sdpa_paged", (rows_first, *pages, table, lengths), scores),
        "paged, indptr": (
            "sdpa_paged",
            (rows[0], *pages, table.flatten(), lengths),
            {"indptr": torch.tensor([0, 3, 6]), "cu_seqlens_q": ends_q},
        ),
        "paged, not causal": (
            "sdpa_paged",
            (rows_first, *pages, table, lengths),
            {"causal": False},
        ),
        "paged into out": ("sdpa_paged.out", (q, *pages, table, lengths), {"out": out, **scores}),
        "write_kv": (
            "write_kv",
            (k.transpose(1, 2), v.transpose(1, 2), random(3, 16, 2, 16), random(3, 16, 2, 8)),
            {"block_table": torch.tensor([[2], [0]]), "positions": torch.tensor([3, 7])},
        ),
        "merge_states": ("merge_states", (states, lses), {}),
        "merge_states into out": ("merge_states.out", (states, lses), {"out": states[0].clone()}),
    }


OPERATOR_CALLS = (
    "sdpa",
    "rows first",
    "into out",
    "packed",
    "packed into out",
    "paged",
    "paged, indptr",
    "paged, not causal",
    "paged into out",
    "write_kv",
    "merge_states",
    "merge_states into out",
)


def operator(name: str) -> Any:
    import torch

    import metal_sdpa.integrations.torch

    assert metal_sdpa.integrations.torch
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.metal_sdpa, packet), overload or "default")


@pytest.mark.parametrize("case", OPERATOR_CALLS)
def test_opcheck(case: str) -> None:
    import torch

    assert tuple(operator_calls()) == OPERATOR_CALLS
    name, arguments, options = operator_calls()[case]
    results = torch.library.opcheck(operator(name), arguments, options)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", [x for x in OPERATOR_CALLS if x != "write_kv"])
def test_operators_give_what_the_functions_give(case: str) -> None:
    name, arguments, options = operator_calls()[case]
    got = operator(name)(*arguments, **options)
    function = getattr(metal_sdpa, name.partition(".")[0])
    if "q_starts" in options:
        options["q_start"] = options.pop("q_starts")
    if "indptr" in options:
        table = (options.pop("indptr"), arguments[3])
        arguments = (*arguments[:3], table, arguments[4])
    out = options.pop("out", None)
    want = function(*arguments, **options)
    if not isinstance(want, tuple):
        want = (want, got[1] if out is None else got)
    if out is not None:
        got = (out, got)
    assert got[0].any()
    for x, y in zip(got, want, strict=True):
        assert x.equal(y)
    if case == "packed":
        assert got[1].shape == (4, 10)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (2, 0, 1)])
@pytest.mark.parametrize(
    "shape",
    [(2, 4, 3), (1, 4, 3), (2, 1, 3), (2, 4, 1), (1, 1, 3), (0, 4, 3), (2, 4, 0), (3, 3, 3)],
)
@pytest.mark.parametrize("how", ["packed", "padded", "expanded"])
def test_fake_strides(order: tuple[int, ...], shape: tuple[int, ...], how: str) -> None:
    """Fake and real results lie alike in memory, whatever the order of q's axes."""
    import torch
    from torch._subclasses import FakeTensorMode

    extra = 2 if how == "padded" else 0
    memory = torch.zeros(*(shape[axis] + extra for axis in order), 8)
    q = memory.permute(*(order.index(axis) for axis in range(3)), 3)
    q = q[tuple(slice(n) for n in shape)]
    if how == "expanded":
        q = q[:, :, :1].expand(q.shape) if shape[2] else q
    k, v = torch.zeros(shape[0], shape[1], 4, 8), torch.zeros(shape[0], shape[1], 4, 6)
    real = operator("sdpa")(q, k, v, return_lse=True)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        fake = operator("sdpa")(*fakes, return_lse=True)
    for x, y in zip(real, fake, strict=True):
        assert (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)
    packed = q[0] if shape[0] else q.new_empty(shape[1], shape[2], 8)
    ends = torch.tensor([0, len(packed)])
    heads = packed.shape[1]
    keys = (torch.zeros(0, max(heads, 1), 8), torch.zeros(0, max(heads, 1), 6))
    if heads:
        real = operator("sdpa_varlen")(packed, *keys, ends, torch.tensor([0, 0]))
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(x) for x in (packed, *keys, ends, ends)]
            fake = operator("sdpa_varlen")(*fakes)
        assert (real[0].shape, real[0].stride()) == (fake[0].shape, fake[0].stride())


def test_write_kv_is_a_write_to_autograd() -> None:
    """A view that was saved for a backward pass is known to have changed."""
    import torch

    _, arguments, options = operator_calls()["write_kv"]
    versions = [x._version for x in arguments[2:]]
    operator("write_kv")(*arguments, **options)
    assert [x._version for x in arguments[2:]] == [n + 1 for n in versions]
    assert arguments[2][2, 3:12].equal(arguments[0][0])
    assert arguments[3][0, 7:16].equal(arguments[1][1])
    with torch.inference_mode():
        caches = [x.clone() for x in arguments[2:]]
        operator("write_kv")(*arguments[:2], *caches, **options)


@pytest.mark.parametrize("case", OPERATOR_CALLS)
def test_operators_refuse_gradients(case: str) -> None:
    import torch

    name, arguments, options = operator_calls()[case]
    arguments[0].requires_grad_()
    with pytest.raises(metal_sdpa.Unsupported, match="requires gradients"):
        operator(name)(*arguments, **options)
    with torch.no_grad():
        operator(name)(*arguments, **options)
    refused: list[BaseException] = []

    def call(*given: Any) -> Any:
        return operator(name)(*given, **options)

    with pytest.raises(Exception, match="requires gradients") as caught:
        torch.compile(call, backend="aot_eager", fullgraph=True)(*arguments)
    refused.append(caught.value)
    assert refused


def compiled_calls() -> dict[str, Any]:
    import torch

    from metal_sdpa.integrations import torch as ours

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    q, k, v = random(2, 4, 5, 16), random(2, 4, 9, 16), random(2, 4, 9, 16)
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    ends_q, ends_k = torch.tensor([0, 2, 10]), torch.tensor([0, 9, 18])

    def cached(q: Any, k: Any, v: Any) -> Any:
        cache = torch.zeros(2, 12, 2, 4, 16)
        k_cache, v_cache = cache.unbind(2)
        heads_last = (x.transpose(1, 2) for x in (k, v))
        ours.write_kv(*heads_last, k_cache, v_cache, positions=[1, 3])
        lengths = torch.tensor([10, 12])
        table = torch.tensor([[0], [1]])
        return ours.sdpa_paged(q, k_cache, v_cache, table, lengths, window=5), cache

    def merged(q: Any, k: Any, v: Any) -> Any:
        parts = [
            ours.sdpa(q, k[:, :, part], v[:, :, part], return_lse=True)
            for part in (slice(0, 4), slice(4, 9))
        ]
        return ours.merge_states([out for out, _ in parts], [lse for _, lse in parts])

    return {
        "torch's meaning": lambda: (ours.scaled_dot_product_attention, (q, k, v)),
        "three dimensions": lambda: (
            lambda q, k, v: ours.scaled_dot_product_attention(q[0], k[0], v[0], is_causal=True),
            (q, k, v),
        ),
        "lengths": lambda: (
            lambda q, k, v: ours.sdpa(
                q, k, v, causal=True, window=(4, None), kv_lengths=[7, 9], q_start=[2, 3]
            ),
            (q.transpose(1, 2).contiguous().transpose(1, 2), k, v),
        ),
        "one length": lambda: (
            lambda q, k, v: ours.sdpa(q, k, v, kv_lengths=7, return_lse=True),
            (q, k, v),
        ),
        "into out": lambda: (
            lambda q, k, v: ours.sdpa(q, k, v, out=torch.zeros_like(q), return_lse=True),
            (q, k, v),
        ),
        "varlen_attn": lambda: (
            lambda q, k, v: ours.varlen_attn(q, k, v, ends_q, ends_k, 8, 9, window_size=(-1, 0)),
            tuple(rows),
        ),
        "cache": lambda: (cached, (q, k[:, :, :9], v)),
        "merged": lambda: (merged, (q, k, v)),
    }


@pytest.mark.parametrize("case", list(range(8)))
def test_compiled_without_a_graph_break(case: int) -> None:
    import torch
    from torch.utils._pytree import tree_leaves

    function, arguments = list(compiled_calls().values())[case]()
    want = tree_leaves(function(*arguments))
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got = tree_leaves(compiled(*arguments))
    for x, y in zip(got, want, strict=True):
        assert x.equal(y)
        assert x.stride() == y.stride()


def test_lengths_that_vary_are_compiled_once() -> None:
    import torch

    from metal_sdpa.integrations import torch as ours

    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def call(q: Any, k: Any) -> Any:
        return ours.scaled_dot_product_attention(q, k, k, is_causal=True)

    compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=True)
    for length in (3, 4, 7, 12):
        q, k = torch.randn(1, 2, length, 16), torch.randn(1, 2, length + 2, 16)
        assert compiled(q, k).equal(call(q, k))
    assert len(graphs) == 1


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_no_key_is_refused_compiled_too(window: int) -> None:
    """-1 to the left, which W - 1 would be, is unlimited."""
    import torch

    from metal_sdpa.integrations import torch as ours

    q = torch.ones(1, 2, 3, 8)
    call = functools.partial(ours.sdpa, window=window)
    for attend in (call, torch.compile(call, backend="eager", fullgraph=True)):
        with pytest.raises(metal_sdpa.InvalidArgument, match="sdpa: window: "):
            attend(q, q, q)
