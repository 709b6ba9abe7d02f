"""sdpa_paged: each sequence as sdpa gives it on its keys gathered."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import metal_sdpa
from arrays import DTYPES, same_bits
from features import seen_keys
from metal_sdpa import Device, InvalidArgument, InvalidType, UnsupportedDType, sdpa, sdpa_paged
from oracle import visibility
from serving import (
    LAYOUTS,
    PAGE_LENS,
    SCORE_FEATURES,
    Batch,
    Pages,
    check_all,
    check_rows,
    packed,
    paged,
    random_batch,
    require,
)
from targets import Target, selected_targets, sweep_seed

MIXED = ([1, 5, 0, 33, 2, 1], [65, 17, 9, 33, 0, 3])


@pytest.fixture(autouse=True)
def _takes_pages(request: pytest.FixtureRequest) -> None:
    names = request.fixturenames
    target = request.getfixturevalue("target") if "target" in names else selected_targets()[0]
    require(target, "paged", "varlen")


def arguments(batch: Batch, pages: Pages, **extra: Any) -> dict:
    """What every call on these pages is given; sdpa_paged is causal unless told otherwise."""
    lengths = np.array(batch.slots, pages.table.dtype)
    call = {"causal": False, "layout": pages.layout, "return_lse": True}
    return call | {"kv_lengths": lengths} | batch.arguments() | extra


def attend(
    batch: Batch, pages: Pages, device: Device, rng: np.random.Generator, **extra: Any
) -> None:
    """Packed queries of all sequences, by both kinds of table."""
    q = packed(batch.q, rng)
    for table in pages.both_tables():
        call = arguments(batch, pages, cu_seqlens_q=q.ends, device=device, **extra)
        out, lse = sdpa_paged(q.array, pages.k, pages.v, table, **call)
        check_all(batch, q.ends, out, lse, device)


def needed_by(batch: Batch, page: int):
    """Which entries of the table any query sees."""

    def is_needed(b: int, i: int) -> bool:
        shape = batch.shape_of(b)
        keys = seen_keys(batch.call_of(b), shape)
        seen = visibility(shape.L, shape.S, **keys)[0]
        return bool(seen[:, i * page : (i + 1) * page].any())

    return is_needed


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("index", range(12))
def test_random_batches(dtype: str, index: int, target: Target) -> None:
    rng = np.random.default_rng((sweep_seed(), index, 7))
    names = tuple(rng.choice((*SCORE_FEATURES, "mask"), int(rng.integers(0, 3)), replace=False))
    if {"window", "band"} <= set(names) or {"q_start", "shard"} <= set(names):
        names = names[:1]
    seed = (sweep_seed(), index, len(dtype), 1)
    batch = random_batch(seed, names, dtype=dtype, small=target.kind != "cpu")
    page = int(rng.choice((*PAGE_LENS, 2, 5, 256)))
    pages = paged(
        batch,
        rng,
        page,
        layout=str(rng.choice(LAYOUTS)),
        index=rng.choice((np.int32, np.int64)),
        one_tensor=bool(rng.random() < 0.5),
        is_needed=needed_by(batch, page),
    )
    attend(batch, pages, target.device(), rng)


@pytest.mark.parametrize("name", [*SCORE_FEATURES, "mask", "bias"])
@pytest.mark.parametrize("with_causal", [False, True])
def test_every_feature(name: str, with_causal: bool, device: Device) -> None:
    """Entries of pages that no query sees are no page numbers."""
    rng = np.random.default_rng(4)
    names = (name, "causal") if with_causal else (name,)
    batch = random_batch((len(name), 8), names, lengths=MIXED)
    pages = paged(batch, rng, 3, is_needed=needed_by(batch, 3))
    attend(batch, pages, device, rng)


@pytest.mark.parametrize("page", PAGE_LENS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_pages_of_every_size(page: int, layout: str, index: type, device: Device) -> None:
    """Lengths at, before and behind the edges of pages; decode rows, chunks and prompts."""
    rng = np.random.default_rng(page)
    slots = sorted({1, page, page + 1, max(1, 2 * page - 1), 2 * page, 2 * page + 1})
    rows = [(1, 3, n)[b % 3] for b, n in enumerate(slots)]
    batch = random_batch((page,), ("causal",), lengths=(rows, slots))
    attend(batch, paged(batch, rng, page, layout=layout, index=index), device, rng)


@pytest.mark.parametrize("L", [1, 3])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_batch_of_queries(L: int, dtype: str, device: Device) -> None:
    """q [B, Hq, L, D]; a mask is [B, Hq, L, M]."""
    rng = np.random.default_rng(L)
    slots = [20, 3, 64, 0]
    batch = random_batch((L,), ("alibi",), dtype=dtype, lengths=([L] * 4, slots))
    pages = paged(batch, rng, 16)
    q = np.concatenate([batch.alone(b)[0] for b in range(4)])
    heads = q.shape[1]
    mask = rng.random((4, heads, L, 66)) < 0.8
    call = arguments(batch, pages, mask=mask, causal=True, device=device)
    for table in pages.both_tables():
        out, lse = sdpa_paged(q, pages.k, pages.v, table, **call)
        assert lse.shape == (4, heads, L)
        for b in range(4):
            one = batch.call_of(b) | {"mask": mask[b, :, :, : slots[b]], "causal": True}
            wanted = sdpa(*batch.alone(b), **one, return_lse=True, device=device)
            assert same_bits(out[b : b + 1], wanted[0])
            assert same_bits(lse[b : b + 1], wanted[1])


def test_causal_is_the_default(device: Device) -> None:
    rng = np.random.default_rng(2)
    batch = random_batch((31,), ("causal",), lengths=([4], [9]))
    pages = paged(batch, rng, 4)
    given = (batch.alone(0)[0], pages.k, pages.v, pages.table, [9])
    expected = sdpa(*batch.alone(0), causal=True, device=device)
    for causal in ({}, {"causal": None}, {"causal": True}):
        assert same_bits(sdpa_paged(*given, **causal, device=device), expected)
    other = sdpa_paged(*given, causal=False, device=device)
    assert same_bits(other, sdpa(*batch.alone(0), device=device))


def test_shared_pages(device: Device) -> None:
    """Two sequences that begin with the same pages, and one that is the other's beginning."""
    rng = np.random.default_rng(2)
    batch = random_batch((32,), ("causal",), lengths=([1, 6, 2], [12, 14, 8]))
    batch.k[1][:8] = batch.k[0][:8]
    batch.v[1][:8] = batch.v[0][:8]
    batch.k[2], batch.v[2] = batch.k[0][:8], batch.v[0][:8]
    pages = paged(batch, rng, 4)
    pages.table[1, :2] = pages.table[0, :2]
    pages.table[2, :2] = pages.table[0, :2]
    begins = pages.indptr
    pages.indices[begins[1] : begins[1] + 2] = pages.indices[:2]
    pages.indices[begins[2] : begins[2] + 2] = pages.indices[:2]
    attend(batch, pages, device, rng)


