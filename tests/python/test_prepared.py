"""prepare: the bits of the plain call on the arrays of every layer, step after step."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import metal_sdpa
from arrays import DTYPES, same_bits
from features import REGIMES, feature_problem, pairs
from metal_sdpa import (
    Device,
    InvalidArgument,
    InvalidType,
    UnsupportedDType,
    prepare,
    sdpa,
    sdpa_paged,
    sdpa_varlen,
)
from serving import Batch, packed, paged, random_batch
from targets import Target, supported_isas, sweep_seed

CALLS = {"sdpa": sdpa, "sdpa_varlen": sdpa_varlen, "sdpa_paged": sdpa_paged}


def like(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other values in memory of the same shape and strides."""
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = np.empty(high - low, np.uint8)
    offset = array.__array_interface__["data"][0] - low
    other = np.ndarray(array.shape, array.dtype, memory, offset, array.strides)
    other[...] = rng.standard_normal(array.shape, np.float32)
    return other


def both(got: Any) -> tuple[np.ndarray, ...]:
    return got if isinstance(got, tuple) else (got,)


def check_run(step: Any, name: str, arrays: tuple, call: dict, **changes: Any) -> None:
    """`arrays`: what stands without a keyword; `changes`: what run is given beside q, k, v."""
    wanted = both(CALLS[name](*arrays, **call | changes))
    got = both(step.run(*arrays[:3], **changes))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.strides == b.strides
        assert same_bits(a, b)


