"""sdpa_varlen: each sequence as sdpa gives it alone, whatever stands beside it."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import metal_sdpa
from accuracy import output_errors
from arrays import DTYPES, same_bits
from metal_sdpa import Device, InvalidArgument, InvalidType, UnsupportedDType, sdpa, sdpa_varlen
from serving import SCORE_FEATURES, Batch, check_all, ends_of, packed, random_batch, require
from targets import Target, selected_targets, sweep_seed


@pytest.fixture(autouse=True)
def _takes_varlen(request: pytest.FixtureRequest) -> None:
    names = request.fixturenames
    target = request.getfixturevalue("target") if "target" in names else selected_targets()[0]
    require(target, "varlen")


def attend(batch: Batch, device: Device, rng: np.random.Generator, **extra: Any) -> None:
    """Calls with everything packed tight, and checks every sequence."""
    q = packed(batch.q, rng)
    k, v = packed(batch.k, rng), packed(batch.v, rng)
    out, lse = sdpa_varlen(
        q.array, k.array, v.array, q.ends, k.ends, **batch.arguments(), **extra,
        return_lse=True, device=device,
    )  # fmt: skip
    check_all(batch, q.ends, out, lse, device)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("index", range(12))
def test_random_batches(dtype: str, index: int, target: Target) -> None:
    rng = np.random.default_rng((sweep_seed(), index))
    count = int(rng.integers(0, 3))
    names = tuple(rng.choice((*SCORE_FEATURES, "mask"), count, replace=False))
    if {"window", "band"} <= set(names) or {"q_start", "shard"} <= set(names):
        names = names[:1]
    seed = (sweep_seed(), index, len(dtype))
    attend(random_batch(seed, names, dtype=dtype, small=target.kind != "cpu"), target.device(), rng)


@pytest.mark.parametrize("name", [*SCORE_FEATURES, "mask", "bias"])
@pytest.mark.parametrize("with_causal", [False, True])
def test_every_feature(name: str, with_causal: bool, device: Device) -> None:
    lengths = ([1, 5, 0, 33, 2], [17, 5, 9, 33, 0])
    names = (name, "causal") if with_causal else (name,)
    rng = np.random.default_rng(4)
    attend(random_batch((len(name), 8), names, lengths=lengths), device, rng)


@pytest.mark.parametrize(
    "lengths",
    [
        ([], []),
        ([0], [0]),
        ([0, 0], [4, 5]),
        ([3], [0]),
        ([0, 2, 0], [0, 7, 0]),
        ([1] * 9, list(range(9))),
        ([70, 1, 1], [70, 65, 2]),
    ],
    ids=str,
)
def test_empty_sequences_and_edges(lengths: tuple, device: Device) -> None:
    rng = np.random.default_rng(1)
    if lengths[0]:
        attend(random_batch((3,), ("causal",), lengths=lengths), device, rng)
        return
    q, k = np.ones((0, 4, 8), np.float32), np.ones((0, 2, 8), np.float32)
    out, lse = sdpa_varlen(q, k, k, [0], [0], return_lse=True, device=device)
    assert out.shape == (0, 4, 8)
    assert lse.shape == (4, 0)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_rows_that_are_out_of_use_or_of_no_sequence(index: type, device: Device) -> None:
    """q and k have poisoned rows behind every sequence and behind all of them."""
    rng = np.random.default_rng(5)
    batch = random_batch((9,), ("causal", "sinks"), lengths=([4, 1, 0, 7], [4, 9, 3, 20]))
    sinks = np.linspace(-1, 1, batch.q[0].shape[1], dtype=np.float32)
    batch.call["sinks"] = sinks
    q = packed(batch.q, rng, gap=2, behind=3, index=index)
    k = packed(batch.k, rng, gap=1, behind=2, index=index)
    v = packed(batch.v, rng, gap=1, behind=2)
    given = (q.array, k.array, v.array, q.ends, k.ends)
    call = batch.arguments() | {
        "query_lengths": np.array(q.lengths, index),
        "kv_lengths": np.array(k.lengths, index),
        "device": device,
    }
    out, lse = sdpa_varlen(*given, **call, return_lse=True)
    check_all(batch, q.ends, out, lse, device)
    idle = np.ones(len(out), bool)
    for begin, rows in zip(q.ends, q.lengths, strict=False):
        idle[begin : begin + rows] = False
    assert (out[idle] == 0).all()
    unowned = np.arange(len(out)) >= q.ends[-1]
    assert np.isneginf(lse[:, unowned]).all()
    # What sdpa gives a row that sees no key.
    assert same_bits(lse[:, idle & ~unowned], np.repeat(sinks[:, None], 8, axis=1))

    kept = np.full((*out.shape[:2], batch.v[0].shape[2]), 7, np.float32)
    result = sdpa_varlen(*given, **call, out=kept)
    assert result is kept
    last = int(q.ends[-1])
    assert same_bits(kept[:last], out[:last])
    assert (kept[last:] == 7).all()


def test_one_number_for_all_sequences(device: Device) -> None:
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((12, 4, 8), np.float32), rng.standard_normal((15, 2, 8), np.float32)
    ends = ([0, 4, 8, 12], [0, 5, 10, 15])
    one = sdpa_varlen(q, k, k, *ends, kv_lengths=3, query_lengths=2, q_start=1, device=device)
    each = sdpa_varlen(
        q, k, k, *ends, kv_lengths=[3, 3, 3], query_lengths=np.array([2, 2, 2]), q_start=(1, 1, 1),
        device=device,
    )  # fmt: skip
    assert same_bits(one, each)
    assert (one[[2, 3, 6, 7, 10, 11]] == 0).all()


def test_index_arrays_of_every_layout(device: Device) -> None:
    rng = np.random.default_rng(5)
    batch = random_batch((10,), ("causal",), lengths=([4, 1, 2], [4, 9, 3]))
    q, k, v = packed(batch.q, rng), packed(batch.k, rng), packed(batch.v, rng)
    call = {"causal": True, "device": device}
    expected = sdpa_varlen(q.array, k.array, v.array, q.ends, k.ends, **call)
    for index in (np.int32, np.int64):
        q_ends, k_ends = q.ends.astype(index), k.ends.astype(index)
        for change in (
            lambda x: np.repeat(x, 2)[::2],
            lambda x: x[::-1].copy()[::-1],
            lambda x: x.tolist(),
            lambda x: tuple(x),
        ):
            out = sdpa_varlen(
                q.array, k.array, v.array, change(q_ends), change(k_ends), **call,
                kv_lengths=change(np.array(batch.slots, index)),
                q_start=change(np.array([0, 8, 1], index)),
            )  # fmt: skip
            assert same_bits(out, expected)


def test_what_stands_beside_a_sequence_is_no_matter(device: Device) -> None:
    rng = np.random.default_rng(6)
    lengths = ([1, 40, 3], [90, 64, 5])
    batch = random_batch((12,), ("causal",), lengths=lengths)
    results = []
    for order in itertools.permutations(range(3)):
        q, k, v = (packed([x[b] for b in order], rng) for x in (batch.q, batch.k, batch.v))
        out = sdpa_varlen(q.array, k.array, v.array, q.ends, k.ends, causal=True, device=device)
        begin = q.ends[order.index(1)]
        results.append(out[begin : begin + 40])
    assert all(same_bits(result, results[0]) for result in results)


# --- masks ---------------------------------------------------------------------------------------


def test_masks_broadcast(device: Device) -> None:
    rng = np.random.default_rng(2)
    batch = random_batch((14,), lengths=([2, 3, 1], [6, 4, 5]))
    q, k, v = packed(batch.q, rng), packed(batch.k, rng), packed(batch.v, rng)
    heads = batch.q[0].shape[1]
    dims = [(6,), (6, 6), (1, 6), (heads, 1, 6), (1, 6, 6), (heads, 6, 9), (heads, 6, 1), (1, 1, 1)]
    for shape in dims:
        mask = rng.random(shape) < 0.7
        keys = max(6, shape[-1])
        full = np.ascontiguousarray(np.broadcast_to(mask, (heads, 6, keys)))
        results = [
            sdpa_varlen(q.array, k.array, v.array, q.ends, k.ends, mask=given, device=device)
            for given in (mask, full, np.asfortranarray(full), full.astype(np.float32) * 0)
        ]
        assert same_bits(results[0], results[1]), shape
        assert same_bits(results[0], results[2]), shape
    batch.mask = full
    attend(batch, device, rng)


# --- memory --------------------------------------------------------------------------------------


def test_the_axes_of_a_result_lie_in_the_order_of_q(device: Device) -> None:
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((5, 4, 8), np.float32), rng.standard_normal((5, 2, 8), np.float32)
    ends = [0, 2, 5]
    heads_first = np.ascontiguousarray(q.swapaxes(0, 1)).swapaxes(0, 1)
    out = sdpa_varlen(q, k, k, ends, ends, device=device)
    assert out.flags.c_contiguous
    moved, lse = sdpa_varlen(heads_first, k, k, ends, ends, return_lse=True, device=device)
    assert same_bits(moved, out)
    assert moved.swapaxes(0, 1).flags.c_contiguous
    assert lse.shape == (4, 5)
    assert lse.flags.c_contiguous


def test_strided_inputs_and_an_f32_out(target: Target) -> None:
    device = target.device()
    rng = np.random.default_rng(3)
    batch = random_batch((21,), ("causal",), dtype="bf16", lengths=([3, 1, 20], [3, 18, 20]))
    q, k, v = packed(batch.q, rng), packed(batch.k, rng), packed(batch.v, rng)
    strided = [np.repeat(x.array[::-1], 2, axis=1)[::-1, ::2] for x in (q, k, v)]
    out = np.full((2 * len(q.array), q.array.shape[1], v.array.shape[2]), np.nan, np.float32)[::2]
    plain = sdpa_varlen(q.array, k.array, v.array, q.ends, k.ends, causal=True, device=device)
    sdpa_varlen(*strided, q.ends, k.ends, causal=True, out=out, device=device)
    if target.rounds_weights("bf16"):
        assert np.allclose(out, plain.astype(np.float32), rtol=2**-6, atol=2**-6)
    else:
        assert same_bits(np.ascontiguousarray(out).astype(ml_dtypes.bfloat16), plain)
    for b in range(3):
        rows = out[q.ends[b] : q.ends[b + 1]].swapaxes(0, 1)[None]
        assert output_errors(rows, batch.reference(b), "f32").max() <= 1


@pytest.mark.frameworks
def test_tensors_of_torch(target: Target) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    batch = random_batch((22,), ("causal",), lengths=([3, 1, 9], [3, 18, 9]))
    q, k, v = packed(batch.q, rng, behind=1), packed(batch.k, rng), packed(batch.v, rng)
    device = target.device()
    expected = sdpa_varlen(
        q.array, k.array, v.array, q.ends, k.ends, causal=True, return_lse=True, device=device
    )
    given = [torch.from_numpy(x) for x in (q.array, k.array, v.array, q.ends, k.ends)]
    given[0] = given[0].transpose(0, 1).contiguous().transpose(0, 1)
    out, lse = sdpa_varlen(*given, causal=True, return_lse=True, device=device)
    assert type(out) is torch.Tensor
    assert out.transpose(0, 1).is_contiguous()
    assert same_bits(out.contiguous().numpy(), expected[0])
    assert same_bits(lse.numpy(), expected[1])


@pytest.mark.frameworks
@pytest.mark.parametrize("framework", ["jax", "mlx"])
def test_arrays_of_other_frameworks(framework: str) -> None:
    """q's framework makes the results; numbers and rows may come from any."""
    if framework == "jax":
        make = pytest.importorskip("jax.numpy").asarray
    else:
        make = pytest.importorskip("mlx.core").array
    rng = np.random.default_rng(3)
    batch = random_batch((22,), ("causal",), lengths=([3, 1, 9], [3, 18, 9]))
    q, k, v = packed(batch.q, rng, behind=1), packed(batch.k, rng), packed(batch.v, rng)
    call = {"causal": True, "return_lse": True, "device": selected_targets()[0].device()}
    expected = sdpa_varlen(q.array, k.array, v.array, q.ends, k.ends, **call)
    given = [make(x) for x in (q.array, k.array, v.array, q.ends, k.ends)]
    out, lse = sdpa_varlen(*given, **call)
    assert type(out) is type(given[0])
    assert same_bits(np.asarray(out), expected[0])
    assert same_bits(np.asarray(lse), expected[1])
    mixed = sdpa_varlen(q.array, *given[1:], **call)
    assert same_bits(mixed[0], expected[0])