def test_tables_of_every_layout(device: Device) -> None:
    rng = np.random.default_rng(2)
    batch = random_batch((33,), ("causal",), lengths=([1, 3, 5], [9, 20, 13]))
    pages = paged(batch, rng, 4, index=np.int64)
    q = packed(batch.q, rng)
    call = arguments(batch, pages, cu_seqlens_q=q.ends, device=device)
    doubled = np.repeat(np.repeat(pages.table, 2, axis=0), 3, axis=1)
    tables = (
        pages.table,
        pages.table.astype(np.int32),
        np.asfortranarray(pages.table),
        doubled[::2, ::3],
        np.ascontiguousarray(pages.table[::-1, ::-1])[::-1, ::-1],
        (pages.indptr.tolist(), np.repeat(pages.indices, 2)[::2]),
        (pages.indptr.astype(np.int32), pages.indices[::-1].copy()[::-1]),
    )
    for table in tables:
        out, lse = sdpa_paged(q.array, pages.k, pages.v, table, **call)
        check_all(batch, q.ends, out, lse, device)
    one = batch.call | {"causal": True, "device": device}
    same = np.broadcast_to(pages.table[1], (3, pages.table.shape[1]))
    rows = batch.alone(1)[0]
    out = sdpa_paged(np.repeat(rows, 3, axis=0), pages.k, pages.v, same, [20] * 3, device=device)
    expected = sdpa(*batch.alone(1), **one)
    assert all(same_bits(out[b : b + 1], expected) for b in range(3))