# --- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(20))
def test_dense_problems_with_features(index: int, target: Target) -> None:
    rng = np.random.default_rng((sweep_seed(), index))
    names = pairs()[int(rng.integers(len(pairs())))][: int(rng.integers(0, 3))]
    problem = feature_problem(
        (sweep_seed(), index, 3),
        names,
        dtype=list(DTYPES)[index % 3],
        regime=REGIMES[index // 3 % 3],
        dense=False,
        small=target.kind != "cpu",
    )
    arrays = problem.arrays()
    call = problem.call | {"return_lse": bool(index % 2), "device": target.device()}
    call.pop("out", None)
    step = prepare("sdpa", *arrays, **call)
    check_run(step, "sdpa", arrays, call)
    check_run(step, "sdpa", tuple(like(x, rng) for x in arrays), call)


@pytest.mark.parametrize("index", range(12))
def test_packed_rows(index: int, target: Target) -> None:
    rng = np.random.default_rng((sweep_seed(), index, 1))
    batch = random_batch((sweep_seed(), index, 5), ("causal",), small=target.kind != "cpu")
    q, k, v = (packed(x, rng, gap=index % 2) for x in (batch.q, batch.k, batch.v))
    call = batch.arguments() | {"return_lse": True, "device": target.device()}
    call |= {"query_lengths": q.lengths, "kv_lengths": k.lengths}
    arrays = (q.array, k.array, v.array)
    step = prepare("sdpa_varlen", *arrays, q.ends, k.ends, **call)
    for layer in (arrays, tuple(like(x, rng) for x in arrays)):
        check_run(step, "sdpa_varlen", (*layer, q.ends, k.ends), call)


def pages_of(
    batch: Batch, rng: np.random.Generator, device: Device, layout: str = "NHD"
) -> tuple[tuple, dict]:
    """What sdpa_paged takes, with room in the table."""
    pages = paged(batch, rng, 4, layout=layout)
    q = packed(batch.q, rng)
    call = {"cu_seqlens_q": q.ends, "layout": layout, "device": device} | batch.arguments()
    return (q.array, pages.k, pages.v, pages.table, np.array(batch.slots, np.int32)), call


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_pages(layout: str, device: Device) -> None:
    rng = np.random.default_rng(2)
    batch = random_batch((1,), ("causal",), lengths=([1, 5, 0, 33, 2], [17, 5, 9, 33, 0]))
    arrays, call = pages_of(batch, rng, device, layout)
    step = prepare("sdpa_paged", *arrays, **call, return_lse=True)
    for layer in (arrays[:3], tuple(like(x, rng) for x in arrays[:3])):
        check_run(step, "sdpa_paged", (*layer, *arrays[3:]), call | {"return_lse": True})


def test_score_arrays_of_each_layer(device: Device) -> None:
    """Those prepared with stand in where run() is given none."""
    rng = np.random.default_rng(3)
    q, k = rng.standard_normal((2, 1, 4, 3, 16), np.float32)
    sinks, slopes = rng.standard_normal((2, 4), np.float32)
    mask = rng.random((3, 3)) < 0.7
    call = {"sinks": sinks, "alibi_slopes": slopes, "mask": mask, "device": device}
    step = prepare("sdpa", q, k, k, **call)
    check_run(step, "sdpa", (q, k, k), call)
    check_run(step, "sdpa", (q, k, k), call, sinks=sinks + 1)
    check_run(step, "sdpa", (q, k, k), call, alibi_slopes=slopes * 2, mask=~mask)


def test_out_of_the_callers(device: Device) -> None:
    rng = np.random.default_rng(4)
    q = rng.standard_normal((1, 4, 3, 16), np.float32).astype(np.float16)
    plain = sdpa(q, q, q, device=device)
    step = prepare("sdpa", q, q, q, device=device)
    out = np.empty_like(q)
    assert step.run(q, q, q, out) is out
    assert same_bits(out, plain)
    wide = np.empty((1, 4, 3, 32), np.float32)[..., :16]
    step = prepare("sdpa", q, q, q, out=wide, device=device)
    assert step.run(q, q, q, out=wide) is wide
    assert same_bits(wide, sdpa(q, q, q, out=wide.copy(), device=device))
    with pytest.raises(InvalidArgument, match="run: out: has other strides, prepared for"):
        step.run(q, q, q, np.empty((1, 4, 3, 16), np.float32))
    with pytest.raises(UnsupportedDType, match="run: out: dtype f16, prepared for f32"):
        step.run(q, q, q)


def test_an_out_that_lies_elsewhere_than_the_prepared_one(device: Device) -> None:
    rng = np.random.default_rng(13)
    q = rng.standard_normal((2, 4, 3, 16), np.float32)
    tokens_first = np.empty((2, 3, 4, 16), np.float32).transpose(0, 2, 1, 3)
    step = prepare("sdpa", q, q, q, out=tokens_first, device=device)
    assert step.run(q, q, q, tokens_first) is tokens_first
    assert same_bits(tokens_first, sdpa(q, q, q, device=device))
    with pytest.raises(InvalidArgument, match="run: out: is not given, prepared for strides"):
        step.run(q, q, q)
    with pytest.raises(InvalidArgument, match="run: out: has other strides, prepared for"):
        step.run(q, q, q, np.empty_like(q))


class Foreign:
    """An array of a library whose results are row-major, whatever q's order; `meanwhile` runs as it
    is read."""

    def __init__(self, *arrays: np.ndarray, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.arrays = list(arrays)
        self.meanwhile = meanwhile

    def __dlpack__(self, **options: Any) -> Any:
        self.meanwhile()
        array = self.arrays.pop(0) if len(self.arrays) > 1 else self.arrays[0]
        return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __array_namespace__(self) -> Any:
        return np


def test_a_result_of_another_order_than_the_prepared_one(device: Device) -> None:
    rng = np.random.default_rng(14)
    q = rng.standard_normal((2, 3, 4, 16), np.float32).transpose(0, 2, 1, 3)
    for first, second in ((q, Foreign(q)), (Foreign(q), q)):
        step = prepare("sdpa", first, q, q, device=device)
        check_run(step, "sdpa", (first, q, q), {"device": device})
        with pytest.raises(InvalidArgument, match="run: out: is not given, prepared for strides"):
            step.run(second, q, q)


def test_strides_of_one_entry_and_of_none_do_not_matter(device: Device) -> None:
    rng = np.random.default_rng(15)
    q, k = (rng.standard_normal((2, 4, n, 16), np.float32) for n in (1, 9))
    step = prepare("sdpa", q, k, k, device=device)
    out = np.empty((2, 1, 4, 16), np.float32).transpose(0, 2, 1, 3)
    assert step.run(q, k, k, out) is out
    assert same_bits(out, sdpa(q, k, k, device=device))
    other = np.lib.stride_tricks.as_strided(q, q.shape, (*q.strides[:2], 4, 4))
    check_run(step, "sdpa", (other, k, k), {"device": device})
    for shape in ((0, 4, 3, 16), (2, 4, 0, 16)):
        nothing = np.empty(shape, np.float32)
        keys = k[: shape[0]]
        step = prepare("sdpa", nothing, keys, keys, device=device)
        out = np.empty_like(nothing)
        assert step.run(nothing, keys, keys, out) is out
        step = prepare("sdpa", nothing, keys, keys, out=out, device=device)
        assert step.run(nothing, keys, keys).shape == shape


# --- steps ---------------------------------------------------------------------------------------


def test_lengths_grow_within_the_capacity(device: Device) -> None:
    rng = np.random.default_rng(5)
    q = rng.standard_normal((2, 4, 1, 16), np.float32)
    k, v = rng.standard_normal((2, 2, 2, 300, 16), np.float32)
    call = {"causal": True, "window": 40, "device": device}
    step = prepare("sdpa", q, k, v, kv_lengths=[1, 1], **call)
    assert step.kv_capacity == 300
    scratch = device.empty([max(step.scratch_bytes, 1)], "u8")
    for lengths in ([1, 2], [299, 3], [300, 300]):
        step.update(kv_lengths=np.array(lengths))
        check_run(step, "sdpa", (q, k, v), call | {"kv_lengths": lengths})
        got = step.run(q, k, v, scratch=scratch)
        assert same_bits(got, sdpa(q, k, v, **call, kv_lengths=lengths))
    step.update(window=None, causal=False, kv_lengths=7)
    check_run(step, "sdpa", (q, k, v), {"device": device, "kv_lengths": 7})
    with pytest.raises(InvalidArgument, match="update: kv_lengths: 301, takes 0 to the 300"):
        step.update(kv_lengths=[301, 1])
    with pytest.raises(InvalidArgument, match="update: kv_lengths: 3 entries, but the batch has 2"):
        step.update(kv_lengths=[1, 1, 1])
    check_run(step, "sdpa", (q, k, v), {"device": device, "kv_lengths": 7})


def test_a_paged_step_reads_its_table_and_takes_another(device: Device) -> None:
    rng = np.random.default_rng(6)
    batch = random_batch((2,), ("causal",), lengths=([1, 1, 1], [17, 4, 9]))
    arrays, call = pages_of(batch, rng, device)
    table = arrays[3]
    step = prepare("sdpa_paged", *arrays, **call)
    assert step.kv_capacity == table.shape[1] * 4
    free = sorted(set(range(len(arrays[1]))) - set(table.ravel().tolist()))
    lengths = arrays[4] + 1
    with pytest.raises(InvalidArgument, match=r"update: block_table: page -?\d+ of sequence 1"):
        step.update(kv_lengths=lengths)
    check_run(step, "sdpa_paged", arrays, call)
    table[1, 1] = free[0]
    arrays[1][free[0]] = arrays[2][free[0]] = 0.5
    step.update(kv_lengths=lengths, block_table=table)
    check_run(step, "sdpa_paged", (*arrays[:4], lengths), call)
    other = table.copy()
    other[0, 0], other[2, 0] = table[2, 0], table[0, 0]
    step.update(block_table=other)
    check_run(step, "sdpa_paged", (*arrays[:3], other, lengths), call)
    with pytest.raises(InvalidArgument, match="update: block_table: shape"):
        step.update(block_table=table[:, :-1])
    with pytest.raises(UnsupportedDType, match="update: block_table: dtype i64, prepared for i32"):
        step.update(block_table=table.astype(np.int64))
    with pytest.raises(InvalidArgument, match=r"kv_lengths: 99 of sequence 0, takes 0 to the"):
        step.update(kv_lengths=[99, 1, 1])
    check_run(step, "sdpa_paged", (*arrays[:3], other, lengths), call)


def small_pages(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    k = rng.standard_normal((6, 4, 2, 16), np.float32)
    q = rng.standard_normal((2, 4, 1, 16), np.float32)
    return q, k, np.array([[0, 1, 2], [3, 4, 5]], np.int32)


def test_a_table_that_is_written_to_counts_from_the_next_update(device: Device) -> None:
    rng = np.random.default_rng(16)
    q, k, table = small_pages(rng)
    step = prepare("sdpa_paged", q, k, k, table, [5, 4], device=device)
    table[:] = table[::-1].copy()
    step.update(kv_lengths=[9, 12])
    check_run(step, "sdpa_paged", (q, k, k, table, [9, 12]), {"device": device})
    other = table[:, ::-1].copy()
    step.update(block_table=other)
    other[:] = table
    step.update(kv_lengths=[10, 12])
    check_run(step, "sdpa_paged", (q, k, k, table, [10, 12]), {"device": device})
    other[1, 2] = 6
    with pytest.raises(InvalidArgument, match="update: block_table: page 6 of sequence 1, entry 2"):
        step.update(kv_lengths=[9, 12])


def test_out_over_pages(device: Device) -> None:
    rng = np.random.default_rng(17)
    q, k, table = small_pages(rng)
    step = prepare("sdpa_paged", q, k, k, table, [9, 4], device=device)
    out = np.empty_like(q)
    assert step.run(q, k, k, out) is out
    assert same_bits(out, sdpa_paged(q, k, k, table, [9, 4], device=device))
    with pytest.raises(InvalidArgument, match="overlaps"):
        step.run(q, k, k, k.reshape(-1)[: q.size].reshape(q.shape))


def test_a_table_that_is_another_one_each_time_it_is_read(device: Device) -> None:
    q, k, table = small_pages(np.random.default_rng(18))
    for other in (np.asfortranarray(table), table[:, ::-1], table[:, :2]):
        with pytest.raises(InvalidArgument, match="sdpa_paged: block_table: s"):
            prepare("sdpa_paged", q, k, k, Foreign(table, other), [9, 4], device=device)
    step = prepare("sdpa_paged", q, k, k, Foreign(table), [9, 4], device=device)
    check_run(step, "sdpa_paged", (q, k, k, table, [9, 4]), {"device": device})


def test_a_batch_of_no_sequence_moves_on(device: Device) -> None:
    q, k, table = small_pages(np.random.default_rng(19))
    none = np.zeros(0, np.int32)
    step = prepare("sdpa_paged", q[:0], k, k, table[:0], none, device=device)
    for lengths in (none, [], 7):
        step.update(kv_lengths=lengths)
        assert step.run(q[:0], k, k).shape == (0, 4, 1, 16)
    step = prepare("sdpa", q[:0], k[:0], k[:0], device=device)
    step.update(kv_lengths=[], kv_starts=none.tolist())
    assert step.run(q[:0], k[:0], k[:0]).shape == (0, 4, 1, 16)


def test_a_table_may_reach_further_than_a_problem() -> None:
    """Of the CPU alone: a device that copies host tables would copy 8 GB."""
    q, k, _ = small_pages(np.random.default_rng(20))
    table = np.broadcast_to(np.zeros((1, 1), np.int32), (2, 2**30))
    step = prepare("sdpa_paged", q, k, k, table, [9, 4], device="cpu")
    assert step.kv_capacity == 2**31 - 1


@pytest.mark.parametrize("threads", [1, 4])
def test_scratch_bytes_are_enough_after_each_update(threads: int) -> None:
    device = Device("cpu", threads=threads)
    rng = np.random.default_rng(21)
    q = rng.standard_normal((2, 4, 100, 32), np.float32)
    k = rng.standard_normal((2, 4, 3000, 32), np.float32)
    step = prepare("sdpa", q, k, k, causal=True, device=device)
    needed = set()
    changes: dict[str, Any] = {"causal": True, "device": device}
    for change in ({"kv_lengths": [3000, 20]}, {"query_lengths": 1}, {"query_lengths": [100, 1]}):
        step.update(**change)
        changes |= change
        needed.add(step.scratch_bytes)
        scratch = device.empty([max(step.scratch_bytes, 1)], "u8")
        scratch.numpy()[:] = 255
        assert same_bits(step.run(q, k, k, scratch=scratch), sdpa(q, k, k, **changes))
        if step.scratch_bytes > 0:
            with pytest.raises(InvalidArgument, match="run: scratch: "):
                step.run(q, k, k, scratch=scratch.slice_view(0, step.scratch_bytes // 2))
    assert max(needed) > 0


@pytest.mark.parametrize("isa", supported_isas())
def test_scratch_right_behind_an_operand(isa: str) -> None:
    """Of the CPU alone: elsewhere host arrays are copied, and none lies beside scratch memory."""
    device = Device("cpu", isa=isa)
    rng = np.random.default_rng(23)
    q, k = (rng.standard_normal((1, 2, n, 64), np.float32) for n in (1, 4000))
    step = prepare("sdpa", q, k, k, device=device)
    memory = device.empty([k.nbytes + step.scratch_bytes], "u8")
    keys = memory.slice_view(0, k.nbytes).numpy().view(np.float32).reshape(k.shape)
    keys[...] = k
    scratch = memory.slice_view(k.nbytes, step.scratch_bytes)
    wanted = sdpa(q, k, k, device=device)
    assert same_bits(step.run(q, keys, keys, scratch=scratch), wanted)
    assert same_bits(keys, k)
    one_byte_over = memory.slice_view(k.nbytes - 1, step.scratch_bytes)
    with pytest.raises(InvalidArgument, match="run: scratch: overlaps k"):
        step.run(q, keys, keys, scratch=one_byte_over)


def test_an_update_in_the_middle_of_a_run(device: Device) -> None:
    """An array that moves the step on as it is read: the run is that of the step it began with, or
    of the next, on the arrays that it was given."""
    rng = np.random.default_rng(22)
    q, k = (rng.standard_normal((2, 4, n, 16), np.float32) for n in (3, 50))
    step = prepare("sdpa", q, k, k, kv_lengths=10, device=device)

    got = step.run(q, Foreign(k, meanwhile=lambda: step.update(kv_lengths=20)), k)
    wanted = [sdpa(q, k, k, kv_lengths=n, device=device) for n in (10, 20)]
    assert any(same_bits(got, w) for w in wanted)
    check_run(step, "sdpa", (q, k, k), {"kv_lengths": 20, "device": device})


def test_each_sequence_of_a_list_of_pages_has_its_own_reach(device: Device) -> None:
    rng = np.random.default_rng(7)
    k = rng.standard_normal((4, 4, 2, 16), np.float32)
    q = rng.standard_normal((2, 4, 1, 16), np.float32)
    table = ([0, 3, 4], np.array([2, 0, 3, 1]))
    step = prepare("sdpa_paged", q, k, k, table, [9, 3], device=device)
    assert step.kv_capacity == 12
    step.update(kv_lengths=[12, 4])
    check_run(step, "sdpa_paged", (q, k, k, table, [12, 4]), {"device": device})
    with pytest.raises(
        InvalidArgument, match="kv_lengths: 5 of sequence 1, takes 0 to the 4 slots"
    ):
        step.update(kv_lengths=[12, 5])
    with pytest.raises(InvalidArgument, match="kv_lengths: 5 of sequence 1, takes"):
        step.update(kv_lengths=5)
    step.update(kv_lengths=4)
    check_run(step, "sdpa_paged", (q, k, k, table, 4), {"device": device})


def test_masks_and_kv_capacity_bound_what_update_may_bring(device: Device) -> None:
    rng = np.random.default_rng(8)
    q = rng.standard_normal((5, 4, 16), np.float32)
    k = rng.standard_normal((20, 2, 16), np.float32)
    ends = ([0, 2, 5], [0, 8, 20])
    mask = rng.random((5, 10)) < 0.8
    call = {"kv_lengths": [3, 4], "device": device}
    assert prepare("sdpa_varlen", q, k, k, *ends, **call).kv_capacity == 12
    step = prepare("sdpa_varlen", q, k, k, *ends, **call, mask=mask)
    assert step.kv_capacity == 10
    step.update(kv_lengths=[8, 10])
    check_run(step, "sdpa_varlen", (q, k, k, *ends), call | {"kv_lengths": [8, 10], "mask": mask})
    with pytest.raises(InvalidArgument, match="update: kv_lengths: 11"):
        step.update(kv_lengths=[8, 11])
    rows = np.array([[True], [False], [True], [True], [False]])
    step = prepare("sdpa_varlen", q, k, k, *ends, **call, mask=rows)
    assert step.kv_capacity == 12
    step.update(kv_lengths=[8, 12])
    check_run(step, "sdpa_varlen", (q, k, k, *ends), call | {"kv_lengths": [8, 12], "mask": rows})
    short = prepare("sdpa_varlen", q, k, k, *ends, **call, kv_capacity=6)
    with pytest.raises(InvalidArgument, match="update: kv_lengths: 7, takes 0 to the 6"):
        short.update(kv_lengths=[7, 1])
    for bad in (3, 13):
        with pytest.raises(InvalidArgument, match=f"prepare: kv_capacity: {bad}, takes 4 to 12"):
            prepare("sdpa_varlen", q, k, k, *ends, **call, kv_capacity=bad)


# --- graphs --------------------------------------------------------------------------------------


def test_recorded_and_replayed(device: Device) -> None:
    rng = np.random.default_rng(9)
    registry = metal_sdpa.KernelRegistry(device)
    arrays = [rng.standard_normal((2, 2, n, 16), np.float32) for n in (1, 50, 50)]
    buffers = [device.empty(x.shape, "f32") for x in arrays]
    for buffer, array in zip(buffers, arrays, strict=True):
        buffer.numpy()[...] = array
    out = device.empty(arrays[0].shape, "f32")
    step = prepare("sdpa", *arrays, kv_lengths=20, device=device)
    operands = metal_sdpa.SdpaOperands(**dict(zip("qkv", buffers, strict=True)), out=out)
    encoder = device.command_encoder()
    encoder.begin_capture()
    step.encode(encoder, registry, operands)
    graph = encoder.end_capture()
    del operands, step
    gc.collect()
    for length in (20, 50):
        graph.update(0, kv_seq_len=length)
        encoder = device.command_encoder()
        graph.replay(encoder)
        encoder.commit_and_wait()
        wanted = sdpa(*arrays, kv_lengths=length, device=device)
        assert same_bits(out.numpy().copy(), wanted)


def test_recorded_with_fewer_rows_than_the_arrays_have(device: Device) -> None:
    """Their plan wants memory for spans, which one of all rows has no use for."""
    rng = np.random.default_rng(24)
    length = 4000 if device.kind == "cpu" else 300
    arrays = [rng.standard_normal((1, 2, n, 32), np.float32) for n in (200, length, length)]
    buffers = [device.empty(x.shape, "f32") for x in arrays]
    for buffer, array in zip(buffers, arrays, strict=True):
        buffer.numpy()[...] = array
    out = device.empty(arrays[0].shape, "f32")
    step = prepare("sdpa", *arrays, query_lengths=2, device=device)
    operands = metal_sdpa.SdpaOperands(**dict(zip("qkv", buffers, strict=True)), out=out)
    recorder = device.command_encoder()
    recorder.begin_capture()
    step.encode(recorder, metal_sdpa.KernelRegistry(device), operands)
    encoder = device.command_encoder()
    recorder.end_capture().replay(encoder)
    encoder.commit_and_wait()
    assert same_bits(out.numpy().copy(), sdpa(*arrays, query_lengths=2, device=device))


def test_memory_of_the_layer_prepared_with_is_not_kept(device: Device) -> None:
    arrays = [np.ones((1, 2, n, 16), np.float32) for n in (3, 9, 9)]
    kept = [weakref.ref(x) for x in arrays]
    step = prepare("sdpa", *(Foreign(x) for x in arrays), out=arrays[0].copy(), device=device)
    del arrays
    gc.collect()
    assert [x() for x in kept] == [None] * 3
    assert step.kv_capacity == 9


def test_the_table_outlives_its_array(device: Device) -> None:
    """What is recorded keeps the memory of a table that nobody else holds."""
    rng = np.random.default_rng(10)
    registry = metal_sdpa.KernelRegistry(device)
    k = rng.standard_normal((3, 4, 2, 16), np.float32)
    q = rng.standard_normal((1, 4, 1, 16), np.float32)
    table = np.array([[2, 0]], np.int64)
    wanted = sdpa_paged(q, k, k, table, [7], device=device)
    step = prepare("sdpa_paged", q, k, k, table, [7], device=device)
    buffers = [device.empty(x.shape, "f32") for x in (q, k)]
    for buffer, array in zip(buffers, (q, k), strict=True):
        buffer.numpy()[...] = array
    out = device.empty(q.shape, "f32")
    encoder = device.command_encoder()
    operands = metal_sdpa.SdpaOperands(q=buffers[0], k=buffers[1], v=buffers[1], out=out)
    step.encode(encoder, registry, operands)
    del table, step, operands
    gc.collect()
    noise = [np.full((1, 2), 10**9, np.int64) for _ in range(50)]
    encoder.commit_and_wait()
    assert same_bits(out.numpy().copy(), wanted)
    assert len(noise) == 50


# --- what is refused -----------------------------------------------------------------------------


def test_arrays_that_differ(device: Device) -> None:
    rng = np.random.default_rng(11)
    q, k = rng.standard_normal((2, 2, 4, 8, 16), np.float32)
    step = prepare("sdpa", q, k, k, device=device)
    with pytest.raises(
        InvalidArgument, match=r"run: k: shape \[2, 4, 7, 16\], prepared for \[2, 4"
    ):
        step.run(q, k[:, :, :7], k)
    with pytest.raises(
        InvalidArgument, match=r"run: q: strides .*, prepared for \[512, 128, 16, 1"
    ):
        step.run(np.asfortranarray(q.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)[::1], k, k)
    with pytest.raises(UnsupportedDType, match="run: v: dtype f16, prepared for f32"):
        step.run(q, k, k.astype(np.float16))
    with pytest.raises(InvalidArgument, match="run: mask: is given, but was not when prepared"):
        step.run(q, k, k, mask=np.ones((8, 8), bool))
    with pytest.raises(InvalidArgument, match="run: q: shape"):
        step.run(q[0], k, k)
    with pytest.raises(InvalidType, match="run: scratch: got"):
        step.run(q, k, k, scratch=np.empty(8))
    with pytest.raises(InvalidArgument, match="overlaps"):
        step.run(q, k, k, q)
    with pytest.raises(InvalidType, match="run: q: got None"):
        step.run(None, k, k)
    rows = prepare("sdpa_varlen", q[0], k[0], k[0], [0, 4], [0, 4], device=device)
    with pytest.raises(
        InvalidArgument, match=r"run: q: shape \[3, 8, 16\], prepared for \[4, 8, 16"
    ):
        rows.run(q[0][:3], k[0], k[0])
    call = {"layout": "HND", "device": device}
    pages = prepare("sdpa_paged", q, k, k, np.array([[0], [1]]), [3, 2], **call)
    with pytest.raises(
        InvalidArgument, match=r"k_pages: shape \[1, 4, 8, 16\], prepared for \[2, 4"
    ):
        pages.run(q, k[:1], k)


def test_what_prepare_and_update_refuse(device: Device) -> None:
    q = np.ones((1, 2, 3, 8), np.float32)
    with pytest.raises(TypeError, match="prepare: call: is missing"):
        prepare()
    with pytest.raises(InvalidType, match="prepare: call: got an int"):
        prepare(3)
    with pytest.raises(InvalidArgument, match='prepare: call: "sdpb", takes "sdpa", "sdpa_varlen"'):
        prepare("sdpb", q, q, q)
    with pytest.raises(TypeError, match="sdpa: v: is missing"):
        prepare("sdpa", q, q)
    with pytest.raises(TypeError, match="sdpa: got an unexpected argument 'windw'"):
        prepare("sdpa", q, q, q, windw=3)
    with pytest.raises(InvalidArgument, match="sdpa: k: "):
        prepare("sdpa", q, q[..., :4], q)
    step = prepare("sdpa", q, q, q, device=device)
    with pytest.raises(InvalidArgument, match="update: nothing to change is given"):
        step.update()
    with pytest.raises(TypeError, match="update: got an unexpected argument 'scale'"):
        step.update(scale=3)
    with pytest.raises(InvalidArgument, match="update: names: holds a lone surrogate"):
        step.update(**{"\udc80": 3})
    with pytest.raises(TypeError, match="sdpa: got an unexpected argument"):
        prepare("sdpa", q, q, q, **{"\udc80": 3})
    with pytest.raises(InvalidArgument, match="update: block_table: is given, but sdpa has none"):
        step.update(block_table=np.array([[0]]))
    rows = prepare("sdpa_varlen", q[0], q[0], q[0], [0, 2], [0, 2], device=device)
    with pytest.raises(InvalidArgument, match="update: query_lengths: is given, but rows"):
        rows.update(query_lengths=[1])
    with pytest.raises(InvalidArgument, match="update: kv_starts: is given, but sdpa_varlen"):
        rows.update(kv_starts=[1])


def test_from_several_threads(device: Device) -> None:
    rng = np.random.default_rng(12)
    q, k = rng.standard_normal((2, 2, 4, 20, 16), np.float32)
    step = prepare("sdpa", q, k, k, device=device)
    wanted = sdpa(q, k, k, device=device)
    wrong: list[int] = []

    def work() -> None:
        for i in range(20):
            if not same_bits(step.run(q, k, k), wanted):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_it_tells_of_itself(device: Device) -> None:
    q = np.ones((2, 4, 1, 16), np.float32)
    step = prepare("sdpa", q, q, q, device=device, kv_capacity=1)
    assert repr(step) == 'Prepared("sdpa", batch=2, n_heads=4, kv_capacity=1)'
    assert step.plan == metal_sdpa.plan(q, q, q, device=device).split("copies")[0]
    assert step.problem.n_heads == 4
