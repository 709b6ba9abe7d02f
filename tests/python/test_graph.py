"""Graph: capture, reorder, replay and update keep the bits of direct calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metal_sdpa
from engine import Arena, Attention
from hazard_model import SLOTS, Mean, Tracker, means, one_by_one
from metal_sdpa import Device, Graph, OpKind, SdpaParams
from targets import Target

MOVABLE = (OpKind.rms_norm, OpKind.elem_mul, OpKind.elem_add)
FENCES = (OpKind.sdpa, OpKind.softmax, OpKind.other)
kinds = st.sampled_from((*MOVABLE, *MOVABLE, *MOVABLE, *FENCES))
# Steps of a recording: a dispatch with its kind, or None for a barrier by hand.
steps = st.one_of(st.none(), *[st.tuples(means(undeclared=True), kinds)] * 7)


def record(arena: Arena, recording: list[tuple[Mean, OpKind] | None]) -> Graph:
    encoder = arena.device.command_encoder()
    encoder.begin_capture()
    for step in recording:
        if step is None:
            encoder.memory_barrier()
            continue
        op, kind = step
        arena.encode_mean(encoder, op.source, op.count, op.target, kind=kind, declared=op.declared)
    return encoder.end_capture()


def replay(arena: Arena, graph: Graph, times: int = 1) -> int:
    """Bits end up in the arena; returns the barriers."""
    encoder = arena.device.command_encoder()
    for _ in range(times):
        graph.replay(encoder)
    encoder.commit_and_wait()
    return encoder.barrier_count


@settings(max_examples=80)
@given(recording=st.lists(steps, max_size=16), times=st.integers(1, 2))
def test_replay_and_reorder_keep_the_bits(target: Target, recording: list, times: int) -> None:
    arena = Arena.of(target.device(threads=2), SLOTS)
    ops = [step[0] for step in recording if step is not None]
    want = one_by_one(arena, ops * times)
    graph = record(arena, recording)
    arena.fill()
    barriers = replay(arena, graph, times)
    assert np.array_equal(arena.contents(), want)

    kinds_before = [(node.kind, node.barrier, node.declared) for node in graph.nodes]
    moved = graph.reorder()
    kinds_after = [(node.kind, node.barrier, node.declared) for node in graph.nodes]
    for before, after in zip(kinds_before, kinds_after, strict=True):
        kind, barrier, declared = before
        if barrier or not declared or kind not in MOVABLE:
            assert after == before, "a fence moved"
    arena.fill()
    assert replay(arena, graph, times) <= barriers
    assert np.array_equal(arena.contents(), want)
    assert moved <= len(recording)
    assert graph.reorder() == 0, "a second pass finds nothing to move"


@given(ops=st.lists(means(), max_size=14), kind=st.sampled_from(MOVABLE))
def test_reorder_needs_as_few_barriers_as_the_longest_chain(
    target: Target, ops: list[Mean], kind: OpKind
) -> None:
    arena = Arena.of(target.device(), SLOTS)
    depth: list[int] = []
    for i, op in enumerate(ops):
        earlier = [depth[j] + 1 for j in range(i) if op.conflicts(ops[j])]
        depth.append(max(earlier, default=0))
    graph = record(arena, [(op, kind) for op in ops])
    tracker = Tracker()
    for op in ops:
        tracker.add(op)
    arena.fill()
    assert replay(arena, graph) == tracker.barriers
    graph.reorder()
    assert replay(arena, graph) == max(depth, default=0)


def test_reorder_reports_what_it_moved(device: Device) -> None:
    arena = Arena.of(device, SLOTS)
    chain = [Mean(1, 1, 2), Mean(2, 1, 3), Mean(4, 1, 5), Mean(5, 1, 6)]
    graph = record(arena, [(op, OpKind.elem_add) for op in chain])
    assert graph.reorder() == 2, "ops 1 and 2 change places"
    fenced = record(arena, [(chain[0], OpKind.elem_add), (chain[1], OpKind.elem_add), None])
    assert fenced.reorder() == 0
    for kind in FENCES:
        order = [chain[0], chain[1], chain[2], chain[3]]
        graph = record(arena, [(op, kind) for op in order])
        assert graph.reorder() == 0, kind


def test_the_op_kind_tags_the_next_encode_only(device: Device) -> None:
    arena = Arena.of(device, SLOTS)
    encoder = device.command_encoder()
    encoder.begin_capture()
    encoder.set_op_kind(OpKind.elem_mul)
    arena.encode_mean(encoder, 1, 1, 2)
    arena.encode_mean(encoder, 1, 1, 3)
    encoder.set_op_kind(OpKind.rms_norm)
    with pytest.raises(metal_sdpa.InvalidArgument):
        encoder.encode_threadgroups(arena.registry.get_pipeline("sdpa"), [], (0, 1, 1), (1, 1, 1))
    arena.encode_mean(encoder, 1, 1, 4)
    graph = encoder.end_capture()
    assert [node.kind for node in graph.nodes] == [OpKind.elem_mul, OpKind.other, OpKind.other]


def test_a_replay_seeds_the_trackers_on_both_sides(device: Device) -> None:
    arena = Arena.of(device, SLOTS)
    arena.fill()
    graph = record(arena, [(Mean(2, 1, 3), OpKind.elem_add)])
    encoder = device.command_encoder()
    arena.encode_mean(encoder, 1, 1, 2)
    graph.replay(encoder)
    assert encoder.barrier_count == 1
    graph.replay(encoder)
    assert encoder.barrier_count == 2
    arena.encode_mean(encoder, 3, 1, 4)
    assert encoder.barrier_count == 3
    encoder.commit_and_wait()
    assert (arena.contents()[2:5] == arena.contents()[1]).all()


def test_a_replay_into_a_capture_copies_the_nodes(device: Device) -> None:
    arena = Arena.of(device, SLOTS)
    arena.fill()
    graph = record(arena, [(Mean(1, 1, 2), OpKind.elem_add), None, (Mean(2, 1, 3), OpKind.sdpa)])
    encoder = device.command_encoder()
    encoder.begin_capture()
    graph.replay(encoder)
    graph.replay(encoder)
    twice = encoder.end_capture()
    assert len(twice.nodes) == 6
    replay(arena, twice)
    assert (arena.contents()[2:4] == arena.contents()[1]).all()


# --- attention nodes -----------------------------------------------------------------------------


def recorded(attention: Attention, params: SdpaParams) -> Graph:
    encoder = attention.device.command_encoder()
    encoder.begin_capture()
    attention.encode(encoder, params=params)
    return encoder.end_capture()


def with_length(params: SdpaParams, length: int, capacity: int) -> SdpaParams:
    return SdpaParams(
        params.n_heads,
        params.n_kv_heads,
        params.head_dim,
        params.seq_len,
        length,
        params.scale,
        capacity,
        params.do_causal,
    )


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("seq_len", [1, 5])
def test_recorded_at_kv_1_and_replayed_at_every_length(
    target: Target, dtype: str, seq_len: int
) -> None:
    device = target.device()
    capacity = 70 if target.kind == "cpu" else 20
    base = SdpaParams(4, 2, 32, seq_len, 1, 0.2, capacity, True)
    attention = Attention.of(device, base, batch=2, dtype=dtype)
    graph = recorded(attention, base)
    assert len(graph.nodes) == 1
    assert (graph.nodes[0].kv_seq_len, graph.nodes[0].kv_capacity) == (1, capacity)
    for length in range(1, capacity + 1):
        want = attention.direct(with_length(base, length, capacity))
        graph.update(0, kv_seq_len=length)
        assert graph.nodes[0].kv_seq_len == length
        attention.poison_output()
        replay(Arena.of(device), graph)
        assert np.array_equal(attention.result(), want), length


def test_long_caches_replay_too(target: Target) -> None:
    """Lengths around the spans of the decode kernels, recorded at 1."""
    if target.kind != "cpu":
        pytest.skip("long caches are the CPU's; the software device takes the short ones above")
    device = target.device()
    capacity = 4200
    base = SdpaParams(4, 1, 64, 1, 1, 0.125, capacity, True)
    attention = Attention.of(device, base)
    graph = recorded(attention, base)
    for length in (1, 2, 511, 512, 513, 1024, 2047, 2048, 2049, 4095, 4096, 4097, 4200, 3, 2048):
        want = attention.direct(with_length(base, length, capacity))
        graph.update(0, kv_seq_len=length)
        attention.poison_output()
        replay(Arena.of(device), graph)
        assert np.array_equal(attention.result(), want), length


def test_update_takes_lengths_up_to_the_capacity(device: Device) -> None:
    base = SdpaParams(2, 1, 8, 1, 1, 1.0, 9, True)
    attention = Attention.of(device, base)
    graph = recorded(attention, base)
    for length in (0, -1, 10, 2**40):
        with pytest.raises(metal_sdpa.InvalidArgument, match="update: kv_seq_len"):
            graph.update(0, kv_seq_len=length)
    with pytest.raises(metal_sdpa.InvalidArgument, match="update: node"):
        graph.update(1, kv_seq_len=2)
    with pytest.raises(metal_sdpa.InvalidArgument, match="kv_seq_len: comes without kv_lengths"):
        graph.update(0, kv_seq_len=2, kv_lengths=1)
    assert graph.nodes[0].kv_seq_len == 1
    arena = Arena.of(device)
    other = record(arena, [(Mean(1, 1, 2), OpKind.elem_add)])
    with pytest.raises(metal_sdpa.InvalidArgument, match="update: node: 0"):
        other.update(0, kv_seq_len=2)


def test_a_graph_keeps_its_memory_alive(device: Device) -> None:
    base = SdpaParams(2, 1, 8, 3, 9, 1.0, 0, True)
    attention = Attention.of(device, base)
    want = attention.direct(base)
    graph = recorded(attention, base)
    attention.poison_output()
    output = attention.output
    held = replace(attention, q=output, k=output, v=output)  # the inputs are the graph's alone now
    del attention
    replay(Arena.of(device), graph)
    assert np.array_equal(held.result(), want)


def test_a_node_is_known_by_itself_or_by_its_index(device: Device) -> None:
    attention = Attention.of(device, SdpaParams(4, 2, 8, 1, 1, kv_capacity=9))
    recorder = device.command_encoder()
    recorder.begin_capture()
    attention.encode(recorder)
    recorder.memory_barrier()
    attention.encode(recorder)
    graph = recorder.end_capture()
    assert [node.index for node in graph.nodes] == [0, 1, 2]
    graph.update(graph.nodes[2], kv_seq_len=5)
    graph.update(0, kv_seq_len=3)
    node = graph.nodes[0]
    graph.reorder()
    graph.update(node, kv_seq_len=4)
    assert [node.kv_seq_len for node in graph.nodes] == [4, None, 5]
    with pytest.raises(metal_sdpa.InvalidArgument, match="update: node: 1 is no sdpa node"):
        graph.update(graph.nodes[1], kv_seq_len=2)
    with pytest.raises(metal_sdpa.InvalidArgument, match="update: node: is of another graph"):
        graph.update(recorded_again(attention).nodes[0], kv_seq_len=2)
    with pytest.raises(metal_sdpa.InvalidType, match="update: node: got a str"):
        graph.update("0", kv_seq_len=2)


def recorded_again(attention: Attention) -> Graph:
    recorder = attention.device.command_encoder()
    recorder.begin_capture()
    attention.encode(recorder)
    return recorder.end_capture()
