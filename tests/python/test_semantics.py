"""The pinned semantics, case by case: positions, lengths, layouts, empty rows, NaN."""

from __future__ import annotations

import numpy as np
import pytest

import accuracy
import metal_sdpa
from arrays import DTYPES, as_f64, bits, same_bits
from metal_sdpa import Device
from problems import Shape, build_problem
from targets import Target

INFINITY = np.inf


def tensors(seed: int, shape: Shape, dtype: str = "f32") -> tuple[np.ndarray, ...]:
    """Packed q, k, v with logits of deviation 2.5."""
    rng = np.random.default_rng(seed)

    def normal(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims, np.float32)

    q = normal(shape.B, shape.Hq, shape.L, shape.D) * np.float32(2.5)
    k = normal(shape.B, shape.Hkv, shape.S, shape.D)
    v = normal(shape.B, shape.Hkv, shape.S, shape.Dv) + np.float32(0.5)
    return tuple(x.astype(DTYPES[dtype]) for x in (q, k, v))


# --- positions -----------------------------------------------------------------------------------


def test_the_last_query_meets_the_last_key_by_default(device: Device) -> None:
    q, k, v = tensors(0, Shape(2, 2, 1, 4, 9, 16, 16))
    default = metal_sdpa.sdpa(q, k, v, causal=True, device=device)
    assert same_bits(default, metal_sdpa.sdpa(q, k, v, causal=True, q_start=5, device=device))
    by_sequence = metal_sdpa.sdpa(q, k, v, causal=True, kv_lengths=[9, 6], device=device)
    starts = metal_sdpa.sdpa(q, k, v, causal=True, kv_lengths=[9, 6], q_start=[5, 2], device=device)
    assert same_bits(by_sequence, starts)


def test_q_start_0_is_the_causal_mask_of_a_square_block(device: Device) -> None:
    """Query 0 sees key 0 only: its output is that key's value."""
    q, k, v = tensors(1, Shape(1, 2, 2, 5, 9, 8, 8))
    out = metal_sdpa.sdpa(q, k, v, causal=True, q_start=0, device=device)
    np.testing.assert_allclose(out[:, :, 0], v[:, :, 0], rtol=16 * 2.0**-24)


@pytest.mark.parametrize("start", [-100, -7, -6, -1, 0, 3, 20, 21, 2**40, -(2**40)])
def test_positions_before_the_first_and_past_the_last_key(device: Device, start: int) -> None:
    shape = Shape(1, 2, 1, 7, 20, 16, 16)
    q, k, v = tensors(2, shape)
    out, lse = metal_sdpa.sdpa(q, k, v, causal=True, q_start=start, return_lse=True, device=device)
    empty = start + np.arange(shape.L) < 0
    assert np.array_equal(lse[0, 0] == -INFINITY, empty)
    assert not out[:, :, empty].any()
    full, full_lse = metal_sdpa.sdpa(q, k, v, return_lse=True, device=device)
    sees_all = start + np.arange(shape.L) >= shape.S - 1
    np.testing.assert_allclose(out[:, :, sees_all], full[:, :, sees_all], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse[:, :, sees_all], full_lse[:, :, sees_all], rtol=1e-5)


def test_without_causal_positions_do_not_matter(device: Device) -> None:
    q, k, v = tensors(3, Shape(2, 2, 1, 5, 12, 16, 16))
    want = metal_sdpa.sdpa(q, k, v, kv_lengths=7, device=device)
    for start in (-50, 0, 3, 2**30, [-1, 4]):
        got = metal_sdpa.sdpa(q, k, v, kv_lengths=7, q_start=start, device=device)
        assert same_bits(got, want)


def test_more_queries_than_keys(device: Device) -> None:
    """L 6 over S 2: rows 0 to 3 stand before key 0 and see nothing."""
    q, k, v = tensors(4, Shape(1, 1, 1, 6, 2, 8, 8))
    out, lse = metal_sdpa.sdpa(q, k, v, causal=True, return_lse=True, device=device)
    assert (lse[0, 0] == -INFINITY).tolist() == [True] * 4 + [False] * 2
    assert not bits(out[:, :, :4]).any()
    np.testing.assert_allclose(out[0, 0, 4], v[0, 0, 0], rtol=16 * 2.0**-24)


