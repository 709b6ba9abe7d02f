"""enable(): torch's own function sent here, and what torch is left with."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

pytestmark = pytest.mark.frameworks


def close(got: Any, want: Any, dtype: str) -> None:
    import torch

    assert got.dtype == getattr(torch, dtype)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.fixture
def routing() -> Any:
    """The module, with nothing enabled and nothing counted before and after."""
    import torch

    from metal_sdpa.integrations import torch as ours

    original = torch._C._nn.scaled_dot_product_attention
    assert torch.nn.functional.scaled_dot_product_attention is original
    ours.reset_stats()
    yield ours
    ours.disable()
    assert not ours.is_enabled()
    assert torch.nn.functional.scaled_dot_product_attention is original


def attend(*arguments: Any, **options: Any) -> Any:
    """What a model does: looks the name up as it calls."""
    import torch

    return torch.nn.functional.scaled_dot_product_attention(*arguments, **options)


def test_enabled_and_disabled(routing: Any) -> None:
    import torch

    q = torch.randn(1, 2, 3, 8)
    attend(q, q, q)
    assert routing.stats() == routing.Stats()
    routing.enable()
    routing.enable()
    assert attend(q, q, q).equal(routing.scaled_dot_product_attention(q, q, q))
    routing.disable()
    attend(q, q, q)
    assert routing.stats() == routing.Stats(taken=1)
    routing.disable()


def test_contexts_nest_and_overlap(routing: Any) -> None:
    first, second = routing.enabled(), routing.enabled()
    first.__enter__()
    with routing.enabled():
        second.__enter__()
    first.__exit__(None, None, None)  # not in the order of entering
    assert routing.is_enabled()
    routing.disable()  # of nothing: the second context goes on
    assert routing.is_enabled()
    second.__exit__(None, None, None)
    assert not routing.is_enabled()
    with pytest.raises(KeyError), routing.enabled():
        raise KeyError
    assert not routing.is_enabled()
    with routing.enabled():
        routing.enable()
    assert routing.is_enabled()


def test_somebody_else_replaces_the_function_too(
    routing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, or over ours; in either case nobody's function is lost and none calls itself."""
    import torch

    functional = torch.nn.functional
    q = torch.randn(1, 2, 3, 8)
    calls = []

    def wrapping(inner: Any) -> Any:
        def theirs(*arguments: Any, **options: Any) -> Any:
            calls.append(arguments)
            return inner(*arguments, **options)

        return theirs

    with monkeypatch.context() as patch:
        earlier = wrapping(functional.scaled_dot_product_attention)
        patch.setattr(functional, "scaled_dot_product_attention", earlier)
        with routing.enabled():
            attend(q, q, q)
            attend(q.double(), q.double(), q.double())
        assert functional.scaled_dot_product_attention is earlier
    assert not calls
    with monkeypatch.context() as patch:
        routing.enable()
        later = wrapping(functional.scaled_dot_product_attention)
        patch.setattr(functional, "scaled_dot_product_attention", later)
        routing.disable()
        assert functional.scaled_dot_product_attention is later
        attend(q, q, q)  # through theirs and ours to torch
        taken = routing.stats().taken
        with routing.enabled():
            attend(q, q, q)
        assert (len(calls), routing.stats().taken) == (2, taken + 1)
    # Ours was wrapped as it was disabled, and then torch's own was put back by hand.
    routing.enable()
    functional.scaled_dot_product_attention = wrapping(functional.scaled_dot_product_attention)
    routing.disable()
    functional.scaled_dot_product_attention = torch._C._nn.scaled_dot_product_attention
    with routing.enabled():
        attend(q, q, q)
    assert routing.stats().taken == taken + 2