@pytest.mark.frameworks
def test_tensors_that_carry_more_than_their_memory(target: Target) -> None:
    torch = pytest.importorskip("torch")
    call = valid_call() | {"device": target.device()}
    for name in ("q", "k", "v"):
        given = call | {name: torch.from_numpy(call[name]).requires_grad_()}
        with pytest.raises(
            metal_sdpa.Unsupported, match=f"sdpa_varlen: {name}: requires gradients"
        ):
            sdpa_varlen(**given)


def test_buffers(target: Target) -> None:
    """Everything in memory of the device, indices too."""
    rng = np.random.default_rng(3)
    device = target.device()
    batch = random_batch((22,), ("causal",), lengths=([3, 1, 9], [3, 18, 9]))
    q, k, v = packed(batch.q, rng), packed(batch.k, rng), packed(batch.v, rng)
    arrays = (q.array, k.array, v.array, q.ends, k.ends.astype(np.int64))
    buffers = []
    for array in arrays:
        buffer = device.empty(array.shape, array.dtype)
        buffer.numpy()[...] = array
        buffers.append(buffer)
    out = sdpa_varlen(*buffers, causal=True)
    assert isinstance(out, metal_sdpa.Buffer)
    expected = sdpa_varlen(*arrays, causal=True, device=Device(target.kind))
    assert same_bits(out.numpy(), expected)


