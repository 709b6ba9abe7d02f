"""write_kv: each way to name slots, both layouts, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from metal_sdpa import InvalidArgument, UnsupportedDType, write_kv

PAGES, PAGE, HEADS, DIM, VALUE_DIM = 6, 4, 2, 8, 5


def caches(layout="NHD", dtype=np.float32):
    """K and V as views of one tensor whose rows hold both."""
    axes = (PAGES, PAGE, HEADS) if layout == "NHD" else (PAGES, HEADS, PAGE)
    both = np.random.default_rng(9).standard_normal((*axes, DIM + VALUE_DIM)).astype(dtype)
    return both, both[..., :DIM], both[..., DIM:]


def new_rows(*shape, dtype=np.float32, seed=5):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((*shape, HEADS, d)).astype(dtype) for d in (DIM, VALUE_DIM))


def expected(both, layout, k, v, slots):
    want = both.copy()
    for t, slot in enumerate(slots):
        if slot < 0:
            continue
        at = (slot // PAGE, slot % PAGE) if layout == "NHD" else (slot // PAGE, slice(None),
                                                                  slot % PAGE)  # fmt: skip
        want[at] = np.concatenate([k[t], v[t]], axis=-1)
    return want


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_slot_mapping(layout, dtype):
    both, k_cache, v_cache = caches(layout, dtype)
    k, v = new_rows(5, dtype=dtype)
    slots = [23, -1, 0, 9, 10]
    want = expected(both, layout, k, v, slots)
    write_kv(k, v, k_cache, v_cache, slot_mapping=np.array(slots, np.int64), layout=layout)
    np.testing.assert_array_equal(both, want)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_block_table_and_positions(layout):
    both, k_cache, v_cache = caches(layout)
    k, v = new_rows(2, 3)
    table = np.array([[4, 1, -9], [2, 99, 0]], np.int32)
    slots = [4 * PAGE + 3, 1 * PAGE, 1 * PAGE + 1, 0 * PAGE + 0, -1, 2 * PAGE + 2]
    positions = np.array([[3, 4, 5], [8, -1, 2]])
    want = expected(both, layout, k.reshape(6, HEADS, DIM), v.reshape(6, HEADS, VALUE_DIM), slots)
    write_kv(k, v, k_cache, v_cache, block_table=table, positions=positions, layout=layout)
    np.testing.assert_array_equal(both, want)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("positions", [[1, 0], [[1, 2, 3], [0, 1, 2]]])
def test_a_contiguous_cache(layout, positions):
    both, k_cache, v_cache = caches(layout)
    both, k_cache, v_cache = both[:2], k_cache[:2], v_cache[:2]
    k, v = new_rows(2, 3)
    slots = [1, 2, 3, PAGE, PAGE + 1, PAGE + 2]
    want = expected(both, layout, k.reshape(6, HEADS, DIM), v.reshape(6, HEADS, VALUE_DIM), slots)
    write_kv(k, v, k_cache, v_cache, positions=positions, layout=layout)
    np.testing.assert_array_equal(both, want)


def test_strided_new_rows_and_none_at_all():
    both, k_cache, v_cache = caches()
    k, v = new_rows(6)
    want = expected(both, "NHD", k[::-2], v[::-2], [1, 2, 3])
    write_kv(k[::-2], v[::-2], k_cache, v_cache, slot_mapping=[1, 2, 3])
    np.testing.assert_array_equal(both, want)
    for none in ([], np.zeros(0, np.int32)):
        write_kv(k[:0], v[:0], k_cache, v_cache, slot_mapping=none)
    np.testing.assert_array_equal(both, want)


@pytest.mark.frameworks
def test_torch_writes_in_place():
    torch = pytest.importorskip("torch")
    cache = torch.zeros(2, PAGES, PAGE, HEADS, DIM, dtype=torch.bfloat16)
    k = torch.randn(3, HEADS, DIM).to(torch.bfloat16)
    write_kv(k, -k, cache[0], cache[1], slot_mapping=torch.tensor([5, 0, 17]))
    for t, slot in enumerate((5, 0, 17)):
        assert torch.equal(cache[0, slot // PAGE, slot % PAGE], k[t])
        assert torch.equal(cache[1, slot // PAGE, slot % PAGE], -k[t])
    assert torch.count_nonzero(cache[0].abs().sum(dim=(-1, -2))) == 3


def test_unchecked_slots_out_of_range_are_left_out():
    both, k_cache, v_cache = caches()
    k, v = new_rows(3)
    want = expected(both, "NHD", k, v, [-1, 3, -1])
    write_kv(k, v, k_cache, v_cache, slot_mapping=[PAGES * PAGE, 3, -5], check_indices=False)
    np.testing.assert_array_equal(both, want)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"slot_mapping": [1, 24, 2]}, "slots: 24 of token 1, takes -1 to 23"),
        ({"slot_mapping": [1, -2, 2]}, "slots: -2 of token 1"),
        ({"slot_mapping": [1, 2, 1]}, "slots: 1 is there twice"),
        ({"slot_mapping": [1, 2]}, "slots: tokens 2, but k_new has 3"),
        ({"slot_mapping": [[1, 2, 3]]}, "slot_mapping: shape"),
        ({"slot_mapping": [1, 2, 2**40]}, "slots reach past"),
        ({"slot_mapping": [1, 2, 3], "positions": [1]}, "slot_mapping: comes without"),
        ({}, "takes slot_mapping or positions"),
        ({"slot_mapping": [1, 2, 3], "layout": "HDN"}, 'layout: "HDN"'),
        ({"positions": [0]}, r"k_new: shape \[3, 2, 8\], takes \[B, L, Hkv, D\]"),
    ],
)
def test_bad_indices_are_refused_and_nothing_is_written(arguments, text):
    both, k_cache, v_cache = caches()
    before = both.copy()
    k, v = new_rows(3)
    with pytest.raises(InvalidArgument, match=text):
        write_kv(k, v, k_cache, v_cache, **arguments)
    np.testing.assert_array_equal(both, before)


@pytest.mark.parametrize(
    ("table", "positions", "text"),
    [
        ([[0, 6]], [[4]], "block_table: page 6, takes 0 to 5"),
        ([[0, -1]], [[4]], "block_table: page -1"),
        ([[0, 1]], [[8]], "positions: 8, takes -1 to 7"),
        ([[0, 1], [2, 3]], [[4]], "block_table: 2 sequences"),
        (None, [[4]], "batch 6, but k_new has 1"),
        ([[0, 1]], [[0, 1]], r"positions: shape \[1, 2\]"),
    ],
)
def test_bad_tables_are_refused(table, positions, text):
    both, k_cache, v_cache = caches()
    before = both.copy()
    k, v = new_rows(1, 1)
    with pytest.raises(InvalidArgument, match=text):
        write_kv(k, v, k_cache, v_cache, block_table=table, positions=positions)
    np.testing.assert_array_equal(both, before)


def test_bad_arrays_are_refused_by_name():
    _, k_cache, v_cache = caches()
    k, v = new_rows(3)
    slots = {"slot_mapping": [1, 2, 3]}
    with pytest.raises(UnsupportedDType, match="slot_mapping: dtype float64"):
        write_kv(k, v, k_cache, v_cache, slot_mapping=[1.0, 2.0, 3.0])
    with pytest.raises(UnsupportedDType, match="v_new: dtype f16, but k_new has f32"):
        write_kv(k, v.astype(np.float16), k_cache, v_cache, **slots)
    with pytest.raises(InvalidArgument, match="v_new: tokens 2, but k_new has 3"):
        write_kv(k, v[:2], k_cache, v_cache, **slots)
    with pytest.raises(InvalidArgument, match="k_cache: heads 1, but k_new has 2"):
        write_kv(k, v, k_cache[:, :, :1], v_cache[:, :, :1], **slots)
    with pytest.raises(InvalidArgument, match="k_cache: head_dim 7, but k_new has 8"):
        write_kv(k, v, k_cache[..., :7], v_cache, **slots)
    with pytest.raises(InvalidArgument, match="v_cache: slots a page 3, but k_cache has 4"):
        write_kv(k, v, k_cache, v_cache[:, :3], **slots)
    with pytest.raises(InvalidArgument, match="v_cache: overlaps k_cache"):
        write_kv(k, k, k_cache, k_cache, **slots)
    frozen = k_cache.copy()
    frozen.flags.writeable = False
    with pytest.raises(InvalidArgument, match="k_cache: is read-only"):
        write_kv(k, v, frozen, v_cache, **slots)
