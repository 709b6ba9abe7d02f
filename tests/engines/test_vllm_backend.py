"""The backend called as vLLM calls it, with batches that tiny engines do not reach."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.update(HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import (
    CrossAttentionSpec,
    EncoderOnlyAttentionSpec,
    FullAttentionSpec,
)

import metal_sdpa
import vllm_models
from metal_sdpa.integrations import vllm as plugin
from metal_sdpa.integrations.vllm.backend import (
    MetalSdpaBackend,
    MetalSdpaImpl,
    MetalSdpaMetadataBuilder,
    split_pages,
)
from vllm_switch import attend_float64

HEADS, KV_HEADS, DIM, PAGE, N_PAGES = 4, 2, 32, 16, 40
TOLERANCE = {torch.float32: 64 * 2.0**-24, torch.float16: 4 * 2.0**-11, torch.bfloat16: 4 * 2.0**-8}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = vllm_models.make("llama", tmp_path_factory.mktemp("models"))
    return EngineArgs(
        str(path), skip_tokenizer_init=True, dtype="float32", enforce_eager=True
    ).create_engine_config()


def make_impl(config: Any, **options: Any) -> MetalSdpaImpl:
    options = {
        "num_heads": HEADS,
        "head_size": DIM,
        "scale": 0.4,
        "num_kv_heads": KV_HEADS,
        "alibi_slopes": None,
        "sliding_window": None,
        "kv_cache_dtype": "auto",
        **options,
    }
    with set_current_vllm_config(config):
        return MetalSdpaImpl(**options)


class Batch:
    """Sequences with random rows, in shuffled pages of a cache whose every other place is NaN."""

    def __init__(
        self,
        lengths: list[int],
        queries: list[int],
        dtype: torch.dtype = torch.float32,
        value_dim: int = DIM,
    ) -> None:
        generator = torch.Generator().manual_seed(3)

        def rows(*shape: int) -> torch.Tensor:
            return (2 * torch.randn(*shape, generator=generator)).to(dtype)

        self.lengths, self.queries = lengths, queries
        total = sum(queries)
        # As vLLM's: q, k and v are pieces of one projection's rows.
        packed = rows(total + 3, HEADS * DIM + KV_HEADS * (DIM + value_dim))
        q, k, v = packed.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * value_dim], -1)
        self.q = q.unflatten(-1, (HEADS, DIM))
        self.k = k.unflatten(-1, (KV_HEADS, DIM))
        self.v = v.unflatten(-1, (KV_HEADS, value_dim))
        self.output = torch.full((total + 3, HEADS, value_dim), 7.0, dtype=dtype)
        self.cache = torch.full(
            (N_PAGES, KV_HEADS, PAGE, DIM + value_dim), float("nan"), dtype=dtype
        )
        self.starts = torch.tensor([0, *torch.tensor(queries).cumsum(0)], dtype=torch.int32)
        pages = torch.randperm(N_PAGES, generator=generator, dtype=torch.int32)
        self.table = torch.full((len(lengths), 8), -1, dtype=torch.int32)
        taken = 0
        for b, length in enumerate(lengths):
            count = -(-length // PAGE)
            self.table[b, :count] = pages[taken : taken + count]
            taken += count
        self.keys = [rows(length, KV_HEADS, DIM) for length in lengths]
        self.values = [rows(length, KV_HEADS, value_dim) for length in lengths]
        for b, length in enumerate(lengths):
            new = slice(int(self.starts[b]), int(self.starts[b + 1]))
            count = min(length, queries[b])
            if count:
                self.keys[b][length - count :] = self.k[new]
                self.values[b][length - count :] = self.v[new]

    def slots(self, b: int, begin: int, end: int) -> torch.Tensor:
        at = torch.arange(begin, end)
        return self.table[b].long()[at // PAGE] * PAGE + at % PAGE

    def fill(self, impl: MetalSdpaImpl) -> None:
        """Earlier tokens one call each sequence, then those of the step in one."""
        for b, (length, new) in enumerate(zip(self.lengths, self.queries, strict=True)):
            slots = self.slots(b, 0, length - new)
            earlier = slice(0, length - new)
            impl.do_kv_cache_update(
                None, self.keys[b][earlier], self.values[b][earlier], self.cache, slots
            )
        impl.do_kv_cache_update(None, self.k, self.v, self.cache, self.step_slots())

    def step_slots(self) -> torch.Tensor:
        new = [
            self.slots(b, length - count, length)
            for b, (length, count) in enumerate(zip(self.lengths, self.queries, strict=True))
        ]
        return torch.cat([*new, torch.tensor([-1, -1])])

    def common(self, causal: bool | torch.Tensor = True) -> CommonAttentionMetadata:
        return CommonAttentionMetadata(
            query_start_loc=self.starts,
            query_start_loc_cpu=self.starts,
            seq_lens=torch.tensor(self.lengths, dtype=torch.int32),
            num_reqs=len(self.lengths),
            num_actual_tokens=sum(self.queries),
            max_query_len=max(self.queries),
            max_seq_len=max(self.lengths),
            block_table_tensor=self.table,
            slot_mapping=self.step_slots(),
            causal=causal,
        )

    def require_float64(self, causal: bool | list[bool] = True, **options: Any) -> None:
        tolerance = TOLERANCE[self.q.dtype]
        kinds = [causal] * len(self.lengths) if isinstance(causal, bool) else causal
        for b, kind in enumerate(kinds):
            rows = slice(int(self.starts[b]), int(self.starts[b + 1]))
            expected = attend_float64(
                self.q[rows], self.keys[b], self.values[b], scale=0.4, causal=kind, **options
            )
            error = (self.output[rows].double() - expected).abs()
            if error.numel():
                assert float((error / expected.abs().amax(-1, keepdim=True)).max()) <= tolerance
        assert bool((self.output[int(self.starts[-1]) :] == 7).all())


def spec(cls: type = FullAttentionSpec, dtype: torch.dtype = torch.float32) -> Any:
    return cls(block_size=PAGE, num_kv_heads=KV_HEADS, head_size=DIM, dtype=dtype)


def build(config: Any, common: CommonAttentionMetadata, kv_spec: Any = None) -> Any:
    with set_current_vllm_config(config):
        builder = MetalSdpaMetadataBuilder(kv_spec or spec(), [], config, torch.device("cpu"))
    return builder.build(0, common)


def run(config: Any, batch: Batch, causal: bool | torch.Tensor = True, **options: Any) -> Any:
    impl = make_impl(config, **options)
    batch.fill(impl)
    step = build(config, batch.common(causal))
    result = impl.forward(None, batch.q, batch.k, batch.v, batch.cache, step, batch.output)
    assert result is batch.output
    return step


def count_prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The windows of the calls that are prepared from now on."""
    windows = []
    original = metal_sdpa.prepare

    def counted(*arguments: Any, **options: Any) -> Any:
        windows.append(options["window"])
        return original(*arguments, **options)

    monkeypatch.setattr("metal_sdpa.integrations.vllm.backend.prepare", counted)
    return windows


