"""SdpaParams and encode_sdpa: what they take, what they refuse, and the bits they give."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import accuracy
import metal_sdpa
from arrays import DTYPES
from engine import CORE_DTYPES, TILE_Q, Attention, params_block
from metal_sdpa import Buffer, Device, DType, KernelRegistry, SdpaParams
from oracle import attention as oracle_attention

VALID = {
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "seq_len": 3,
    "kv_seq_len": 5,
    "scale": 0.3,
    "kv_capacity": 6,
    "do_causal": True,
}


def params_of(**changes: object) -> SdpaParams:
    return SdpaParams(**VALID | changes)


@pytest.fixture
def attention(device: Device) -> Attention:
    return Attention.of(device, params_of(), batch=2)


def test_a_valid_problem_with_16_and_8_heads_of_256_is_accepted(device: Device) -> None:
    params = SdpaParams(16, 8, 256, 1, 40)
    params.validate()
    attention = Attention.of(device, params)
    attention.direct(params)
    reference = oracle_attention(
        *(x.numpy() for x in (attention.q, attention.k, attention.v)),
        scale=1.0,
        causal=True,
        q_starts=np.array([39]),
        kv_lengths=np.array([40]),
    )
    assert accuracy.output_errors(attention.output.numpy(), reference, "f32").max() <= 1


def test_defaults() -> None:
    params = SdpaParams(4, 2, 8, 3, 5)
    assert (params.scale, params.kv_capacity, params.do_causal) == (1.0, 0, True)
    params.validate()


class MoreParams(SdpaParams):
    """An engine's own."""