@pytest.mark.parametrize("dtype", DTYPES)
def test_length_0_gives_0_and_minus_infinity(device: Device, dtype: str) -> None:
    q, k, v = tensors(5, Shape(2, 4, 2, 3, 5, 8, 12), dtype)
    k[...] = np.nan
    v[...] = np.nan
    out, lse = metal_sdpa.sdpa(q, k, v, kv_lengths=0, return_lse=True, device=device)
    assert not bits(out).any()
    assert (lse == -INFINITY).all()
    lengths = np.array([0, 5])
    q, k, v = tensors(5, Shape(2, 4, 2, 3, 5, 8, 12), dtype)
    out, lse = metal_sdpa.sdpa(q, k, v, kv_lengths=lengths, return_lse=True, device=device)
    assert not bits(out[0]).any()
    assert (lse[0] == -INFINITY).all()
    assert np.isfinite(lse[1]).all()


# --- padding and stale slots ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 66])
def test_slots_past_the_length_are_never_read(target: Target, dtype: str, length: int) -> None:
    """Capacity 67, every length around a tile: NaN, infinities, the largest numbers, stale bits."""
    shape = Shape(1, 4, 2, 5, 67, 24, 40)
    q, k, v = tensors(6, shape, dtype)
    device = target.device()
    trimmed = metal_sdpa.sdpa(q, k[:, :, :length], v[:, :, :length], causal=True, device=device)
    largest = 6.5e4 if dtype == "f16" else 3e38
    for poison in (np.nan, INFINITY, -INFINITY, largest, -largest):
        k[:, :, length:] = poison
        v[:, :, length:] = poison
        out = metal_sdpa.sdpa(q, k, v, causal=True, kv_lengths=length, device=device)
        assert same_bits(out, trimmed), poison


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64])
def test_a_key_past_the_position_never_changes_a_bit(target: Target, length: int) -> None:
    shape = Shape(1, 2, 1, 9, 64, 32, 32)
    q, k, v = tensors(7, shape)
    start = length - 4  # positions run past the length
    arguments = {"causal": True, "kv_lengths": length, "q_start": start, "device": target.device()}
    before = metal_sdpa.sdpa(q, k, v, **arguments)
    for key in range(max(length - 2, 0), min(length + 8, 64)):
        changed_k, changed_v = k.copy(), v.copy()
        changed_k[:, :, key] *= -3
        changed_v[:, :, key] += 100
        after = metal_sdpa.sdpa(q, changed_k, changed_v, **arguments)
        sees = (start + np.arange(9) >= key) & (key < length)
        assert same_bits(after[:, :, ~sees], before[:, :, ~sees])
        assert (bits(after[:, :, sees]) != bits(before[:, :, sees])).any(axis=(0, 1, 3)).all()


# --- NaN and infinities --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_reaches_the_rows_that_see_it_and_no_other(
    device: Device, dtype: str, where: str
) -> None:
    shape = Shape(1, 4, 2, 6, 40, 16, 16)
    arrays = dict(zip("qkv", tensors(8, shape, dtype), strict=True))
    # head 1, row 2 of q; KV head 1, key 36 of 40: rows 2 to 5 of heads 2 and 3 (q starts at 34)
    arrays[where][0, 1, 2 if where == "q" else 36, 7] = np.nan
    out = as_f64(metal_sdpa.sdpa(**arrays, causal=True, device=device))
    expected = np.zeros((4, 6, 16), bool)
    if where == "q":
        expected[1, 2] = True
    elif where == "k":
        expected[2:, 2:] = True
    else:
        expected[2:, 2:, 7] = True
    assert np.array_equal(np.isnan(out[0]), expected)