def test_sizes_of_zero(device: Device) -> None:
    rng = np.random.default_rng(2)
    k = rng.standard_normal((2, 4, 1, 8), np.float32)
    table = np.zeros((2, 0), np.int32)
    out, lse = sdpa_paged(
        np.ones((2, 2, 3, 8), np.float32), k, k, table, [0, 0], return_lse=True, device=device
    )
    assert (out == 0).all()
    assert np.isneginf(lse).all()
    none = np.ones((0, 2, 3, 8), np.float32)
    assert sdpa_paged(none, k, k, table[:0], [], device=device).shape == none.shape
    rowless = np.ones((2, 2, 0, 8), np.float32)
    assert sdpa_paged(rowless, k, k, table, [0, 0], device=device).shape == rowless.shape
    q = np.ones((3, 2, 8), np.float32)
    for pages in (k, k[:0]):
        out, lse = sdpa_paged(
            q, pages, pages, table[:0], [], cu_seqlens_q=[0], return_lse=True, device=device
        )
        assert (out == 0).all()
        assert np.isneginf(lse).all()
    out = sdpa_paged(q, k[:0], k[:0], ([0, 0], table[0]), [0], cu_seqlens_q=[0, 2], device=device)
    assert (out == 0).all()


def test_rows_of_no_sequence_in_a_callers_out(device: Device) -> None:
    rng = np.random.default_rng(2)
    batch = random_batch((35,), ("causal",), lengths=([1, 2], [9, 5]))
    pages = paged(batch, rng, 4)
    q = packed(batch.q, rng, behind=2)
    call = arguments(batch, pages, cu_seqlens_q=q.ends, device=device)
    fresh, _ = sdpa_paged(q.array, pages.k, pages.v, pages.table, **call)
    assert (fresh[3:] == 0).all()
    out = np.full_like(fresh, 7)
    sdpa_paged(q.array, pages.k, pages.v, pages.table, out=out, **call)
    assert same_bits(out[:3], fresh[:3])
    assert (out[3:] == 7).all()


def test_the_axes_of_a_result_lie_in_the_order_of_q(device: Device) -> None:
    rng = np.random.default_rng(2)
    batch = random_batch((36,), ("causal",), lengths=([3, 3], [9, 5]))
    pages = paged(batch, rng, 4)
    q = np.stack(batch.q).swapaxes(1, 2)  # a [B, L, Hq, D] tensor
    out = sdpa_paged(q, pages.k, pages.v, pages.table, [9, 5], device=device)
    assert out.swapaxes(1, 2).flags.c_contiguous
    for b in range(2):
        assert same_bits(
            np.ascontiguousarray(out[b : b + 1]),
            sdpa(*(np.ascontiguousarray(x) for x in batch.alone(b)), causal=True, device=device),
        )


def test_an_f32_out_of_16_bit_pages(device: Device) -> None:
    rng = np.random.default_rng(2)
    batch = random_batch((37,), ("causal",), dtype="bf16", lengths=([3, 1], [9, 70]))
    pages = paged(batch, rng, 16, layout="HND")
    q = packed(batch.q, rng)
    call = arguments(batch, pages, cu_seqlens_q=q.ends, device=device)
    narrow, _ = sdpa_paged(q.array, pages.k, pages.v, pages.table, **call)
    wide = np.full(narrow.shape, np.nan, np.float32)
    sdpa_paged(q.array, pages.k, pages.v, pages.table, out=wide, **call)
    assert same_bits(wide.astype(ml_dtypes.bfloat16), narrow)


def test_without_checks_of_indices(device: Device) -> None:
    """The caches are views of one page less than there is memory, and the last page is used."""
    rng = np.random.default_rng(2)
    batch = random_batch((38,), ("causal",), lengths=([1, 5, 33, 2], [65, 17, 33, 20]))
    pages = paged(batch, rng, 16)
    attend(batch, pages, device, rng, check_indices=False)
    if device.kind != "cpu":
        return  # a copy of the view has no page behind it
    last = int(pages.indices.max())
    pages.k, pages.v = pages.k[:last], pages.v[:last]
    attend(batch, pages, device, rng, check_indices=False)
    with pytest.raises(InvalidArgument, match=f"block_table: page {last} of sequence"):
        attend(batch, pages, device, rng)