# --- the low-level API ---------------------------------------------------------------------------


def test_packed_rows_through_a_problem(device: Device) -> None:
    batch = random_batch((23,), ("causal",), lengths=([3, 1, 9], [3, 18, 9]))
    arrays = [
        np.ascontiguousarray(np.concatenate(parts).swapaxes(0, 1))
        for parts in (batch.q, batch.k, batch.v)
    ]
    problem = metal_sdpa.SdpaProblem(
        batch=3, n_heads=len(arrays[0]), n_kv_heads=len(arrays[1]), seq_len=9, kv_capacity=18,
        head_dim=arrays[0].shape[2], value_dim=arrays[2].shape[2], causal=True, return_lse=True,
        scale=arrays[0].shape[2] ** -0.5, query_lengths=batch.rows, kv_lengths=batch.slots,
        q_rows=[0, 3, 4], q_total=13, kv_rows=[0, 3, 21], kv_total=30,
    )  # fmt: skip
    assert problem.q_rows == (0, 3, 4)
    assert problem.kv_total == 30
    buffers = []
    for array in arrays:
        buffers.append(device.empty(array.shape, "f32"))
        buffers[-1].numpy()[...] = array
    out = device.empty((len(arrays[0]), 13, arrays[2].shape[2]), "f32")
    lse = device.empty((len(arrays[0]), 13), "f32")
    operands = metal_sdpa.SdpaOperands(q=buffers[0], k=buffers[1], v=buffers[2], out=out, lse=lse)
    registry = metal_sdpa.KernelRegistry(device)
    metal_sdpa.register_sdpa(registry)

    def encode() -> None:
        encoder = device.command_encoder()
        metal_sdpa.encode_sdpa(encoder, registry, device, operands, problem)
        encoder.commit_and_wait()

    encode()
    rows = np.ascontiguousarray(out.numpy().swapaxes(0, 1))
    check_all(batch, np.array([0, 3, 4, 13]), rows, lse.numpy(), device)
    for name, value, text in (
        ("q_rows", [0, 2, 4], "q_rows: 2 of sequence 1 with 1 rows, takes 3 to 12"),
        ("q_rows", [0, 3, 5], "q_rows: 5 of sequence 2 with 9 rows, takes 4 to 4"),
        ("q_rows", [0, 3], "q_rows: 2 entries, but the batch has 3"),
        ("kv_rows", [0, 3, 22], "kv_rows: 22 of sequence 2 with 9 rows, takes 0 to 21"),
        ("pages", metal_sdpa.PageTable(), "kv_rows: are given, and so are pages"),
    ):
        before = getattr(problem, name)
        setattr(problem, name, value)
        with pytest.raises(InvalidArgument, match=f"encode_sdpa: {text}"):
            encode()
        setattr(problem, name, before)