def test_scores_out_of_range(device: Device) -> None:
    """One key's q.k is past f32: below it has no weight, above the row is its value or NaN."""
    q, k, v = tensors(9, Shape(1, 1, 1, 1, 33, 8, 8))
    k[0, 0, 5] = 0
    k[0, 0, 5, 0] = -np.sign(q[0, 0, 0, 0]) * np.float32(3e38)
    q[0, 0, 0, 0] = np.sign(q[0, 0, 0, 0]) * np.float32(100)
    out, lse = metal_sdpa.sdpa(q, k, v, return_lse=True, device=device)
    kept = np.delete(np.arange(33), 5)
    want, want_lse = metal_sdpa.sdpa(
        q, k[:, :, kept], v[:, :, kept], return_lse=True, device=device
    )
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-5)
    k[0, 0, 5, 0] *= -1
    out = metal_sdpa.sdpa(q, k, v, device=device)
    assert np.isnan(out).all() or np.array_equal(out, v[:, :, 5:6])


def test_an_infinite_key_gives_nan_or_nothing(device: Device) -> None:
    """inf - inf is NaN; a score of -inf counts as hidden."""
    q, k, v = tensors(9, Shape(1, 1, 1, 1, 33, 8, 8))
    k[0, 0, 5] = 0
    q[0, 0, 0, 1:] = np.abs(q[0, 0, 0, 1:])
    k[0, 0, 5, 0] = -np.sign(q[0, 0, 0, 0]) * np.float32(np.inf)
    v[0, 0, 5] = np.nan
    kept = np.delete(np.arange(33), 5)
    want = metal_sdpa.sdpa(q, k[:, :, kept], v[:, :, kept], device=device)
    out = metal_sdpa.sdpa(q, k, v, device=device)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
    k[0, 0, 5, 0] *= -1
    v[0, 0, 5] = 1
    assert np.isnan(metal_sdpa.sdpa(q, k, v, device=device)).all()


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_offset_and_every_length_of_a_tile(target: Target, dtype: str) -> None:
    """q, k and v at every element offset mod 16, with every length mod 16: the same bits."""
    device = target.device()
    lengths = range(33, 49) if target.kind == "cpu" else (33, 40, 48)
    shape = Shape(1, 2, 1, 3, 48, 20, 20)
    q, k, v = tensors(10, shape, dtype)
    for length in lengths:
        arguments = {"causal": True, "kv_lengths": length, "device": device}
        want = metal_sdpa.sdpa(q, k, v, **arguments)
        for offset in range(16) if target.kind == "cpu" else (1, 7):
            moved = []
            for n, x in enumerate((q, k, v)):
                flat = np.full(x.size + 64, np.nan, x.dtype)
                start = (offset * (2 * n + 1)) % 16
                view = flat[start : start + x.size].reshape(x.shape)
                view[...] = x
                moved.append(view)
            assert same_bits(metal_sdpa.sdpa(*moved, **arguments), want), (length, offset)


def test_layouts_of_real_engines(target: Target) -> None:
    """Token-major [B, S, H, D], fused QKV [B, S, 3, H, D], a cache slot, broadcast KV heads."""
    device = target.device()
    B, H, S, D = 2, 4, 19, 24
    q, k, v = tensors(11, Shape(B, H, H, S, S, D, D))
    want = metal_sdpa.sdpa(q, k, v, causal=True, device=device)

    token_major = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (q, k, v)]
    views = [x.transpose(0, 2, 1, 3) for x in token_major]
    assert same_bits(metal_sdpa.sdpa(*views, causal=True, device=device), want)

    fused = np.stack(token_major, axis=2)
    views = [fused[:, :, n].transpose(0, 2, 1, 3) for n in range(3)]
    assert same_bits(metal_sdpa.sdpa(*views, causal=True, device=device), want)

    cache = np.full((5, H, 64, D), np.nan, np.float32)
    cache[1:4:2, :, :S] = k
    slots = cache[1:4:2]
    got = metal_sdpa.sdpa(q, slots, v_cache(v), causal=True, kv_lengths=S, device=device)
    assert same_bits(got, want)

    one = metal_sdpa.sdpa(q, k[:, :1], v[:, :1], causal=True, device=device)
    broadcast = [np.broadcast_to(x[:, :1], x.shape) for x in (k, v)]
    got = metal_sdpa.sdpa(q, *broadcast, causal=True, device=device)
    np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-6)