# --- arrays of other libraries -------------------------------------------------------------------


@pytest.mark.frameworks
def test_tensors_of_torch(target: Target) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    device = target.device()
    batch = random_batch((39,), ("causal",), lengths=([3, 1, 9], [3, 18, 9]))
    pages = paged(batch, rng, 4)
    q = packed(batch.q, rng)
    call = arguments(batch, pages, device=device)
    expected = sdpa_paged(q.array, pages.k, pages.v, pages.table, cu_seqlens_q=q.ends, **call)
    width = pages.k.shape[3]
    both = torch.from_numpy(np.concatenate([pages.k, pages.v], axis=3))
    call["kv_lengths"] = torch.from_numpy(call["kv_lengths"])
    for table in (
        torch.from_numpy(pages.table),
        torch.from_numpy(pages.table).T.contiguous().T.long(),
        (torch.from_numpy(pages.indptr), torch.from_numpy(pages.indices)),
    ):
        out, lse = sdpa_paged(
            torch.from_numpy(q.array), both[..., :width], both[..., width:], table,
            cu_seqlens_q=torch.from_numpy(q.ends), **call,
        )  # fmt: skip
        assert type(out) is torch.Tensor
        assert same_bits(out.numpy(), expected[0])
        assert same_bits(lse.numpy(), expected[1])


@pytest.mark.parametrize("table_on_the_host", [False, True])
def test_buffers(table_on_the_host: bool, target: Target) -> None:
    """Everything in memory of the device, indices too, or indices in the host's."""
    rng = np.random.default_rng(3)
    device = target.device()
    batch = random_batch((40,), ("causal",), lengths=([3, 1, 9], [3, 18, 9]))
    pages = paged(batch, rng, 4, one_tensor=False)
    q = packed(batch.q, rng)
    arrays = (q.array, pages.k, pages.v, pages.table, np.array(batch.slots, np.int32), q.ends)

    def on_device(array: np.ndarray) -> metal_sdpa.Buffer:
        buffer = device.empty(array.shape, array.dtype)
        buffer.numpy()[...] = array
        return buffer

    buffers = [on_device(x) for x in arrays[:3]]
    buffers += [x if table_on_the_host else on_device(x) for x in arrays[3:]]
    out = sdpa_paged(*buffers[:5], cu_seqlens_q=buffers[5])
    assert isinstance(out, metal_sdpa.Buffer)
    expected = sdpa_paged(*arrays[:5], cu_seqlens_q=arrays[5], device=Device(target.kind))
    assert same_bits(out.numpy(), expected)


# --- the low-level API ---------------------------------------------------------------------------


def problem_of(batch: Batch, pages: Pages, q: np.ndarray) -> metal_sdpa.SdpaProblem:
    """q [Hq, Tq, D] and pages as they are, HND."""
    _, page = pages.k.shape[1:3]
    heads, total, D = q.shape
    return metal_sdpa.SdpaProblem(
        dtype="f32", batch=len(batch.q), n_heads=heads, n_kv_heads=pages.k.shape[1],
        seq_len=max(batch.rows), kv_capacity=max(batch.slots), head_dim=D,
        value_dim=pages.v.shape[3], causal=True, scale=D**-0.5,
        query_lengths=batch.rows, kv_lengths=batch.slots,
        q_rows=np.cumsum([0, *batch.rows[:-1]]), q_total=total,
        pages=metal_sdpa.PageTable(
            dtype="i32", page_len=page, n_pages=len(pages.k),
            sequence_stride=pages.table.shape[1], n_entries=pages.table.shape[1]),
    )  # fmt: skip


