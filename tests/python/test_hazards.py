"""Barriers: where ranges conflict and nowhere else, as a model of the tracker says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Arena
from hazard_model import SLOTS, Mean, Tracker, means, one_by_one
from metal_sdpa import Device, DType, KernelRegistry
from targets import Target


@given(ops=st.lists(means(undeclared=True), max_size=14))
def test_barriers_stand_where_the_model_puts_them(target: Target, ops: list[Mean]) -> None:
    arena = Arena.of(target.device(threads=2), SLOTS)
    want = one_by_one(arena, ops)
    arena.fill()
    tracker = Tracker()
    encoder = arena.device.command_encoder()
    for op in ops:
        arena.encode_mean(encoder, op.source, op.count, op.target, declared=op.declared)
        tracker.add(op)
        assert encoder.barrier_count == tracker.barriers
    encoder.commit_and_wait()
    assert np.array_equal(arena.contents(), want)


def test_a_barrier_by_hand_counts_and_clears(device: Device) -> None:
    arena = Arena.of(device)
    arena.fill()
    encoder = device.command_encoder()
    arena.encode_mean(encoder, 1, 1, 2)
    encoder.memory_barrier()
    assert encoder.barrier_count == 1
    arena.encode_mean(encoder, 2, 1, 3)  # would need one, had there not been one
    assert encoder.barrier_count == 1
    arena.encode_mean(encoder, 3, 1, 4)
    assert encoder.barrier_count == 2
    encoder.commit_and_wait()
    assert (arena.contents()[2:5] == arena.contents()[1]).all()


def test_empty_ranges_conflict_with_undeclared_ones_only(device: Device) -> None:
    arena = Arena.of(device)
    arena.fill()
    encoder = device.command_encoder()

    def barriers_after(source: int, target: int, **options: object) -> int:
        arena.encode_mean(encoder, source, 1, target, **options)
        return encoder.barrier_count

    empty = {"ranges": {"reads": [], "writes": []}}
    assert barriers_after(1, 2) == 0
    assert barriers_after(1, 3) == 0, "two readers of one slot do not conflict"
    assert barriers_after(4, 5, **empty) == 0
    assert barriers_after(4, 6, declared=False) == 1
    assert barriers_after(4, 7, **empty) == 2
    assert barriers_after(4, 8, ranges={"reads": [], "writes": None}) == 3
    assert barriers_after(4, 9, ranges={"reads": None, "writes": []}) == 4
    encoder.commit_and_wait()


def test_two_wraps_of_the_same_memory_conflict_where_bytes_overlap(device: Device) -> None:
    """The tracker goes by addresses, not by Buffer objects."""
    if device.kind != "cpu":
        pytest.skip("wrap takes page-aligned memory on Metal; its own test stands with the device")
    width = 8
    host = np.zeros((4, width), np.float32)
    host[1] = 1
    registry = KernelRegistry(device)
    arenas = [
        Arena(device, registry, device.wrap(host), width, 4),
        Arena(device, registry, device.wrap(host), width, 4),
    ]
    encoder = device.command_encoder()
    arenas[0].encode_mean(encoder, 1, 1, 2)
    arenas[1].encode_mean(encoder, 1, 1, 3)
    assert encoder.barrier_count == 0
    arenas[1].encode_mean(encoder, 2, 1, 3)
    assert encoder.barrier_count == 1
    encoder.commit_and_wait()
    assert host.tolist() == [[0] * width, [1] * width, [1] * width, [1] * width]


def test_ranges_that_touch_do_not_conflict(device: Device) -> None:
    memory = device.empty((64,), DType.f32)
    registry = KernelRegistry(device)
    arena = Arena(device, registry, memory, 8, 8)
    encoder = device.command_encoder()
    arena.encode_mean(encoder, 1, 1, 2)
    arena.encode_mean(encoder, 1, 1, 3)  # ends of slot 2 and 3 meet
    assert encoder.barrier_count == 0
    encoder.commit_and_wait()