def fallbacks() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls that torch takes and we do not, by a part of the reason."""
    import torch

    q = torch.randn(2, 4, 5, 16)
    k = torch.randn(2, 4, 7, 16)

    class Own(torch.Tensor):
        pass

    return {
        "dtype torch.float64": ((q.double(), k.double(), k.double()), {}),
        "requires gradients": ((q.clone().requires_grad_(), k, k), {}),
        "tensor requires gradients": (
            (q, k, k),
            {"attn_mask": torch.zeros(5, 7, requires_grad=True)},
        ),
        "a Own, takes plain tensors": ((q.as_subclass(Own), k, k), {}),
        "meta": (tuple(x.to("meta") for x in (q, k, k)), {}),
        "attn_mask: is given, but is_causal": (
            (q, k, k),
            {"attn_mask": torch.randn(5, 7), "is_causal": True},
        ),
        "takes 0: this is for inference": ((q, k, k), {"dropout_p": 1e-30}),
    }


@pytest.mark.parametrize("number", range(7))
def test_what_torch_is_left_with(number: int, routing: Any) -> None:
    import torch

    reason, (arguments, options) = list(fallbacks().items())[number]
    want = attend(*arguments, **options)
    assert reason in routing.why_not(*arguments, **options)
    with routing.enabled():
        got = attend(*arguments, **options)
    assert type(got) is type(want)
    assert got.requires_grad == want.requires_grad
    if not got.is_meta:
        torch.testing.assert_close(got, want)
        if type(got) is torch.Tensor and not options.get("dropout_p"):
            compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
            with routing.enabled():
                torch.testing.assert_close(compiled(*arguments, **options), want)
    stats = routing.stats()
    assert (stats.taken, list(stats.fell_back.values())) == (0, [1])
    assert reason in stats.last_reason
    assert stats.last_reason in stats.fell_back


def test_gradients_are_torchs(routing: Any) -> None:
    import torch

    q = torch.randn(2, 4, 5, 16, requires_grad=True)
    k = torch.randn(2, 4, 7, 16)
    (want,) = torch.autograd.grad(attend(q, k, k).square().sum(), q)

    def compiled(q: Any) -> Any:
        return attend(q * 1, k, k).square().sum()

    with routing.enabled():
        (got,) = torch.autograd.grad(attend(q, k, k).square().sum(), q)
        traced = torch.compile(compiled, backend="aot_eager", fullgraph=True)(q)
        (got_traced,) = torch.autograd.grad(traced, q)
        got_func = torch.func.grad(compiled)(q.detach())
        with torch.no_grad():
            assert routing.why_not(q, k, k) is None
            attend(q, k, k)
    assert routing.stats().taken == 1
    for x in (got, got_traced, got_func):
        torch.testing.assert_close(x, want)


def test_torchs_errors_stay_torchs(routing: Any) -> None:
    import torch

    q = torch.randn(1, 2, 3, 8)
    with routing.enabled():
        for arguments, options in (
            ((q, q[..., :4], q), {}),
            ((q, q.half(), q), {}),
            ((q, q, q), {"attn_mask": torch.zeros(3, 4)}),
        ):
            with pytest.raises(RuntimeError):
                attend(*arguments, **options)
            assert routing.why_not(*arguments, **options) is not None
        with pytest.raises(TypeError):
            attend(q, q, q, unknown=1)
        with pytest.raises(TypeError):
            attend(q, q, q, None, 0.0, False, 0.5)  # scale is given by its name


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, of vmap
def test_those_who_watch_torch_still_see(routing: Any) -> None:
    """Modes, traces and transforms see torch's operator, or a result that is no constant."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.operators: list[str] = []

        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.operators.append(str(op))
            return op(*args, **(kwargs or {}))

    q, other = torch.randn(2, 1, 2, 3, 8)

    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return attend(x, x, x)

    want = attend(other, other, other)
    with routing.enabled():
        with Watching() as watching:
            attend(q, q, q)
            routing.scaled_dot_product_attention(q, q, q)
        assert "scaled_dot_product" in watching.operators[0]
        assert watching.operators[-1] == "metal_sdpa.sdpa.default"
        traced = make_fx(Module())(q)
        exported = torch.export.export(Module(), (q,)).module()
        strict = torch.export.export(Module(), (q,), strict=True).module()
        symbolic = torch.fx.symbolic_trace(Module())
        batched = torch.func.vmap(Module())(torch.stack((q, other)))
        functional = torch.func.functionalize(Module())(other)
        close(batched[1], want, "float32")
        close(functional, want, "float32")
    for program in (traced, exported, strict, symbolic):
        assert "metal_sdpa" not in str(program.graph)
        close(program(other), want, "float32")
    ours = make_fx(lambda x: routing.scaled_dot_product_attention(x, x, x))(q)
    assert "metal_sdpa" in str(ours.graph)
    close(ours(other), want, "float32")


def test_script(routing: Any) -> None:
    import torch

    def attention(x):  # type: ignore[no-untyped-def]
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    q = torch.randn(1, 2, 3, 8)
    with routing.enabled(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(attention)
    close(scripted(q), attend(q, q, q), "float32")


def test_modules_of_torch(routing: Any) -> None:
    import torch

    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            want, _ = attention(x, x, x, need_weights=False)
            with routing.enabled():
                got, _ = attention(x, x, x, need_weights=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    close(got, want, "float32")
    assert routing.stats().taken == 1


def test_autocast(routing: Any) -> None:
    import torch

    q, k = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 7, 16)
    mask = torch.randn(5, 7)
    low = [x.bfloat16() for x in (q, k, k)]
    want = routing.scaled_dot_product_attention(*low, attn_mask=mask.bfloat16())
    calls: list[Any] = [routing.scaled_dot_product_attention]
    with routing.enabled():
        calls.append(attend)
        calls.append(torch.compile(attend, backend="aot_eager", fullgraph=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert attend(q.double(), k.double(), k.double()).dtype == torch.float64
            for call in calls:
                assert call(q, k.half(), k, attn_mask=mask).dtype == torch.bfloat16
                assert call(q, k, k, attn_mask=mask).equal(want)


def test_compiled_code_follows(routing: Any) -> None:
    import torch

    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph

    q = torch.randn(1, 2, 3, 8)
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    for _ in range(2):
        compiled(q, q, q)
        with routing.enabled():
            compiled(q, q, q)
    assert ["metal_sdpa" in graph for graph in graphs] == [False, True]


def test_counts_from_threads(routing: Any) -> None:
    import threading

    import torch

    q = torch.randn(1, 2, 3, 8)
    start = threading.Barrier(4)

    def work(x: Any) -> None:
        start.wait()
        for _ in range(50):
            with routing.enabled():
                attend(x, x, x)

    threads = [threading.Thread(target=work, args=(x,)) for x in (q, q, q.double(), q)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = routing.stats()
    assert (stats.taken, sum(stats.fell_back.values())) == (150, 50)
    assert not routing.is_enabled()


def test_reasons_stay_few(routing: Any) -> None:
    import torch

    with routing.enabled():
        for n in range(1, 100):
            q, k = torch.randn(1, 1, 1, n), torch.randn(1, 1, 1, n + 1)
            with pytest.raises(RuntimeError):
                attend(q, k, k)
    counts = routing.stats().fell_back
    assert (len(counts), sum(counts.values())) == (65, 99)
    assert counts["other reasons"] == 35


def test_pickled_and_copied(routing: Any) -> None:
    import copy
    import pickle

    import torch

    q = torch.randn(1, 2, 3, 8)
    with routing.enabled():
        held = copy.deepcopy(torch.nn.functional.scaled_dot_product_attention)
    held = pickle.loads(pickle.dumps(held))
    held(q, q, q)  # torch's again
    assert routing.stats() == routing.Stats()