def test_a_recorded_call_reads_the_table_anew(device: Device) -> None:
    rng = np.random.default_rng(3)
    batch = random_batch((41,), ("causal",), lengths=([3, 1, 9], [3, 18, 9]))
    pages = paged(batch, rng, 4, layout="HND", one_tensor=False)
    q = np.ascontiguousarray(np.concatenate(batch.q).swapaxes(0, 1))
    out = device.empty((q.shape[0], q.shape[1], pages.v.shape[3]), "f32")

    def on_device(array: np.ndarray) -> metal_sdpa.Buffer:
        buffer = device.empty(array.shape, array.dtype)
        buffer.numpy()[...] = array
        return buffer

    k, v, table = (on_device(x) for x in (pages.k, pages.v, pages.table))
    operands = metal_sdpa.SdpaOperands(q=on_device(q), k=k, v=v, out=out, block_table=table)
    problem = problem_of(batch, pages, q)
    assert problem.pages is not None
    assert problem.pages.page_len == 4
    registry = metal_sdpa.KernelRegistry(device)
    metal_sdpa.register_sdpa(registry)
    encoder = device.command_encoder()
    encoder.begin_capture()
    metal_sdpa.encode_sdpa(encoder, registry, device, operands, problem)
    graph = encoder.end_capture()
    order = rng.permutation(len(pages.k))  # page n moves to order[n]
    for moved in (False, True):
        if moved:
            k.numpy()[order], v.numpy()[order] = pages.k, pages.v
            entries = pages.table.copy()
            for b, slots in enumerate(batch.slots):
                used = -(-slots // 4)
                entries[b, :used] = order[entries[b, :used]]
            table.numpy()[...] = entries
        out.numpy()[...] = np.nan
        encoder = device.command_encoder()
        graph.replay(encoder)
        encoder.commit_and_wait()
        result = out.numpy().swapaxes(0, 1)
        ends = np.cumsum([0, *batch.rows])
        for b in range(3):
            expected = sdpa(*batch.alone(b), causal=True, device=device)[0].swapaxes(0, 1)
            rows = np.ascontiguousarray(result[ends[b] : ends[b + 1]])
            assert same_bits(rows, np.ascontiguousarray(expected)), (b, moved)


def test_a_recorded_decode_step_moves_on(device: Device) -> None:
    """One graph for every step: lengths by update, slots of the new token by write_kv."""
    steps, page = 7, 4
    rng = np.random.default_rng(3)
    batch = random_batch((43,), ("causal",), lengths=([1, 1], [3 + steps, 9 + steps]))
    pages = paged(batch, rng, page, layout="HND", one_tensor=False)
    heads, D = batch.q[0].shape[1:]
    q = device.empty((2, heads, 1, D), "f32")
    out = device.empty((2, heads, 1, pages.v.shape[3]), "f32")
    memory = []
    for array in (pages.k, pages.v, pages.table):
        memory.append(device.empty(array.shape, array.dtype))
        memory[-1].numpy()[...] = array
    problem = metal_sdpa.SdpaProblem(
        batch=2, n_heads=heads, n_kv_heads=pages.k.shape[1], kv_capacity=9 + steps, head_dim=D,
        value_dim=pages.v.shape[3], causal=True, scale=D**-0.5, kv_lengths=[3, 9],
        pages=metal_sdpa.PageTable(
            page_len=page, n_pages=len(pages.k), sequence_stride=pages.table.shape[1],
            n_entries=pages.table.shape[1]),
    )  # fmt: skip
    operands = metal_sdpa.SdpaOperands(
        q=q, k=memory[0], v=memory[1], out=out, block_table=memory[2]
    )
    registry = metal_sdpa.KernelRegistry(device)
    metal_sdpa.register_sdpa(registry)
    encoder = device.command_encoder()
    encoder.begin_capture()
    metal_sdpa.encode_sdpa(encoder, registry, device, operands, problem)
    graph = encoder.end_capture()
    for step in range(steps):
        lengths = [3 + step, 9 + step]
        queries = rng.standard_normal(q.shape, np.float32)
        q.numpy()[...] = queries
        graph.update(0, kv_lengths=lengths)
        encoder = device.command_encoder()
        graph.replay(encoder)
        encoder.commit_and_wait()
        for b in range(2):
            k, v = (x[:, :, : lengths[b]] for x in batch.alone(b)[1:])
            expected = sdpa(queries[b : b + 1], k, v, causal=True, device=device)
            assert same_bits(out.numpy()[b : b + 1].copy(), expected), step


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "f32"}, "block_table: dtype f32, takes i32 or i64"),
        ({"page_len": 0}, "page_len: 0, takes 1 to"),
        ({"n_pages": -1}, "n_pages: -1, takes 0 to"),
        ({"n_entries": 2}, "kv_lengths: 9 of sequence 0, takes 0 to the 8 slots of its pages"),
        ({"starts": [0]}, "starts: 1 entries, but the batch has 2"),
        ({"starts": [0, 5]}, "starts: 5, takes 0 to the 3 entries"),
        ({"starts": [1, 0]}, "kv_lengths: 9 of sequence 0, takes 0 to the 8 slots of its pages"),
    ],
)
def test_tables_that_a_problem_refuses(change: dict, text: str) -> None:
    device = selected_targets()[0].device()
    fields = {"page_len": 4, "n_pages": 6, "n_entries": 3, "sequence_stride": 3} | change
    problem = metal_sdpa.SdpaProblem(
        batch=2, head_dim=8, kv_capacity=9, kv_lengths=[9, 4], pages=metal_sdpa.PageTable(**fields)
    )
    registry = metal_sdpa.KernelRegistry(device)
    encoder = device.command_encoder()
    with pytest.raises(metal_sdpa.Error, match=f"^encode_sdpa: {text}"):
        metal_sdpa.encode_sdpa(encoder, registry, device, metal_sdpa.SdpaOperands(), problem)