# --- refusals ------------------------------------------------------------------------------------


def valid_call() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "q": rng.standard_normal((7, 4, 8), np.float32),
        "k": rng.standard_normal((9, 2, 8), np.float32),
        "v": rng.standard_normal((9, 2, 6), np.float32),
        "cu_seqlens_q": np.array([0, 3, 7]),
        "cu_seqlens_k": np.array([0, 4, 9]),
    }


ZEROS = np.zeros
REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"cu_seqlens_q": [1, 3, 7]}, InvalidArgument, "cu_seqlens_q: begins with 1, takes 0"),
    ({"cu_seqlens_q": [0, 5, 3]}, InvalidArgument,
     "cu_seqlens_q: 3 behind 5 at entry 2, takes numbers that do not fall"),
    ({"cu_seqlens_q": [0, 5, 8]}, InvalidArgument,
     "cu_seqlens_q: ends with 8, takes at most the 7 rows of q"),
    ({"cu_seqlens_k": [0, 5, 10]}, InvalidArgument,
     "cu_seqlens_k: ends with 10, takes at most the 9 rows of k"),
    ({"cu_seqlens_k": [0, 9]}, InvalidArgument, "cu_seqlens_k: entries 2, but cu_seqlens_q has 3"),
    ({"cu_seqlens_q": []}, InvalidArgument, r"cu_seqlens_q: has no entry, takes \[B \+ 1\]"),
    ({"cu_seqlens_q": ZEROS((1, 3), np.int32)}, InvalidArgument,
     r"cu_seqlens_q: shape \[1, 3\] has 2 dimensions, takes 1"),
    ({"cu_seqlens_q": ZEROS(3, np.float32)}, UnsupportedDType,
     "cu_seqlens_q: dtype f32, takes int32 or int64"),
    ({"cu_seqlens_q": ZEROS(3, np.uint8)}, UnsupportedDType, "cu_seqlens_q: dtype u8, takes int32"),
    ({"cu_seqlens_q": ZEROS(3, np.uint32)}, UnsupportedDType, "cu_seqlens_q: dtype u32, takes"),
    ({"cu_seqlens_q": ZEROS(3, bool)}, UnsupportedDType, "cu_seqlens_q: dtype bool, takes int32"),
    ({"cu_seqlens_q": ZEROS(3, np.int16)}, UnsupportedDType, "cu_seqlens_q: dtype int16, takes"),
    ({"cu_seqlens_q": [0, 1.5, 7]}, InvalidType, "cu_seqlens_q: got a float, takes an int"),
    ({"cu_seqlens_q": 7}, InvalidType, "cu_seqlens_q: got an int, takes an int32 or int64 array"),
    ({"cu_seqlens_q": None}, InvalidType, "cu_seqlens_q: got None, takes an int32 or int64 array"),
    ({"kv_lengths": [5, 5]}, InvalidArgument,
     "kv_lengths: 5 of sequence 0, takes 0 to the 4 rows of its range"),
    ({"kv_lengths": [0, -1]}, InvalidArgument, "kv_lengths: -1 of sequence 1, takes 0 to the 5"),
    ({"kv_lengths": [4]}, InvalidArgument, "kv_lengths: 1 entries, but the batch has 2"),
    ({"kv_lengths": ZEROS(2, np.float32)}, UnsupportedDType, "kv_lengths: dtype f32, takes int32"),
    ({"query_lengths": 4}, InvalidArgument,
     "query_lengths: 4 of sequence 0, takes 0 to the 3 rows of its range"),
    ({"query_lengths": [1, 2, 3]}, InvalidArgument, "query_lengths: 3 entries, but the batch"),
    ({"query_lengths": ZEROS((2, 1), np.int32)}, InvalidArgument, r"query_lengths: shape \[2, 1\]"),
    ({"q_start": [1]}, InvalidArgument, "q_start: 1 entries, but the batch has 2"),
    ({"q_start": 2**63 - 1}, InvalidArgument, "q_start: 9223372036854775807, takes -2"),
    ({"q": ZEROS((1, 7, 4, 8), np.float32)}, InvalidArgument,
     r"q: shape \[1, 7, 4, 8\] has 4 dimensions, takes \[Tq, Hq, D\]"),
    ({"k": ZEROS((9, 8), np.float32)}, InvalidArgument, r"k: shape \[9, 8\] has 2 dimensions"),
    ({"q": ZEROS((7, 0, 8), np.float32)}, InvalidArgument, r"q: shape \(7, 0, 8\) has no heads"),
    ({"k": ZEROS((9, 0, 8), np.float32)}, InvalidArgument, r"k: shape \(9, 0, 8\) has no heads"),
    ({"v": ZEROS((9, 2, 0), np.float32)}, InvalidArgument,
     r"v: shape \(9, 2, 0\) has a value_dim of 0"),
    ({"k": ZEROS((9, 2, 7), np.float32)}, InvalidArgument, "k: head_dim 7, but q has 8"),
    ({"v": ZEROS((9, 1, 8), np.float32)}, InvalidArgument, "v: n_kv_heads 1, but k has 2"),
    ({"v": ZEROS((8, 2, 8), np.float32)}, InvalidArgument, "v: rows 8, but k has 9"),
    ({"k": ZEROS((9, 2, 8), np.float16)}, UnsupportedDType, "k: dtype f16, but q has f32"),
    ({"k": ZEROS((9, 3, 8), np.float32), "v": ZEROS((9, 3, 6), np.float32)}, InvalidArgument,
     "n_heads: 4 is no multiple of n_kv_heads 3"),
    ({"mask": np.ones((4, 7, 4), bool)}, InvalidArgument,
     r"mask: shape \[4, 7, 4\], takes what broadcasts to \[4, 7, 5\], or more entries on the last"),
    ({"mask": np.ones((2, 7, 5), bool)}, InvalidArgument, r"mask: shape \[2, 7, 5\], takes what"),
    ({"mask": np.ones((1, 4, 7, 5), bool)}, InvalidArgument, r"mask: shape \[1, 4, 7, 5\], takes"),
    ({"mask": np.ones((7, 5), np.int32)}, UnsupportedDType, "mask: dtype i32, takes bool"),
    ({"alibi_slopes": ZEROS((3, 4), np.float32)}, InvalidArgument,
     r"alibi_slopes: shape \[3, 4\], takes \[4\] or \[2, 4\]"),
    ({"sinks": ZEROS(2, np.float32)}, InvalidArgument, r"sinks: shape \[2\], takes \[4\]"),
    ({"sinks": np.full(4, np.nan, np.float32)}, InvalidArgument, "sinks: nan of head 0, takes"),
    ({"window": 0}, InvalidArgument, "window: 0, takes 1 or more keys"),
    ({"softcap": 0}, InvalidArgument, "softcap: 0, takes a finite f32 above 0"),
    ({"scale": np.nan}, InvalidArgument, "scale: nan, takes a finite number"),
    ({"key_stride": 2}, InvalidArgument, "q_start: is not given, and has to be with key_offset"),
    ({"out": ZEROS((4, 7, 6), np.float32)}, InvalidArgument,
     r"out: shape \[4, 7, 6\], takes \[7, 4, 6\]"),
    ({"out": ZEROS((7, 4, 6), np.float16)}, UnsupportedDType, "out: dtype f16, but q has f32"),
    ({"causal": 1}, InvalidType, "causal: got an int, takes a bool"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), REFUSALS, ids=lambda x: str(x)[:40])
