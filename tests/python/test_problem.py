"""SdpaProblem and SdpaOperands: what sdpa() does, through encode_sdpa, recorded and replayed."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import metal_sdpa
from arrays import DTYPES, same_bits
from engine import CORE_DTYPES
from metal_sdpa import (
    Buffer,
    Device,
    DType,
    HeadLayout,
    InvalidArgument,
    InvalidType,
    KernelRegistry,
    MaskLayout,
    SdpaOperands,
    SdpaProblem,
    TensorLayout,
    UnsupportedDType,
)
from problems import Shape
from targets import selected_targets

SHAPE = Shape(B=2, Hq=4, Hkv=2, L=3, S=40, D=16, Dv=16)


@pytest.fixture
def first_device() -> Device:
    return selected_targets()[0].device()


def filled(device: Device, array: np.ndarray, dtype: DType) -> Buffer:
    buffer = device.empty(array.shape, dtype)
    buffer.numpy()[...] = array
    return buffer


class Call:
    """Random packed tensors of SHAPE on a device, and the problem that they pose."""

    def __init__(self, device: Device, dtype: str = "f32", **problem: object) -> None:
        s = SHAPE
        rng = np.random.default_rng(1)
        dims = ((s.B, s.Hq, s.L, s.D), (s.B, s.Hkv, s.S, s.D), (s.B, s.Hkv, s.S, s.Dv))
        self.arrays = [rng.standard_normal(d, np.float32).astype(DTYPES[dtype]) for d in dims]
        self.device = device
        self.registry = KernelRegistry(device)
        q, k, v = (filled(device, x, CORE_DTYPES[dtype]) for x in self.arrays)
        out = device.empty((s.B, s.Hq, s.L, s.Dv), CORE_DTYPES[dtype])
        self.operands = SdpaOperands(q=q, k=k, v=v, out=out)
        fixed = {
            "dtype": dtype, "batch": s.B, "n_heads": s.Hq, "n_kv_heads": s.Hkv, "seq_len": s.L,
            "kv_capacity": s.S, "head_dim": s.D, "scale": 0.25,
        }  # fmt: skip
        self.problem = SdpaProblem(**(fixed | problem))

    def encode(self) -> np.ndarray:
        encoder = self.device.command_encoder()
        metal_sdpa.encode_sdpa(encoder, self.registry, self.device, self.operands, self.problem)
        encoder.commit_and_wait()
        return self.operands.out.numpy()

    def record(self) -> metal_sdpa.Graph:
        encoder = self.device.command_encoder()
        encoder.begin_capture()
        metal_sdpa.encode_sdpa(encoder, self.registry, self.device, self.operands, self.problem)
        return encoder.end_capture()

    def replay(self, graph: metal_sdpa.Graph) -> np.ndarray:
        self.operands.out.numpy()[...] = np.nan
        encoder = self.device.command_encoder()
        graph.replay(encoder)
        encoder.commit_and_wait()
        return self.operands.out.numpy().copy()

    def expected(self, **call: object) -> np.ndarray:
        return metal_sdpa.sdpa(*self.arrays, scale=0.25, **call, device=self.device)


# --- through encode_sdpa --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_sdpa(device: Device, dtype: str) -> None:
    call = Call(device, dtype, causal=True, kv_lengths=[40, 17], q_starts=[20, 3])
    assert same_bits(
        call.encode(), call.expected(causal=True, kv_lengths=[40, 17], q_start=[20, 3])
    )


def test_lse_and_strides(device: Device) -> None:
    call = Call(device, return_lse=True)
    s = SHAPE
    rows = call.arrays[1].swapaxes(1, 2)  # a cache [B, S, Hkv, D]
    call.operands.k = filled(device, rows, DType.f32)
    call.problem.k = TensorLayout(
        batch_stride=s.S * s.Hkv * s.D, head_stride=s.D, row_stride=s.Hkv * s.D
    )
    call.operands.lse = device.empty((s.B, s.Hq, s.L), DType.f32)
    out = call.encode()
    expected, lse = metal_sdpa.sdpa(*call.arrays, scale=0.25, return_lse=True, device=device)
    assert same_bits(out, expected)
    assert same_bits(call.operands.lse.numpy(), lse)


def test_visibility(device: Device) -> None:
    cases = {
        "window": ({"window_left": 4, "window_right": 0}, {"window": 5}),
        "kv_start": ({"kv_start": 7}, {"kv_starts": 7}),
        "kv_starts": ({"kv_starts": [0, 30]}, {"kv_starts": [0, 30]}),
        "query_len": ({"query_len": 2}, {"query_lengths": 2}),
        "shard": (
            {"key_offset": 1, "key_stride": 3, "q_start": 60, "causal": True},
            {"key_offset": 1, "key_stride": 3, "q_start": 60, "causal": True},
        ),
    }
    for problem, arguments in cases.values():
        call = Call(device, **problem)
        assert same_bits(call.encode(), call.expected(**arguments)), problem


def test_scores(device: Device) -> None:
    s = SHAPE
    rng = np.random.default_rng(2)
    mask = rng.random((s.L, s.S)) < 0.6
    bias = rng.standard_normal((s.Hq, 1, s.S), np.float32).astype(np.float16)
    sinks = rng.standard_normal(s.Hq, np.float32)
    slopes = rng.random((s.B, s.Hq), np.float32)
    call = Call(device, softcap=3.0, sinks=HeadLayout(), alibi_slopes=HeadLayout(batch_stride=s.Hq))
    call.operands.sinks = filled(device, sinks, DType.f32)
    call.operands.alibi_slopes = filled(device, slopes, DType.f32)
    expected = {"softcap": 3.0, "sinks": sinks, "alibi_slopes": slopes}
    assert same_bits(call.encode(), call.expected(**expected))
    # A truth value is anything but 0.
    call.operands.mask = filled(device, np.where(mask, 200, 0), DType.u8)
    call.problem.mask = MaskLayout(row_stride=s.S)
    assert same_bits(call.encode(), call.expected(mask=mask, **expected))
    call.operands.mask = filled(device, bias, DType.f16)
    call.problem.mask = MaskLayout(dtype="f16", head_stride=s.S)
    assert same_bits(call.encode(), call.expected(mask=bias, **expected))


def test_an_f32_output(device: Device) -> None:
    call = Call(device, "f16", out_f32=True)
    call.operands.out = device.empty(call.operands.out.shape, DType.f32)
    assert same_bits(call.encode().astype(np.float16), call.expected())


def test_a_buffer_of_u8_is_a_mask_of_sdpa(first_device: Device) -> None:
    call = Call(first_device)
    mask = np.random.default_rng(3).random((SHAPE.L, SHAPE.S)) < 0.6
    buffer = filled(first_device, mask, DType.u8)
    assert same_bits(call.expected(mask=buffer), call.expected(mask=mask))


# --- what is refused ------------------------------------------------------------------------------


def test_operands_must_fit(first_device: Device) -> None:
    layouts = {
        "mask": (MaskLayout(row_stride=40), DType.f32, 200, UnsupportedDType, "dtype f32, but its"),
        "sinks": (HeadLayout(), DType.f32, 3, InvalidArgument, "elements 0 to 3 are touched"),
        "alibi_slopes": (HeadLayout(offset=1), DType.f32, 4, InvalidArgument, "elements 1 to 4"),
    }
    for name, (layout, dtype, count, error, text) in layouts.items():
        call = Call(first_device)
        setattr(call.problem, name, layout)
        with pytest.raises(InvalidArgument, match=f"encode_sdpa: {name}: the buffer is empty"):
            call.encode()
        setattr(call.operands, name, first_device.alloc_buffer(count * 4, dtype, (count,)))
        with pytest.raises(error, match=f"encode_sdpa: {name}: {text}"):
            call.encode()


def test_wrong_types_are_typed_errors(first_device: Device) -> None:
    call = Call(first_device)
    with pytest.raises(InvalidType, match="SdpaProblem: kv_len: got a str, takes an int"):
        call.problem.kv_len = "3"
    with pytest.raises(InvalidType, match="SdpaProblem: mask: got an int, takes MaskLayout"):
        SdpaProblem(mask=3)
    with pytest.raises(InvalidType, match="SdpaOperands: q: got a ndarray, takes a Buffer or None"):
        call.operands.q = np.zeros(3)
    with pytest.raises(TypeError, match="SdpaProblem: got an unexpected argument 'seqlen'"):
        SdpaProblem(seqlen=3)
    with pytest.raises(AttributeError):
        call.problem.q.row_stride = 3  # a value, which the problem takes whole
    encoder = first_device.command_encoder()
    with pytest.raises(InvalidType, match="encode_sdpa: problem: got an int, takes an SdpaProblem"):
        metal_sdpa.encode_sdpa(encoder, call.registry, first_device, call.operands, 3)


def test_problems_show_their_fields() -> None:
    problem = SdpaProblem(n_heads=4, head_dim=8, kv_capacity=5, mask=MaskLayout(dtype="bf16"))
    assert (problem.value_dim, problem.kv_len, problem.q_start) == (8, 5, None)
    assert problem.q.head_stride == 8
    assert problem.mask.dtype is DType.bf16
    assert "kv_len=5" in repr(problem)
    problem.kv_lengths = np.array([3])
    assert problem.kv_lengths == (3,)


# --- lifetimes ------------------------------------------------------------------------------------


def test_a_mask_stays_until_the_work_is_done(device: Device) -> None:
    """The encoder holds the array that was wrapped; when it is done the array goes."""
    mask = np.random.default_rng(4).random((SHAPE.L, SHAPE.S)) < 0.6
    call = Call(device, mask=MaskLayout(row_stride=SHAPE.S))
    expected = call.expected(mask=mask)
    call.operands.mask = (
        device.wrap(mask.view(np.uint8)) if device.kind == "cpu" else filled(device, mask, DType.u8)
    )
    gone = weakref.ref(mask)
    encoder = device.command_encoder()
    metal_sdpa.encode_sdpa(encoder, call.registry, device, call.operands, call.problem)
    call.operands.mask = None
    del mask
    gc.collect()
    if device.kind == "cpu":
        assert gone() is not None
    encoder.commit_and_wait()
    assert same_bits(call.operands.out.numpy(), expected)
    del encoder
    gc.collect()
    assert gone() is None


# --- recorded -------------------------------------------------------------------------------------


def test_update_moves_what_queries_see(device: Device) -> None:
    """After each update a replay has the bits of a direct call."""
    call = Call(device, causal=True)
    graph = call.record()
    seen: dict[str, object] = {"causal": True}
    for change in (
        {"window": 5},
        {"window": (3, 2), "causal": False},
        {"kv_starts": [3, 30]},
        {"kv_lengths": [40, 35], "q_start": [10, -1]},
        {"q_start": None, "window": None},
        {"query_lengths": 2},
        {"query_lengths": None, "kv_starts": 0},
    ):
        graph.update(0, **change)
        seen |= change
        assert same_bits(call.replay(graph), call.expected(**seen)), seen
    visibility = graph.visibility(graph.nodes[0])
    assert visibility.kv_lengths == (40, 35)
    assert (visibility.window_left, visibility.causal) == (-1, False)
    graph.update(0, kv_seq_len=9)
    del seen["kv_lengths"]
    assert same_bits(call.replay(graph), call.expected(**seen, kv_lengths=9))
    assert graph.nodes[0].kv_seq_len == 9


def test_a_sliding_window_decodes_at_every_length(device: Device) -> None:
    call = Call(device, causal=True, window_left=7, kv_len=1)
    graph = call.record()
    for length in range(1, SHAPE.S + 1):
        graph.update(0, kv_seq_len=length)
        assert same_bits(call.replay(graph), call.expected(window=8, kv_lengths=length)), length


def test_a_mask_is_read_anew_by_each_replay(device: Device) -> None:
    call = Call(device, mask=MaskLayout(row_stride=SHAPE.S))
    masks = np.random.default_rng(5).random((2, SHAPE.L, SHAPE.S)) < 0.6
    call.operands.mask = filled(device, masks[0], DType.u8)
    graph = call.record()
    for mask in masks:
        call.operands.mask.numpy()[...] = mask
        assert same_bits(call.replay(graph), call.expected(mask=mask))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({}, InvalidArgument, "nothing to change is given"),
        ({"kv_lengths": [41, 1]}, InvalidArgument, "kv_lengths: 41, takes 0 to the 40 rows of k"),
        ({"kv_lengths": [1]}, InvalidArgument, "kv_lengths: 1 entries, but the batch has 2"),
        ({"kv_starts": []}, InvalidArgument, "kv_starts: 0 entries, takes one for each"),
        ({"kv_seq_len": 41, "window": 3}, InvalidArgument, "kv_lengths: 41, takes 0 to"),
        ({"window": 0}, InvalidArgument, "window: 0, takes 1 or more keys"),
        ({"window": "a"}, InvalidType, "window: got a str"),
        ({"key_stride": 2}, InvalidArgument, "q_start: is not given"),
        ({"kv_lengths": None}, InvalidType, "kv_lengths: got None"),
        ({"mask": 1}, TypeError, "got an unexpected argument 'mask'"),
    ],
)
def test_an_update_that_is_refused_changes_nothing(
    change: dict, error: type, text: str, first_device: Device
) -> None:
    call = Call(first_device, causal=True, kv_len=20)
    graph = call.record()
    with pytest.raises(error, match=f"update: {text}"):
        graph.update(0, **change)
    assert same_bits(call.replay(graph), call.expected(causal=True, kv_lengths=20))


def test_only_sdpa_nodes_have_a_visibility(first_device: Device) -> None:
    call = Call(first_device)
    graph = call.record()
    with pytest.raises(InvalidArgument, match="visibility: node: 1, the graph has 1"):
        graph.visibility(1)
    other = Call(first_device).record()
    with pytest.raises(InvalidArgument, match="visibility: node: is of another graph"):
        graph.visibility(other.nodes[0])