# --- refusals ------------------------------------------------------------------------------------


def valid_call(packed_queries: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    shape = (5, 4, 8) if packed_queries else (2, 4, 3, 8)
    call = {
        "q": rng.standard_normal(shape, np.float32),
        "k_pages": rng.standard_normal((6, 4, 2, 8), np.float32),
        "v_pages": rng.standard_normal((6, 4, 2, 7), np.float32),
        "block_table": np.array([[0, 5, 2], [1, -7, 10**6]], np.int32),
        "kv_lengths": np.array([9, 4]),
    }
    return call | ({"cu_seqlens_q": [0, 2, 5]} if packed_queries else {})


ZEROS = np.zeros
TABLE_TEXT = r"an array \[B, max_blocks\], or a tuple \(indptr, indices\)"
INDICES = np.array([0, 5, 2, 1], np.int32)
REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"block_table": np.array([[0, 6, 2], [1, 0, 0]])}, InvalidArgument,
     "block_table: page 6 of sequence 0, entry 1, takes 0 to 5"),
    ({"block_table": np.array([[0, 5, 2], [-1, 0, 0]], np.int32)}, InvalidArgument,
     "block_table: page -1 of sequence 1, entry 0, takes 0 to 5"),
    ({"block_table": np.array([[0, 5, 2**40], [1, 0, 0]])}, InvalidArgument,
     "block_table: page 1099511627776 of sequence 0, entry 2"),
    ({"block_table": ([0, 3, 4], np.array([0, 5, 9, 1]))}, InvalidArgument,
     "block_table: page 9 of sequence 0, entry 2, takes 0 to 5"),
    ({"kv_lengths": [13, 4]}, InvalidArgument,
     "kv_lengths: 13 of sequence 0, takes 0 to the 12 slots of its pages"),
    ({"kv_lengths": [9, -1]}, InvalidArgument, "kv_lengths: -1 of sequence 1, takes 0 to the 12"),
    ({"kv_lengths": [9]}, InvalidArgument, "kv_lengths: 1 entries, but the batch has 2"),
    ({"kv_lengths": ZEROS(2, np.uint16)}, UnsupportedDType, "kv_lengths: dtype u16, takes int32"),
    ({"kv_lengths": None}, InvalidType, "kv_lengths: got None, takes an int or a sequence"),
    ({"block_table": ([0, 2, 4], INDICES)}, InvalidArgument,
     "kv_lengths: 9 of sequence 0, takes 0 to the 8 slots of its pages"),
    ({"block_table": ([0, 3], INDICES)}, InvalidArgument,
     "block_table: sequences 1, but the batch has 2"),
    ({"block_table": ([0, 3, 5], INDICES)}, InvalidArgument,
     "block_table: indptr: ends with 5, takes at most the 4 rows of indices"),
    ({"block_table": ([0, 3, 2], INDICES)}, InvalidArgument,
     "block_table: indptr: 2 behind 3 at entry 2"),
    ({"block_table": ([1, 3, 4], INDICES)}, InvalidArgument,
     "block_table: indptr: begins with 1, takes 0"),
    ({"block_table": ([0, 3, 4], INDICES[None])}, InvalidArgument,
     r"block_table: shape \[1, 4\] has 2 dimensions, takes 1 of indices"),
    ({"block_table": (INDICES,)}, InvalidType, f"block_table: got a tuple, takes {TABLE_TEXT}"),
    ({"block_table": ZEROS(3, np.int32)}, InvalidArgument,
     r"block_table: shape \[3\] has 1 dimensions, takes \[B, max_blocks\]"),
    ({"block_table": ZEROS((3, 3), np.int32)}, InvalidArgument,
     "block_table: sequences 3, but the batch has 2"),
    ({"block_table": ZEROS((2, 3), np.float32)}, UnsupportedDType,
     "block_table: dtype f32, takes int32 or int64"),
    ({"block_table": ZEROS((2, 3), np.uint32)}, UnsupportedDType, "block_table: dtype u32, takes"),
    ({"block_table": ZEROS((2, 3), bool)}, UnsupportedDType, "block_table: dtype bool, takes int"),
    ({"block_table": [[0, 1, 2]] * 2}, InvalidType, "block_table: got a list, takes an array"),
    ({"layout": "HDN"}, InvalidArgument, 'layout: "HDN", takes "NHD" or "HND"'),
    ({"layout": 1}, InvalidType, "layout: got an int, takes a str"),
    ({"layout": "HND"}, InvalidArgument, r"v_pages: n_kv_heads 4|n_heads|kv_lengths"),
    ({"check_indices": 0}, InvalidType, "check_indices: got an int, takes a bool"),
    ({"k_pages": ZEROS((6, 0, 2, 8), np.float32)}, InvalidArgument,
     r"k_pages: shape \[6, 0, 2, 8\] has pages of 0 slots"),
    ({"k_pages": ZEROS((6, 4, 0, 8), np.float32)}, InvalidArgument,
     r"k_pages: shape \(6, 4, 0, 8\) has no heads"),
    ({"v_pages": ZEROS((6, 4, 2, 0), np.float32)}, InvalidArgument,
     r"v_pages: shape \(6, 4, 2, 0\) has a value_dim of 0"),
    ({"k_pages": ZEROS((6, 4, 2, 7), np.float32)}, InvalidArgument,
     "k_pages: head_dim 7, but q has 8"),
    ({"k_pages": ZEROS((4, 2, 8), np.float32)}, InvalidArgument,
     r"k_pages: shape \[4, 2, 8\] has 3 dimensions, takes \[n_pages, page, Hkv, D\]"),
    ({"k_pages": ZEROS((6, 4, 2, 8), np.float16)}, UnsupportedDType,
     "k_pages: dtype f16, but q has f32"),
    ({"k_pages": ZEROS((6, 4, 2, 16), np.float32)[..., ::2]}, InvalidArgument,
     "k_pages: the last dimension has a stride of 2"),
    ({"v_pages": ZEROS((5, 4, 2, 7), np.float32)}, InvalidArgument,
     "v_pages: n_pages 5, but k_pages has 6"),
    ({"v_pages": ZEROS((6, 3, 2, 7), np.float32)}, InvalidArgument,
     "v_pages: page size 3, but k_pages has 4"),
    ({"v_pages": ZEROS((6, 4, 1, 7), np.float32)}, InvalidArgument,
     "v_pages: n_kv_heads 1, but k_pages has 2"),
    ({"q": ZEROS((5, 4, 8), np.float32)}, InvalidArgument,
     r"q: shape \[5, 4, 8\] has 3 dimensions, takes \[B, Hq, L, D\]"),
    ({"cu_seqlens_q": [0, 2, 5]}, InvalidArgument,
     r"q: shape \[2, 4, 3, 8\] has 4 dimensions, takes \[Tq, Hq, D\]"),
    ({"q_start": [1]}, InvalidArgument, "q_start: 1 entries, but the batch has 2"),
    ({"mask": np.ones((3, 8), bool)}, InvalidArgument,
     r"mask: shape \[3, 8\], takes what broadcasts to \[2, 4, 3, 9\], or more entries on the last"),
    ({"mask": np.ones((2, 3, 9), bool)}, InvalidArgument, r"mask: shape \[2, 3, 9\], takes what"),
    ({"out": ZEROS((2, 4, 3, 8), np.float32)}, InvalidArgument,
     r"out: shape \[2, 4, 3, 8\], takes \[2, 4, 3, 7\]"),
    ({"window": 0}, InvalidArgument, "window: 0, takes 1 or more keys"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), REFUSALS, ids=lambda x: str(x)[:40])