def test_what_is_refused(change: dict, error: type[Exception], text: str) -> None:
    out = np.full((7, 4, 6), 7, np.float32)
    with pytest.raises(error, match=f"^sdpa_varlen: {text}"):
        sdpa_varlen(**({"out": out} | valid_call() | change), device=selected_targets()[0].device())
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kv_starts": 0}, "sdpa_varlen: got an unexpected argument 'kv_starts'"),
        ({"block_table": 0}, "sdpa_varlen: got an unexpected argument 'block_table'"),
    ],
)
def test_arguments_of_other_calls(change: dict, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        sdpa_varlen(**(valid_call() | change))


def test_arguments_that_are_missing_or_too_many() -> None:
    call = valid_call()
    with pytest.raises(TypeError, match="sdpa_varlen: cu_seqlens_k: is missing"):
        sdpa_varlen(*list(call.values())[:4])
    with pytest.raises(
        TypeError,
        match="got 6 positional arguments, takes q, k, v, cu_seqlens_q and cu_seqlens_k",
    ):
        sdpa_varlen(*call.values(), True)


def test_an_out_that_overlaps_an_input() -> None:
    call = valid_call()
    arena = np.zeros((7, 4, 14), np.float32)
    call["q"] = arena[..., :8]
    device = selected_targets()[0].device()
    sdpa_varlen(**call, out=arena[..., 8:], device=device)
    with pytest.raises(InvalidArgument, match="output: overlaps q"):
        sdpa_varlen(**call, out=arena[..., 7:13], device=device)


def test_none_is_the_default(device: Device) -> None:
    call = valid_call()
    names = [row[0] for row in metal_sdpa._core.parameters("sdpa_varlen") if row[2]]
    nothing = dict.fromkeys(names) | {"device": device}
    assert same_bits(sdpa_varlen(**call, **nothing), sdpa_varlen(**call, device=device))


def test_sequences_of_one_length_are_a_batch(device: Device) -> None:
    rng = np.random.default_rng(8)
    q = rng.standard_normal((3, 4, 6, 16), np.float32)
    k = rng.standard_normal((3, 2, 11, 16), np.float32)
    rows = [np.ascontiguousarray(x.swapaxes(1, 2)).reshape(-1, x.shape[1], 16) for x in (q, k)]
    ends = (ends_of([6] * 3), ends_of([11] * 3))
    out = sdpa_varlen(rows[0], rows[1], rows[1], *ends, causal=True, device=device)
    expected = sdpa(q, k, k, causal=True, device=device)
    assert same_bits(out.reshape(3, 6, 4, 16), np.ascontiguousarray(expected.swapaxes(1, 2)))