def v_cache(v: np.ndarray) -> np.ndarray:
    """v in a cache of capacity 64 whose other slots are stale."""
    cache = np.full((*v.shape[:2], 64, v.shape[3]), np.inf, v.dtype)
    cache[:, :, : v.shape[2]] = v
    return cache


def test_out_may_be_strided_between_other_things(target: Target) -> None:
    """out is the last quarter of a fused [B, L, 4, H, D] block that holds q, k and v too."""
    device = target.device()
    B, H, L, D = 2, 3, 17, 16
    q, k, v = tensors(12, Shape(B, H, H, L, L, D, D))
    want = metal_sdpa.sdpa(q, k, v, causal=True, device=device)
    block = np.full((B, L, 4, H, D), 7, np.float32)
    parts = [block[:, :, n].transpose(0, 2, 1, 3) for n in range(4)]
    for part, x in zip(parts, (q, k, v), strict=False):
        part[...] = x
    metal_sdpa.sdpa(*parts[:3], causal=True, out=parts[3], device=device)
    assert same_bits(parts[3], want)
    for part, x in zip(parts, (q, k, v), strict=False):
        assert same_bits(part, x)


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -0.5, 1.0, 1e-30, 30.0])
def test_any_finite_scale(target: Target, dtype: str, scale: float) -> None:
    shape = Shape(1, 2, 1, 9, 40, 16, 16)
    problem = build_problem(np.random.default_rng(13), shape, dtype=dtype, scale=scale)
    out, lse = metal_sdpa.sdpa(
        *problem.arrays(), **problem.arguments(), return_lse=True, device=target.device()
    )
    reference = problem.reference(scale=float(np.float32(scale)))
    assert accuracy.output_errors(out, reference, dtype).max() <= 1
    assert accuracy.lse_errors(lse, reference).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_values_come_back_at_any_length(target: Target, dtype: str) -> None:
    """The error does not grow with the number of keys."""
    longest = 20_000 if target.kind == "cpu" else 300
    rng = np.random.default_rng(14)
    for length in (1, 33, longest):
        q = rng.standard_normal((1, 1, 1, 32), np.float32).astype(DTYPES[dtype])
        k = rng.standard_normal((1, 1, length, 32), np.float32).astype(DTYPES[dtype])
        for value in (0.1, 1 / 3, 1e-3):
            v = np.full((1, 1, length, 8), value, DTYPES[dtype])
            out = as_f64(metal_sdpa.sdpa(q, k, v, device=target.device()))
            want = as_f64(v[0, 0, 0, 0])
            logit_size = np.linalg.norm(as_f64(q)) * np.linalg.norm(as_f64(k), axis=3).max()
            relative = accuracy.F32_UNIT * (16 + 6 * logit_size / np.sqrt(32))
            if dtype != "f32":
                relative += 1.25 * accuracy.UNIT[dtype]
            assert np.abs(out - want).max() <= relative * want * np.sqrt(8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_many_sizes_within_one_row(target: Target, dtype: str) -> None:
    """One element of the output dominates its norm, so that no errors average out."""
    for seed in range(60 if target.kind == "cpu" else 4):
        rng = np.random.default_rng(seed)
        problem = build_problem(rng, Shape(1, 4, 2, 33, 33, 8, 8), dtype=dtype)
        sizes = np.exp2(rng.uniform(-8, 8, problem.v.view.shape)).astype(np.float32)
        v = (problem.v.view.astype(np.float32) * sizes).astype(DTYPES[dtype])
        q, k, _ = problem.arrays()
        out = metal_sdpa.sdpa(q, k, v, **problem.arguments(), device=target.device())
        errors = accuracy.output_errors(out, problem.reference(v=v), dtype)
        assert errors.max() <= 1, seed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seq_len", [1, 40])
def test_weights_below_the_smallest_normal_number(target: Target, dtype: str, seq_len: int) -> None:
    """One key wins; all others have weights of exp(-87) to exp(-104), the subnormals of f32."""
    keys = 70
    rng = np.random.default_rng(19)
    v = rng.standard_normal((1, 1, keys, 24), np.float32).astype(DTYPES[dtype])
    q = np.zeros((1, 1, seq_len, 8), DTYPES[dtype])
    q[..., 0] = 1
    for winner in range(keys) if target.kind == "cpu" else (0, 13, 69):
        k = np.zeros((1, 1, keys, 8), DTYPES[dtype])
        k[0, 0, :, 0] = -rng.uniform(87, 104, keys)
        k[0, 0, winner, 0] = 0
        out = metal_sdpa.sdpa(q, k, v, scale=1.0, device=target.device())
        want = np.broadcast_to(as_f64(v[0, 0, winner]), out.shape)
        np.testing.assert_allclose(as_f64(out), want, rtol=16 * accuracy.F32_UNIT, atol=1e-30)


def test_f16_subnormals_count(target: Target) -> None:
    q = np.zeros((1, 1, 1, 8), np.float16)
    k = np.zeros((1, 1, 2, 8), np.float16)
    v = np.full((1, 1, 2, 8), 2.0**-23, np.float16)  # twice the smallest subnormal
    v[0, 0, 0] *= 3
    out = metal_sdpa.sdpa(q, k, v, device=target.device())
    assert (as_f64(out) == 2 * 2.0**-23).all()


def test_large_values_do_not_overflow(target: Target) -> None:
    """Weights sum to one: a mean of the largest f16 numbers is one of them."""
    v = np.full((1, 1, 70, 16), 65504, np.float16)
    q, k, _ = tensors(15, Shape(1, 1, 1, 3, 70, 16, 16), "f16")
    assert (metal_sdpa.sdpa(q, k, v, device=target.device()) == np.float16(65504)).all()
    v = np.full((1, 1, 70, 16), 1e36, np.float32)
    q, k, _ = tensors(15, Shape(1, 1, 1, 3, 70, 16, 16))
    out = metal_sdpa.sdpa(q, k, v, device=target.device())
    np.testing.assert_allclose(out, v[:, :, :3], rtol=1e-5)


def test_huge_logits_do_not_overflow(target: Target) -> None:
    """Scores of 1e30 and equal: the softmax is over their differences."""
    q = np.full((1, 1, 1, 4), 1e15, np.float32)
    k = np.full((1, 1, 40, 4), 1e15, np.float32)
    v = np.random.default_rng(16).standard_normal((1, 1, 40, 4), np.float32)
    out = metal_sdpa.sdpa(q, k, v, device=target.device())
    np.testing.assert_allclose(out[0, 0, 0], v[0, 0].mean(axis=0), rtol=1e-4, atol=1e-6)


# --- what is returned ----------------------------------------------------------------------------


def test_results(device: Device) -> None:
    q, k, v = tensors(17, Shape(2, 4, 2, 3, 5, 8, 12), "f16")
    out = metal_sdpa.sdpa(q, k, v, device=device)
    assert isinstance(out, np.ndarray)
    assert (out.shape, out.dtype) == ((2, 4, 3, 12), np.float16)
    out, lse = metal_sdpa.sdpa(q, k, v, return_lse=True, device=device)
    assert (lse.shape, lse.dtype) == ((2, 4, 3), np.float32)
    given = np.empty_like(out)
    assert metal_sdpa.sdpa(q, k, v, out=given, device=device) is given
    assert same_bits(given, out)


def test_error_types() -> None:
    assert issubclass(metal_sdpa.InvalidArgument, ValueError)
    assert issubclass(metal_sdpa.UnsupportedDType, TypeError)
    assert issubclass(metal_sdpa.BufferAllocationError, MemoryError)
    for name in (
        "InvalidArgument",
        "UnsupportedDType",
        "Unsupported",
        "DeviceNotFound",
        "KernelNotFound",
        "ShaderCompilationError",
        "CommandBufferError",
        "BufferAllocationError",
    ):
        assert issubclass(getattr(metal_sdpa, name), metal_sdpa.Error)