def test_what_is_refused(change: dict, error: type[Exception], text: str) -> None:
    out = np.full((2, 4, 3, 7), 7, np.float32)
    with pytest.raises(error, match=f"^sdpa_paged: ({text})"):
        sdpa_paged(**({"out": out} | valid_call() | change), device=selected_targets()[0].device())
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"cu_seqlens_q": [0, 2, 6]}, "cu_seqlens_q: ends with 6, takes at most the 5 rows of q"),
        ({"cu_seqlens_q": [0, 5]}, "kv_lengths: 2 entries, but the batch has 1"),
        ({"mask": np.ones((1, 4, 5, 9), bool)}, r"mask: shape \[1, 4, 5, 9\], takes what"),
        ({"out": ZEROS((2, 4, 3, 7), np.float32)}, r"out: shape \[2, 4, 3, 7\] has 4 dimensions"),
    ],
)
def test_what_is_refused_with_packed_queries(change: dict, text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^sdpa_paged: {text}"):
        sdpa_paged(**(valid_call(True) | change), device=selected_targets()[0].device())


@pytest.mark.parametrize("name", ["kv_starts", "query_lengths", "cu_seqlens_k", "k"])
def test_arguments_of_other_calls(name: str) -> None:
    with pytest.raises(TypeError, match=f"sdpa_paged: got an unexpected argument '{name}'"):
        sdpa_paged(**valid_call(), **{name: 0})


def test_entries_before_a_window_are_not_looked_at(device: Device) -> None:
    call = valid_call()
    call["block_table"] = np.array([[-1, 5, 2], [1, 0, 0]], np.int32)
    sdpa_paged(**call, window=2, device=device)
    with pytest.raises(InvalidArgument, match="block_table: page -1 of sequence 0, entry 0"):
        sdpa_paged(**call, window=7, device=device)


def test_none_is_the_default(device: Device) -> None:
    call = valid_call()
    names = [row[0] for row in metal_sdpa._core.parameters("sdpa_paged") if row[2]]
    nothing = dict.fromkeys(names) | {"device": device}
    assert same_bits(sdpa_paged(**call, **nothing), sdpa_paged(**call, device=device))


def test_an_out_in_the_pages_is_refused(device: Device) -> None:
    call = valid_call()
    out = call["k_pages"].reshape(-1)[: 2 * 4 * 3 * 7].reshape(2, 4, 3, 7)
    with pytest.raises(InvalidArgument, match="output: overlaps k"):
        sdpa_paged(**call, out=out, device=device)


def test_one_sequence_through_check_rows(device: Device) -> None:
    """The helper of these tests sees a page that is another."""
    rng = np.random.default_rng(2)
    batch = random_batch((42,), ("causal",), lengths=([2, 1], [9, 6]))
    pages = paged(batch, rng, 4)
    pages.table[0, 0], pages.table[1, 0] = pages.table[1, 0], pages.table[0, 0]
    q = packed(batch.q, rng)
    call = arguments(batch, pages, cu_seqlens_q=q.ends, device=device)
    out, lse = sdpa_paged(q.array, pages.k, pages.v, pages.table, **call)
    with pytest.raises(AssertionError):
        check_rows(batch, 0, out[:2], lse[:, :2], device)