MIXED = ([1, 40, 100, 17, 16, 33], [1, 1, 30, 17, 1, 2])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [None, 1, 7, 64])
def test_a_mixed_batch_is_one_call(
    config: Any, dtype: torch.dtype, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_prepared(monkeypatch)
    batch = Batch(*MIXED, dtype)
    run(config, batch, sliding_window=window)
    assert len(calls) == 1
    batch.require_float64(window=-1 if window is None else window)


def test_a_step_is_prepared_once_for_all_layers_alike(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_prepared(monkeypatch)
    batch = Batch(*MIXED)
    full, narrow = make_impl(config), make_impl(config, sliding_window=5)
    batch.fill(full)
    step = build(config, batch.common())
    for impl, window in ((narrow, 5), (full, -1), (full, -1), (narrow, 5)):
        batch.output[: int(batch.starts[-1])] = float("nan")
        impl.forward(None, batch.q, batch.k, batch.v, batch.cache, step, batch.output)
        batch.require_float64(window=window)
    assert calls == [(4, 0), None]


def test_layers_share_a_plan_and_no_sinks_or_slopes(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_prepared(monkeypatch)
    batch = Batch(*MIXED)
    batch.fill(make_impl(config))
    step = build(config, batch.common())
    for layer in range(3):
        sinks = torch.tensor([0.5, -1.0, 2.0, 3.0]) * layer
        slopes = [0.5 / (layer + 1), 0.25, 0.125, 0.1 * layer]
        impl = make_impl(config, sinks=sinks, alibi_slopes=slopes)
        impl.forward(None, batch.q, batch.k, batch.v, batch.cache, step, batch.output)
        batch.require_float64(sinks=sinks, slopes=torch.tensor(slopes))
    assert len(calls) == 1


def test_bad_page_numbers_and_slots_raise(config: Any) -> None:
    batch = Batch(*MIXED)
    impl = make_impl(config)
    batch.fill(impl)
    step = build(config, batch.common())
    step.slot_mapping = torch.tensor([N_PAGES * PAGE])
    with pytest.raises(metal_sdpa.InvalidArgument, match="slot_mapping"):
        impl.forward(None, batch.q, batch.k, batch.v, batch.cache, step, batch.output)
    batch.table[2, 3] = N_PAGES
    step = build(config, batch.common())
    with pytest.raises(metal_sdpa.InvalidArgument, match="block_table"):
        impl.forward(None, batch.q, batch.k, batch.v, batch.cache, step, batch.output)
    assert not step.prepared


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("alibi", [False, True])
def test_requests_may_differ_in_causality(config: Any, window: int | None, alibi: bool) -> None:
    kinds = [True, False, False, True, False, True]
    slopes = [0.5, 0.25, 0.125, 0.0625] if alibi else None
    batch = Batch(*MIXED)
    run(config, batch, torch.tensor(kinds), sliding_window=window, alibi_slopes=slopes)
    batch.require_float64(
        kinds,
        window=-1 if window is None else window,
        slopes=None if slopes is None else torch.tensor(slopes),
    )


def test_not_causal_softcap_and_sinks(config: Any) -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=torch.float64)
    batch = Batch(*MIXED)
    impl = make_impl(config, logits_soft_cap=4.0, sinks=sinks)
    impl.process_weights_after_loading(torch.float32)
    batch.fill(impl)
    step = build(config, batch.common(False))
    impl.forward(None, batch.q, batch.k, batch.v, batch.cache, step, batch.output)
    batch.require_float64(False, softcap=4.0, sinks=sinks)


def test_values_may_be_of_another_size(config: Any) -> None:
    batch = Batch(*MIXED, value_dim=48)
    run(config, batch)
    batch.require_float64()


def test_requests_without_rows_in_a_step(config: Any) -> None:
    batch = Batch([20, 9, 33], [1, 0, 3])
    run(config, batch)
    batch.require_float64()


@pytest.mark.parametrize("window", [None, 6])
def test_an_encoder_sees_both_sides_and_no_cache(config: Any, window: int | None) -> None:
    lengths = [5, 1, 40]
    batch = Batch(lengths, lengths)
    impl = make_impl(config, attn_type=AttentionType.ENCODER_ONLY, sliding_window=window)
    impl.do_kv_cache_update(None, batch.k, batch.v, torch.tensor([]), batch.step_slots())
    step = build(config, batch.common(False), spec(EncoderOnlyAttentionSpec))
    assert step.encoder_cache is None
    impl.forward(None, batch.q, batch.k, batch.v, torch.tensor([]), step, batch.output)
    batch.require_float64(False, window=-1 if window is None else window)


def test_cross_attention_sees_all_of_the_encoder(config: Any) -> None:
    # vLLM gives the lengths and slots of the encoder, and says that it is causal or not.
    batch = Batch([70, 20], [3, 1])
    impl = make_impl(config, attn_type=AttentionType.ENCODER_DECODER)
    batch.fill(impl)
    step = build(config, batch.common(True), spec(CrossAttentionSpec))
    impl.forward(None, batch.q, None, None, batch.cache, step, batch.output)
    batch.require_float64(False)


def test_warming_up_and_empty_steps_leave_the_output(config: Any) -> None:
    batch = Batch([8], [2])
    impl = make_impl(config)
    impl.forward(None, batch.q, batch.k, batch.v, torch.tensor([]), None, batch.output)
    assert bool((batch.output == 7).all())


def test_a_new_cache_is_seen(config: Any) -> None:
    impl = make_impl(config)
    for lengths in ([30, 4], [50, 4]):
        batch = Batch(lengths, [2, 4])
        batch.fill(impl)
        assert bool(batch.cache.isfinite().any())
        step = build(config, batch.common())
        impl.forward(None, batch.q, batch.k, batch.v, batch.cache, step, batch.output)
        batch.require_float64()


def test_pages_are_views_of_the_cache() -> None:
    cache = torch.arange(2 * 3 * 4 * 7, dtype=torch.float32).reshape(2, 3, 4, 7)
    keys, values = split_pages(cache, 2)
    assert keys.shape == (2, 3, 4, 5)
    assert values.shape == (2, 3, 4, 2)
    keys.fill_(1)
    values.fill_(2)
    assert sorted(cache.flatten().tolist()) == [1.0] * keys.numel() + [2.0] * values.numel()
    # A block belongs to vLLM as a whole: it zeroes and copies blocks.
    cache[1].zero_()
    assert bool((keys[1] == 0).all() and (values[1] == 0).all() and (keys[0] == 1).all())


@pytest.mark.parametrize("kind", ["fp8", "fp8_e4m3", "fp8_e5m2", "bfloat16", "int8_per_token_head"])
def test_quantised_caches_are_refused_by_name(config: Any, kind: str) -> None:
    with pytest.raises(metal_sdpa.Unsupported, match=f"kv_cache_dtype: {kind}, takes auto"):
        make_impl(config, kv_cache_dtype=kind)


def test_quantised_outputs_are_refused_by_name(config: Any) -> None:
    batch = Batch([8], [2])
    impl = make_impl(config)
    with pytest.raises(metal_sdpa.Unsupported, match="output_scale"):
        impl.forward(
            None, batch.q, batch.k, batch.v, batch.cache, None, batch.output, torch.ones(1)
        )


def test_register_and_unregister(monkeypatch: pytest.MonkeyPatch) -> None:
    AttentionBackendEnum.CPU_ATTN.clear_override()  # tests of the engine leave theirs
    monkeypatch.setenv("METAL_SDPA_VLLM", "0")
    plugin.plugin()
    assert not plugin.registered()
    stock = AttentionBackendEnum.CPU_ATTN.get_path()
    monkeypatch.setenv("METAL_SDPA_VLLM", "1")
    plugin.plugin()
    plugin.register()
    assert plugin.registered()
    assert AttentionBackendEnum.CPU_ATTN.get_class() is MetalSdpaBackend
    assert AttentionBackendEnum[MetalSdpaBackend.get_name()] is AttentionBackendEnum.CPU_ATTN
    plugin.unregister()
    plugin.unregister()
    assert AttentionBackendEnum.CPU_ATTN.get_path() == stock
    assert "METAL_SDPA_VLLM" not in os.environ
    monkeypatch.setenv("METAL_SDPA_VLLM", "yes")
    with pytest.raises(ValueError, match="METAL_SDPA_VLLM: 'yes', takes 1 or 0"):
        plugin.plugin()


def test_importing_the_plugin_imports_no_vllm() -> None:
    code = (
        "import sys, metal_sdpa.integrations.vllm as v; v.plugin();"
        "assert not any(m in sys.modules for m in ('vllm', 'torch'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "METAL_SDPA_VLLM"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