def test_copies_and_pickles_hold_every_field() -> None:
    for kind in (SdpaParams, MoreParams):
        params = kind(**VALID | {"do_causal": False})
        copies = [copy.copy(params), copy.deepcopy([params])[0]]
        copies += [
            pickle.loads(pickle.dumps(params, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)
        ]
        for made in copies:
            assert type(made) is kind
            assert made is not params
            assert {name: getattr(made, name) for name in VALID} == {
                name: getattr(params, name) for name in VALID
            }
        copies[0].seq_len = 7
        assert params.seq_len == VALID["seq_len"]
    unchecked = SdpaParams(0, -1, 0, 0, 0, float("inf"))
    assert repr(copy.copy(unchecked)) == repr(unchecked)


BAD_FIELDS = [
    ("n_heads", 0),
    ("n_heads", -4),
    ("n_heads", 5),
    ("n_kv_heads", 0),
    ("n_kv_heads", -2),
    ("head_dim", 0),
    ("head_dim", -1),
    ("seq_len", 0),
    ("seq_len", 2**40),
    ("kv_seq_len", 0),
    ("kv_seq_len", -(2**40)),
    ("kv_capacity", 1),
    ("kv_capacity", 4),
    ("kv_capacity", -1),
    ("scale", float("nan")),
    ("scale", float("inf")),
    ("scale", -float("inf")),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_validate_names_the_field(field: str, value: float) -> None:
    with pytest.raises(metal_sdpa.InvalidArgument, match=rf"SdpaParams: {field}: .+"):
        params_of(**{field: value}).validate()


def test_16_heads_do_not_divide_into_7() -> None:
    with pytest.raises(metal_sdpa.InvalidArgument, match=r"n_heads: 16 .* n_kv_heads 7"):
        SdpaParams(16, 7, 64, 1, 1).validate()


@pytest.mark.parametrize(("field", "value"), [*BAD_FIELDS, ("head_dim", 2**20)])
def test_encode_sdpa_refuses_bad_parameters(attention: Attention, field: str, value: float) -> None:
    check_refused(
        attention, metal_sdpa.InvalidArgument, rf"{field}\b", params=params_of(**{field: value})
    )


@pytest.mark.parametrize("batch", [0, -1, 2**31, 3])
def test_encode_sdpa_refuses_bad_batches(attention: Attention, batch: int) -> None:
    """3 is one more than the buffers hold."""
    word = "q: elements" if batch == 3 else "batch_size"
    check_refused(attention, metal_sdpa.InvalidArgument, word, batch_size=batch)


def test_sizes_whose_product_wraps_64_bits_are_refused(attention: Attention) -> None:
    params = params_of(n_heads=65536, n_kv_heads=65536, seq_len=65536, head_dim=128)
    check_refused(attention, metal_sdpa.InvalidArgument, "q:", params=params, batch_size=65536)


@pytest.mark.parametrize("name", ["q", "k", "v", "output"])
def test_encode_sdpa_checks_the_extent_of_each_view(attention: Attention, name: str) -> None:
    """One element less than the kernel touches, at the start and at the end of an allocation."""
    buffer: Buffer = getattr(attention, name)
    short = buffer.slice_view(0, buffer.element_count - 1)
    check_refused(attention, metal_sdpa.InvalidArgument, f"{name}: elements", **{name: short})
    late = buffer.slice_view(4, buffer.element_count - 1)
    check_refused(attention, metal_sdpa.InvalidArgument, f"{name}: elements", **{name: late})


@pytest.mark.parametrize("name", ["k", "v", "output"])
def test_encode_sdpa_takes_one_dtype(attention: Attention, name: str) -> None:
    shape = getattr(attention, name).shape
    for dtype in (DType.f16, DType.bf16, DType.u32):
        other = attention.device.empty(shape, dtype)
        check_refused(
            attention, metal_sdpa.UnsupportedDType, f"{name}: dtype {dtype.name}", **{name: other}
        )


def test_encode_sdpa_takes_floating_point_only(attention: Attention) -> None:
    other = attention.device.empty(attention.q.shape, DType.i32)
    check_refused(attention, metal_sdpa.UnsupportedDType, "q: dtype i32", q=other)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_the_output_may_not_alias_an_input(attention: Attention, name: str) -> None:
    size = getattr(attention, name).element_count
    output_size = attention.output.element_count
    arena = attention.device.empty((size + output_size - 1,), DType.f32)
    shared = {
        name: arena.slice_view(0, size),
        "output": arena.slice_view((size - 1) * 4, output_size),
    }
    check_refused(attention, metal_sdpa.InvalidArgument, f"output: overlaps {name}", **shared)


def test_neighbours_in_one_allocation_are_no_aliases(attention: Attention) -> None:
    want = attention.direct(attention.params)
    sizes = [x.element_count for x in (attention.q, attention.k, attention.v, attention.output)]
    arena = attention.device.empty((sum(sizes),), DType.f32)
    views, start = [], 0
    for size in sizes:
        views.append(arena.slice_view(start * 4, size))
        start += size
    for view, source in zip(views, (attention.q, attention.k, attention.v), strict=False):
        view.numpy()[...] = source.numpy().reshape(-1)
    encoder = attention.device.command_encoder()
    attention.encode(encoder, q=views[0], k=views[1], v=views[2], output=views[3])
    encoder.commit_and_wait()
    got = views[3].numpy().view(np.uint32)
    assert np.array_equal(got, want.reshape(-1))


def test_read_only_output_is_refused_and_read_only_inputs_are_not() -> None:
    attention = Attention.of(Device("cpu"), params_of(), batch=2)
    frozen = np.zeros(attention.output.shape, np.float32)
    frozen.flags.writeable = False
    output = attention.device.wrap(frozen)
    check_refused(attention, metal_sdpa.InvalidArgument, "output: .*read-only", output=output)
    want = attention.direct(attention.params)
    copies = {}
    for name in ("q", "k", "v"):
        copy = np.array(getattr(attention, name).numpy())
        copy.flags.writeable = False
        copies[name] = attention.device.wrap(copy)
    encoder = attention.device.command_encoder()
    attention.encode(encoder, **copies)
    encoder.commit_and_wait()
    assert np.array_equal(attention.result(), want)


@pytest.mark.parametrize("name", ["encoder", "registry", "device", "q", "params", "batch_size"])
def test_arguments_of_a_wrong_type_get_our_text(attention: Attention, name: str) -> None:
    encoder = attention.device.command_encoder()
    arguments = {
        "encoder": encoder,
        "registry": attention.registry,
        "device": attention.device,
        "q": attention.q,
        "k": attention.k,
        "v": attention.v,
        "output": attention.output,
        "params": attention.params,
        "batch_size": 2,
    }
    with pytest.raises(metal_sdpa.Error, match=f"encode_sdpa: {name}"):
        metal_sdpa.encode_sdpa(**arguments | {name: "wrong"})


def check_refused(
    attention: Attention, error: type[Exception], word: str, **changes: object
) -> None:
    """The error names the argument; nothing is written; the encoder still works."""
    before = attention.poison_output()
    encoder = attention.device.command_encoder()
    with pytest.raises(error, match=word):
        attention.encode(encoder, **changes)
    encoder.commit_and_wait()
    assert np.array_equal(attention.result(), before)
    fresh = attention.device.command_encoder()
    with pytest.raises(error, match=word):
        attention.encode(fresh, **changes)
    attention.encode(fresh)
    fresh.commit_and_wait()
    assert not np.array_equal(attention.result(), before)


# --- the straightforward kernel by hand ----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
def test_the_straightforward_kernel_takes_the_32_byte_block(
    device: Device, dtype: str, causal: bool
) -> None:
    params = SdpaParams(6, 2, 40, 33, 37, 0.2, 39, causal)
    attention = Attention.of(device, params, batch=2, dtype=dtype)
    function = "sdpa" if dtype == "f32" else f"sdpa_{dtype}"
    # Slots past kv_seq_len hold NaN.
    for buffer in (attention.k, attention.v):
        buffer.numpy()[:, :, 37:] = np.nan
    attention.poison_output()
    encoder = device.command_encoder()
    encoder.encode_threadgroups(
        KernelRegistry(device).get_pipeline(function),
        [
            (0, attention.q),
            (1, attention.k),
            (2, attention.v),
            (3, attention.output),
            (4, params_block(params)),
        ],
        (2, 6, 2),
        (TILE_Q, 1, 1),
    )
    encoder.commit_and_wait()
    reference = oracle_attention(
        *(x.numpy() for x in (attention.q, attention.k, attention.v)),
        scale=float(np.float32(0.2)),
        causal=causal,
        q_starts=np.full(2, 37 - 33),
        kv_lengths=np.full(2, 37),
    )
    assert accuracy.output_errors(attention.output.numpy(), reference, dtype).max() <= 1
    assert attention.q.dtype == CORE_DTYPES[dtype]
