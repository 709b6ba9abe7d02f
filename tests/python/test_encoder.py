"""CommandEncoder: the state machine, arguments of a dispatch, lifetimes, late errors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

import metal_sdpa
from arrays import bits
from engine import TILE_Q, Arena, Attention, params_block
from metal_sdpa import CommandEncoder, Device, DType, OpKind, SdpaParams

SMALL = SdpaParams(2, 1, 16, 3, 20, 0.25, 24, True)

USES: dict[str, Callable[[CommandEncoder, Arena], object]] = {
    "encode_threadgroups": lambda encoder, arena: arena.encode_mean(encoder, 1, 1, 2),
    "set_op_kind": lambda encoder, arena: encoder.set_op_kind(OpKind.rms_norm),
    "memory_barrier": lambda encoder, arena: encoder.memory_barrier(),
    "begin_capture": lambda encoder, arena: encoder.begin_capture(),
    "end_capture": lambda encoder, arena: encoder.end_capture(),
    "commit": lambda encoder, arena: encoder.commit(),
    "commit_and_wait": lambda encoder, arena: encoder.commit_and_wait(),
}


@pytest.fixture
def arena(device: Device) -> Arena:
    arena = Arena.of(device)
    arena.fill()
    return arena


@pytest.mark.parametrize("use", USES)
def test_an_encoder_is_used_once(device: Device, arena: Arena, use: str) -> None:
    encoder = device.command_encoder()
    arena.encode_mean(encoder, 1, 2, 3)
    encoder.commit()
    for _ in ("committed", "completed"):
        with pytest.raises(metal_sdpa.InvalidArgument, match=f"{use}: the encoder is"):
            USES[use](encoder, arena)
        encoder.wait_until_completed()
    assert encoder.gpu_time_s >= 0


def test_waiting_needs_a_commit_and_may_be_repeated(device: Device, arena: Arena) -> None:
    encoder = device.command_encoder()
    arena.encode_mean(encoder, 1, 1, 2)
    with pytest.raises(metal_sdpa.InvalidArgument, match=r"wait_until_completed: .*commit"):
        encoder.wait_until_completed()
    encoder.commit()
    encoder.wait_until_completed()
    encoder.wait_until_completed()


def test_gpu_time_needs_completion(device: Device) -> None:
    encoder = device.command_encoder()
    with pytest.raises(metal_sdpa.InvalidArgument, match="gpu_time_s"):
        _ = encoder.gpu_time_s
    encoder.commit_and_wait()
    assert 0 <= encoder.gpu_time_s < 60


def test_an_open_capture_cannot_be_committed(device: Device, arena: Arena) -> None:
    encoder = device.command_encoder()
    with pytest.raises(metal_sdpa.InvalidArgument, match="end_capture: no capture"):
        encoder.end_capture()
    encoder.begin_capture()
    with pytest.raises(metal_sdpa.InvalidArgument, match="begin_capture: a capture is open"):
        encoder.begin_capture()
    arena.encode_mean(encoder, 1, 1, 2)
    for commit in (encoder.commit, encoder.commit_and_wait):
        with pytest.raises(metal_sdpa.InvalidArgument, match=r"commit.*: a capture is open"):
            commit()
    before = arena.contents()
    encoder.end_capture()
    encoder.commit_and_wait()
    assert np.array_equal(arena.contents(), before), "a capture must encode nothing"


def test_an_encoder_that_is_dropped_does_nothing(device: Device, arena: Arena) -> None:
    before = arena.contents()
    encoder = device.command_encoder()
    arena.encode_mean(encoder, 1, 1, 2)
    del encoder
    gc.collect()
    device.synchronize()
    assert np.array_equal(arena.contents(), before)


def test_command_buffers_run_in_the_order_of_their_commits(device: Device, arena: Arena) -> None:
    """Each sees what the ones before it wrote, whether somebody waits or not."""
    first = arena.contents()[1]
    encoders = []
    for target in range(2, arena.slots):
        encoder = device.command_encoder()
        arena.encode_mean(encoder, target - 1, 1, target)
        encoder.commit()
        encoders.append(encoder)
    encoders[-1].wait_until_completed()
    assert (arena.contents()[1:] == first).all()
    device.synchronize()


def test_synchronize_waits_for_everything(device: Device) -> None:
    attention = Attention.of(device, SMALL)
    want = attention.direct(SMALL)
    attention.poison_output()
    for _ in range(5):
        encoder = device.command_encoder()
        attention.encode(encoder)
        encoder.commit()
        del encoder
    device.synchronize()
    assert np.array_equal(attention.result(), want)


def test_memory_lives_until_the_work_is_done(device_kind: str) -> None:
    """Everything but the output is let go of right after the commit."""
    device = Device(device_kind)
    params = SdpaParams(4, 2, 64, 33, 300, 0.125, 0, True)
    if device_kind != "cpu":
        params = SdpaParams(2, 1, 32, 9, 40, 0.125, 0, True)
    attention = Attention.of(device, params)
    want = attention.direct(params)
    attention.poison_output()
    encoder = device.command_encoder()
    attention.encode(encoder)
    encoder.commit()
    output = attention.output
    del attention, encoder
    gc.collect()
    churn = [np.full(100_000, 1e30, np.float32) for _ in range(20)]
    device.synchronize()
    assert np.array_equal(bits(output.numpy()), want)
    assert len(churn) == 20


def test_wrapped_arrays_live_as_long_as_the_work(device: Device) -> None:
    if device.kind != "cpu":
        pytest.skip("wrap takes page-aligned memory on Metal; its own test stands with the device")
    source = np.random.default_rng(0).standard_normal((1, 1, 4, 16), np.float32)
    arrays = [source.copy() for _ in range(3)]
    alive = [weakref.ref(array) for array in arrays]
    output = device.empty((1, 1, 4, 16), DType.f32)
    params = SdpaParams(1, 1, 16, 4, 4, 0.25, 0, False)
    buffers = [device.wrap(array) for array in arrays]
    registry = metal_sdpa.KernelRegistry(device)
    encoder = device.command_encoder()
    metal_sdpa.encode_sdpa(encoder, registry, device, *buffers, output, params, 1)
    del arrays, buffers
    gc.collect()
    assert all(ref() is not None for ref in alive)
    encoder.commit_and_wait()
    want = metal_sdpa.sdpa(source, source, source, scale=0.25, device=device)
    assert np.array_equal(bits(output.numpy()), bits(want))
    del encoder
    gc.collect()
    assert all(ref() is None for ref in alive)


# --- arguments of a dispatch ---------------------------------------------------------------------


def dispatch_arguments(arena: Arena) -> dict:
    params = SdpaParams(1, 1, arena.width, 1, 2, 1.0, 0, False)
    return {
        "pipeline": arena.registry.get_pipeline("sdpa"),
        "bindings": [
            (0, arena.view(0)),
            (1, arena.view(1, 2)),
            (2, arena.view(1, 2)),
            (3, arena.view(5)),
            (4, params_block(params)),
        ],
        "threadgroups": (1, 1, 1),
        "threadgroup_size": (TILE_Q, 1, 1),
    }


BAD_DISPATCHES: dict[str, tuple[str, Callable[[Arena, dict], dict]]] = {
    "threadgroups_zero": ("threadgroups", lambda a, d: {"threadgroups": (1, 0, 1)}),
    "threadgroups_huge": ("threadgroups", lambda a, d: {"threadgroups": (2**32 - 1,) * 3}),
    "threadgroups_past_32_bits": ("threadgroups", lambda a, d: {"threadgroups": (2**32, 1, 1)}),
    "threadgroups_negative": ("threadgroups", lambda a, d: {"threadgroups": (-1, 1, 1)}),
    "threadgroups_of_four": ("threadgroups", lambda a, d: {"threadgroups": (1, 1, 1, 1)}),
    "threadgroup_size_zero": ("threadgroup_size", lambda a, d: {"threadgroup_size": (0, 1, 1)}),
    "threadgroup_size_over_the_limit": (
        "threadgroup_size",
        lambda a, d: {"threadgroup_size": (1025, 1, 1)},
    ),
    "binding_twice": ("bindings", lambda a, d: {"bindings": [*d["bindings"], (3, a.view(6))]}),
    "binding_index_31": ("bindings", lambda a, d: {"bindings": [(31, a.view(6))]}),
    "binding_index_negative": ("bindings", lambda a, d: {"bindings": [(-1, a.view(6))]}),
    "binding_of_4097_bytes": ("bindings", lambda a, d: {"bindings": [(4, bytes(4097))]}),
    "binding_of_no_bytes": ("bindings", lambda a, d: {"bindings": [(4, b"")]}),
    "binding_of_a_number": ("bindings", lambda a, d: {"bindings": [(4, 3)]}),
    "threadgroup_memory_too_much": (
        "threadgroup_memory",
        lambda a, d: {"threadgroup_memory": [(0, 32768), (1, 16)]},
    ),
    "threadgroup_memory_odd": (
        "threadgroup_memory",
        lambda a, d: {"threadgroup_memory": [(0, 15)]},
    ),
    "threadgroup_memory_twice": (
        "threadgroup_memory",
        lambda a, d: {"threadgroup_memory": [(0, 16), (0, 16)]},
    ),
    "reads_past_the_view": (
        "reads",
        lambda a, d: {"reads": [(a.view(1), 4, a.width * 4)], "writes": []},
    ),
    "writes_past_the_view": (
        "writes",
        lambda a, d: {"reads": [], "writes": [(a.view(1), 0, a.width * 4 + 1)]},
    ),
    "writes_far_past_the_view": (
        "writes",
        lambda a, d: {"reads": [], "writes": [(a.view(1), 2**63, 2**63)]},
    ),
    "pipeline_none": ("pipeline", lambda a, d: {"pipeline": None}),
}


@pytest.mark.parametrize("name", BAD_DISPATCHES)
def test_bad_dispatches_are_refused_and_record_nothing(
    device: Device, arena: Arena, name: str
) -> None:
    word, change = BAD_DISPATCHES[name]
    before = arena.contents()
    arguments = dispatch_arguments(arena)
    arguments |= change(arena, arguments)
    encoder = device.command_encoder()
    with pytest.raises(metal_sdpa.InvalidArgument, match=rf"encode_threadgroups: {word}\b"):
        encoder.encode_threadgroups(**arguments)
    encoder.commit_and_wait()
    assert np.array_equal(arena.contents(), before)
    working = device.command_encoder()
    working.encode_threadgroups(**dispatch_arguments(arena))
    working.commit_and_wait()
    assert not np.array_equal(arena.contents(), before)


def test_inline_bytes_up_to_the_limit(device: Device, arena: Arena) -> None:
    """The parameter block may stand in 4096 bytes as well as in 32."""
    arguments = dispatch_arguments(arena)
    block = arguments["bindings"][4][1]
    arguments["bindings"][4] = (4, block + bytes(4096 - len(block)))
    encoder = device.command_encoder()
    encoder.encode_threadgroups(**arguments)
    encoder.commit_and_wait()
    memory = arena.memory.numpy()
    np.testing.assert_allclose(memory[5], memory[1:3].mean(axis=0), rtol=1e-6)


# --- errors that arrive late ---------------------------------------------------------------------


def encode_bad_launch(arena: Arena, encoder: CommandEncoder) -> None:
    """A dispatch whose buffers are smaller than its parameters say: the kernel refuses it."""
    arguments = dispatch_arguments(arena)
    params = SdpaParams(1, 1, arena.width, 1, 100, 1.0, 0, False)
    arguments["bindings"][4] = (4, params_block(params))
    encoder.encode_threadgroups(**arguments)


def test_a_failed_command_buffer_raises_where_it_is_waited_for() -> None:
    device = Device("cpu")
    arena = Arena.of(device)
    arena.fill()
    before = arena.contents()
    encoder = device.command_encoder()
    encode_bad_launch(arena, encoder)
    encoder.commit()
    with pytest.raises(metal_sdpa.CommandBufferError, match="sdpa"):
        encoder.wait_until_completed()
    device.synchronize()  # reported already
    assert np.array_equal(arena.contents(), before)


def test_a_failed_command_buffer_that_nobody_waits_for_raises_at_synchronize() -> None:
    device = Device("cpu")
    arena = Arena.of(device)
    arena.fill()
    encoder = device.command_encoder()
    encode_bad_launch(arena, encoder)
    encoder.commit()
    with pytest.raises(metal_sdpa.CommandBufferError, match="sdpa"):
        device.synchronize()
    device.synchronize()
    working = device.command_encoder()
    arena.encode_mean(working, 1, 1, 2)
    working.commit_and_wait()
    assert np.array_equal(arena.contents()[2], arena.contents()[1])
