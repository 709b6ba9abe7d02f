"""The C interface by ctypes: bits of metal_sdpa's own calls, statuses, messages, memory."""

from __future__ import annotations

import ctypes
import gc
import threading

import ml_dtypes
import numpy as np
import pytest

import c_interface as c
import metal_sdpa
from arrays import same_bits

BF16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(77)


def normal(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def dense(q: np.ndarray, k: np.ndarray, v: np.ndarray, **values: object) -> c.Problem:
    problem = c.Problem(
        dtype=c.dtype_of(q),
        batch=q.shape[0],
        n_heads=q.shape[1],
        n_kv_heads=k.shape[1],
        seq_len=q.shape[2],
        kv_capacity=k.shape[2],
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        scale=q.shape[3] ** -0.5,
        **values,
    )
    c.check(c.library().metal_sdpa_problem_set_packed_layouts(problem))
    return problem


def run(session: c.Session, problem: c.Problem, **arrays: np.ndarray) -> None:
    handles = {name: session.wrap(a, name not in ("out", "lse")) for name, a in arrays.items()}
    c.check(c.library().metal_sdpa_sdpa(session.device, problem, c.Operands(**handles)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=["f32", "f16", "bf16"])
def test_sdpa_with_every_score_feature(dtype: object) -> None:
    q = normal(2, 4, 6, 32, dtype=dtype)
    k, v = normal(2, 2, 50, 32, dtype=dtype), normal(2, 2, 50, 16, dtype=dtype)
    mask = RNG.random((6, 50)) < 0.7
    sinks, slopes = normal(4), normal(4) ** 2
    want, want_lse = metal_sdpa.sdpa(
        q,
        k,
        v,
        causal=True,
        window=(20, 3),
        softcap=5.0,
        mask=mask,
        sinks=sinks,
        alibi_slopes=slopes,
        kv_lengths=[50, 33],
        kv_starts=[0, 4],
        query_lengths=[6, 5],
        q_start=[44, 20],
        return_lse=True,
        out=np.empty((2, 4, 6, 16), np.float32),
        device="cpu",
    )
    problem = dense(
        q, k, v, causal=1, window_left=20, window_right=3, softcap=5.0, return_lse=1, out_f32=1
    )
    problem.mask.contents = c.MaskLayout(row_stride=50, key_stride=1, dtype=c.DTYPES["bool"])
    one_a_head = c.HeadLayout(head_stride=1, dtype=c.DTYPES["float32"])
    problem.sinks.contents = problem.alibi_slopes.contents = one_a_head
    problem.kv_lengths, problem.kv_starts = c.numbers(50, 33), c.numbers(0, 4)
    problem.query_lengths, problem.q_starts = c.numbers(6, 5), c.numbers(44, 20)
    out, lse = np.empty((2, 4, 6, 16), np.float32), np.empty((2, 4, 6), np.float32)
    with c.session() as session:
        run(session, problem, q=q, k=k, v=v, mask=mask, sinks=sinks, alibi_slopes=slopes,
            out=out, lse=lse)  # fmt: skip
    assert same_bits(out, want)
    assert same_bits(lse, want_lse)


def test_defaults_are_those_of_a_plain_call() -> None:
    q, k, v = normal(1, 3, 5, 8), normal(1, 3, 9, 8), normal(1, 3, 9, 8)
    out = np.empty((1, 3, 5, 8), np.float32)
    with c.session() as session:
        run(session, dense(q, k, v), q=q, k=k, v=v, out=out)
    assert same_bits(out, metal_sdpa.sdpa(q, k, v, device="cpu"))


def test_packed_rows() -> None:
    ends_q, ends_k = [0, 3, 4, 4, 24], [0, 9, 79, 80, 113]
    q, k, v = normal(24, 4, 32), normal(113, 2, 32), normal(113, 2, 32)
    want = metal_sdpa.sdpa_varlen(q, k, v, ends_q, ends_k, causal=True, device="cpu")
    problem = c.Problem(
        batch=4, n_heads=4, n_kv_heads=2, head_dim=32, value_dim=32, scale=32**-0.5, causal=1
    )
    problem.cu_seqlens_q, problem.cu_seqlens_k = c.numbers(*ends_q), c.numbers(*ends_k)
    problem.q = problem.out = c.TensorLayout(head_stride=32, row_stride=4 * 32)
    problem.k = problem.v = c.TensorLayout(head_stride=32, row_stride=2 * 32)
    out = np.empty((24, 4, 32), np.float32)
    with c.session() as session:
        run(session, problem, q=q, k=k, v=v, out=out)
    assert same_bits(out, want)


def pages_of(k_pages: np.ndarray, table: np.ndarray) -> c.PageTable:
    return c.PageTable(
        dtype=c.dtype_of(table),
        page_len=k_pages.shape[1],
        n_pages=k_pages.shape[0],
        n_entries=table.shape[1],
        sequence_stride=table.shape[1],
    )


def test_a_paged_cache_is_written_and_read() -> None:
    k_pages, v_pages = normal(7, 4, 2, 16), normal(7, 4, 2, 24)  # [n_pages, page, Hkv, D]
    k_new, v_new = normal(3, 2, 16), normal(3, 2, 24)
    table = np.array([[6, 1, 4], [0, 5, -9]], np.int32)
    slots = np.array([18, -1, 23], np.int32)
    q = normal(2, 4, 1, 16)
    k_want, v_want = k_pages.copy(), v_pages.copy()
    metal_sdpa.write_kv(k_new, v_new, k_want, v_want, slot_mapping=slots)
    want = metal_sdpa.sdpa_paged(q, k_want, v_want, table, [11, 8], device="cpu")

    write = c.WriteKvProblem(tokens=3, heads=2, head_dim=16, value_dim=24, n_pages=7, page_size=4)
    c.check(c.library().metal_sdpa_write_kv_problem_set_packed_layouts(write))
    problem = c.Problem(
        batch=2, n_heads=4, n_kv_heads=2, seq_len=1, head_dim=16, value_dim=24, scale=0.25, causal=1
    )
    problem.kv_lengths = c.numbers(11, 8)
    problem.pages.contents = pages_of(k_pages, table)
    c.check(c.library().metal_sdpa_problem_set_packed_layouts(problem))
    problem.k = c.TensorLayout(batch_stride=4 * 2 * 16, head_stride=16, row_stride=2 * 16)
    problem.v = c.TensorLayout(batch_stride=4 * 2 * 24, head_stride=24, row_stride=2 * 24)
    out = np.empty((2, 4, 1, 24), np.float32)
    with c.session() as session:
        operands = c.WriteKvOperands(
            k_new=session.wrap(k_new),
            v_new=session.wrap(v_new),
            k_cache=session.wrap(k_pages, read_only=False),
            v_cache=session.wrap(v_pages, read_only=False),
            slots=session.wrap(slots),
        )
        c.check(c.library().metal_sdpa_write_kv(session.device, write, operands))
        run(session, problem, q=q, k=k_pages, v=v_pages, block_table=table, out=out)
    assert same_bits(k_pages, k_want)
    assert same_bits(v_pages, v_want)
    assert same_bits(out, want)


def listed_pages(starts: list[int], lengths: list[int], **values: int) -> c.Problem:
    """Seven pages of four slots, of which a list of six entries names those in use."""
    extents = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "value_dim": 16}
    pages = {"page_len": 4, "n_pages": 7, "n_entries": 6}
    table = c.PageTable(**{name: values.get(name, pages[name]) for name in pages})
    table.starts = c.numbers(*starts)
    of_problem = {name: values.get(name, extents[name]) for name in extents}
    problem = c.Problem(batch=2, seq_len=1, kv_capacity=12, scale=0.25, causal=1, **of_problem)
    problem.kv_lengths = c.numbers(*lengths)
    problem.pages.contents = table
    c.check(c.library().metal_sdpa_problem_set_packed_layouts(problem))
    problem.k = problem.v = c.TensorLayout(batch_stride=4 * 2 * 16, head_stride=16, row_stride=32)
    return problem


def test_an_update_of_other_extents_or_pages_is_refused() -> None:
    q, k = normal(2, 4, 1, 16), normal(7, 4, 2, 16)
    table, out = np.array([6, 1, 4, 0, 5, 3], np.int32), np.empty((2, 4, 1, 16), np.float32)
    handle = ctypes.c_void_p()
    lib = c.library()
    with c.session() as session:
        entries = session.wrap(table)
        first = listed_pages([0, 3], [11, 8])
        c.check(lib.metal_sdpa_prepare(session.device, first, entries, ctypes.byref(handle)))
        others = ("page_len", "n_pages", "n_entries", "n_heads", "n_kv_heads", "head_dim",
                  "value_dim")  # fmt: skip
        problems = [listed_pages([0, 3], [8, 4], **{name: 8}) for name in others]
        for problem in (listed_pages([0, 2], [8, 12]), *problems):
            status = lib.metal_sdpa_prepared_update(handle, problem, None)
            assert status == c.INVALID_ARGUMENT
            assert "are not those prepared" in c.message()
        c.check(lib.metal_sdpa_prepared_update(handle, listed_pages([0, 3], [7, 12]), None))
        arrays = {name: session.wrap(x) for name, x in (("q", q), ("k", k), ("v", k))}
        operands = c.Operands(**arrays, out=session.wrap(out, read_only=False))
        c.check(lib.metal_sdpa_prepared_run(handle, operands, None))
        lib.metal_sdpa_prepared_release(handle)
    assert same_bits(out, metal_sdpa.sdpa_paged(q, k, k, table.reshape(2, 3), [7, 12]))


def test_an_update_may_use_fewer_of_the_packed_queries() -> None:
    q, k = normal(6, 4, 16), normal(20, 2, 16)
    ends = [0, 4, 6], [0, 10, 20]
    out = np.zeros((6, 4, 16), np.float32)
    handle = ctypes.c_void_p()

    def problem(*query_lengths: int) -> c.Problem:
        made = c.Problem(batch=2, n_heads=4, n_kv_heads=2, head_dim=16, value_dim=16, scale=0.25)
        made.cu_seqlens_q, made.cu_seqlens_k = (c.numbers(*x) for x in ends)
        made.query_lengths = c.numbers(*query_lengths)
        made.q = made.out = c.TensorLayout(head_stride=16, row_stride=64)
        made.k = made.v = c.TensorLayout(head_stride=16, row_stride=32)
        return made

    with c.session() as session:
        lib = c.library()
        c.check(lib.metal_sdpa_prepare(session.device, problem(4, 2), None, ctypes.byref(handle)))
        c.check(lib.metal_sdpa_prepared_update(handle, problem(2, 1), None))
        arrays = {name: session.wrap(x) for name, x in (("q", q), ("k", k), ("v", k))}
        operands = c.Operands(**arrays, out=session.wrap(out, read_only=False))
        c.check(lib.metal_sdpa_prepared_run(handle, operands, None))
        lib.metal_sdpa_prepared_release(handle)
    assert same_bits(out, metal_sdpa.sdpa_varlen(q, k, k, *ends, query_lengths=[2, 1]))


def test_errors_are_those_of_python() -> None:
    q, k = normal(1, 3, 5, 8), normal(1, 2, 9, 8)
    problem = dense(q, k, k)
    out = np.empty_like(q)
    with c.session() as session:
        operands = c.Operands(
            q=session.wrap(q), k=session.wrap(k), v=session.wrap(k), out=session.wrap(out, False)
        )
        status = c.library().metal_sdpa_sdpa(session.device, problem, operands)
        text = c.message()
        problem.dtype = c.DTYPES["float16"]
        problem.n_heads = 2
        other = c.library().metal_sdpa_sdpa(session.device, problem, operands)
    assert (status, other) == (c.INVALID_ARGUMENT, c.UNSUPPORTED_DTYPE)
    with pytest.raises(metal_sdpa.InvalidArgument) as error:
        metal_sdpa.sdpa(q, k, k, device="cpu")
    assert text == str(error.value)


def test_each_thread_has_its_message() -> None:
    device = ctypes.c_void_p()

    def open_device(kind: bytes) -> str:
        c.library().metal_sdpa_device_open(kind, None, ctypes.byref(device))
        return c.message()

    first = open_device(b"abacus")
    others: list[str] = []
    thread = threading.Thread(target=lambda: others.extend([c.message(), open_device(b"slate")]))
    thread.start()
    thread.join()
    assert "abacus" in first
    assert others[0] == ""
    assert "slate" in others[1]
    assert c.message() == first


def test_memory_comes_back_when_nothing_uses_it() -> None:
    released: list[int] = []
    release = c.Release(lambda context: released.append(context))
    array = normal(16)
    buffer = ctypes.c_void_p()
    with c.session() as session:
        wrap = c.library().metal_sdpa_buffer_wrap
        place = ctypes.byref(buffer)
        bad = wrap(session.device, 0, array.ctypes.data, 7, 0, release, 41, place)
        c.check(wrap(session.device, 0, array.ctypes.data, array.nbytes, 0, release, 42, place))
    gc.collect()
    assert bad == c.INVALID_ARGUMENT
    assert released == []
    c.library().metal_sdpa_buffer_release(buffer)
    assert released == [42]


def test_the_library_is_the_one_of_the_package() -> None:
    before = metal_sdpa.get_num_threads()
    c.check(c.library().metal_sdpa_set_num_threads(before + 3))
    assert metal_sdpa.get_num_threads() == before + 3
    c.check(c.library().metal_sdpa_set_num_threads(before))
    assert c.library().metal_sdpa_version().decode() == metal_sdpa.__version__
