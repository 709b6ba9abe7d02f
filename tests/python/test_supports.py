"""supports(), its table, and sdpa() itself tell the same."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import metal_sdpa
from metal_sdpa import supported_features, supports
from metal_sdpa._core import parameters, unsupported_reason

ONE = np.ones((1, 1, 8), np.float16)
PAGES = np.ones((1, 1, 1, 8), np.float16)
# Calls other than sdpa() that ask for a feature.
CALLS = {
    "varlen": ("sdpa_varlen", (ONE, ONE, ONE, [0, 1], [0, 1])),
    "paged": ("sdpa_paged", (PAGES, PAGES, PAGES, np.zeros((1, 1), np.int32), [1])),
}
# Arguments of sdpa() that ask for a feature, of q [1, 1, 1, 8] in f16.
ARGUMENTS = {
    "causal": {"causal": True},
    "q_start": {"q_start": 0},
    "kv_lengths": {"kv_lengths": 1},
    "return_lse": {"return_lse": True},
    "mask": {"mask": np.ones((1, 1, 1, 1), bool)},
    "window": {"window": 1},
    "softcap": {"softcap": 1.0},
    "sinks": {"sinks": np.zeros(1, np.float32)},
    "alibi_slopes": {"alibi_slopes": np.zeros(1, np.float32)},
    "kv_starts": {"kv_starts": 1},
    "query_lengths": {"query_lengths": 0},
    "key_offset": {"key_offset": 1, "key_stride": 2, "q_start": 0},
    "out_f32": {"out": np.zeros((1, 1, 1, 8), np.float32)},
}
PROPERTIES = {"f32", "f16", "bf16", "grouped_queries", "strides"}


def test_the_table_names_every_argument_and_nothing_else() -> None:
    of_arguments = {feature for _, _, _, feature, _ in parameters() if feature}
    assert of_arguments == set(ARGUMENTS)
    of_calls = {row[3] for call in ("sdpa_varlen", "sdpa_paged") for row in parameters(call)}
    assert of_calls - {""} - of_arguments == set(CALLS)
    assert {row[0] for row in supported_features()} == of_arguments | PROPERTIES | set(CALLS)
    named = {name for example in ARGUMENTS.values() for name in example}
    assert named == {name for name, _, _, feature, _ in parameters() if feature}


def test_the_flags_are_those_of_the_table() -> None:
    flags = [p for p in inspect.signature(supports).parameters.values() if p.default is False]
    assert {flag.name for flag in flags} == set(ARGUMENTS) | set(CALLS)
    assert all(flag.kind is inspect.Parameter.KEYWORD_ONLY for flag in flags)
    with pytest.raises(TypeError, match="supports: got an unexpected argument 'masks'"):
        supports("cpu", masks=True)


@pytest.mark.parametrize("feature", ARGUMENTS)
def test_the_table_supports_and_sdpa_agree(feature: str, device_kind: str) -> None:
    rows = {row[0]: row[1:] for row in supported_features()}
    reason = rows[feature][["cpu", "metal"].index(device_kind)]
    answer = supports(device_kind, **{feature: True})
    assert bool(answer) == (not reason)
    assert reason in answer.reason
    q = np.ones((1, 1, 1, 8), np.float16)
    if answer:
        metal_sdpa.sdpa(q, q, q, device=device_kind, **ARGUMENTS[feature])
        return
    with pytest.raises(metal_sdpa.Unsupported, match=f"sdpa: {feature}: {reason}"):
        metal_sdpa.sdpa(q, q, q, device=device_kind, **ARGUMENTS[feature])


@pytest.mark.parametrize("feature", CALLS)
def test_the_table_supports_and_other_calls_agree(feature: str, device_kind: str) -> None:
    name, arguments = CALLS[feature]
    answer = supports(device_kind, **{feature: True})
    if answer:
        getattr(metal_sdpa, name)(*arguments, device=device_kind)
        return
    reason = answer.reason.removeprefix("supports: ")
    with pytest.raises(metal_sdpa.Unsupported, match=f"{name}: {reason}"):
        getattr(metal_sdpa, name)(*arguments, device=device_kind)


def test_parameters_of_calls_that_do_not_exist() -> None:
    with pytest.raises(metal_sdpa.InvalidArgument, match='parameters: call: "sdpb", takes sdpa'):
        parameters("sdpb")


@pytest.mark.parametrize("head_dim", [0, 1, 576, 577, 1024, 1025])
@pytest.mark.parametrize("value_dim", [0, 1, 576, 577, 1024, 1025])
def test_head_dims(head_dim: int, value_dim: int, device_kind: str) -> None:
    most = metal_sdpa.Device(device_kind).limits.max_head_dim
    fits = 1 <= head_dim <= most and 1 <= value_dim <= most
    answer = supports(device_kind, head_dim=head_dim, value_dim=value_dim)
    assert bool(answer) == fits
    assert fits == (str(answer) == "supported")


@pytest.mark.parametrize("dtype", ["f32", np.float16, np.dtype("float32"), "bfloat16"])
def test_dtypes(dtype: object, device_kind: str) -> None:
    assert supports(device_kind, dtype=dtype)


@pytest.mark.parametrize("dtype", ["f64", np.int32, np.dtype(">f4"), "u16", None])
def test_dtypes_that_attention_does_not_take(dtype: object, device_kind: str) -> None:
    answer = supports(device_kind, dtype=dtype)
    assert not answer
    assert "supports:" in answer.reason


def test_groups_must_divide(device_kind: str) -> None:
    assert supports(device_kind, n_heads=16, n_kv_heads=8)
    assert "no multiple of n_kv_heads 7" in supports(device_kind, n_heads=16, n_kv_heads=7).reason


def test_a_device_that_is_not_there_is_an_answer() -> None:
    assert "abacus" in supports("abacus").reason


def test_numbers_must_be_ints() -> None:
    with pytest.raises(metal_sdpa.InvalidArgument, match="supports: head_dim: got a float"):
        supports("cpu", head_dim=64.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ARGUMENTS)
@pytest.mark.parametrize("value", ["no", [], np.zeros(3), 1, None], ids=repr)
def test_flags_must_be_bools(flag: str, value: object) -> None:
    with pytest.raises(metal_sdpa.InvalidType, match=f"supports: {flag}: got .*, takes a bool"):
        supports("cpu", **{flag: value})
    assert str(supports("cpu", **{flag: np.True_})) == str(supports("cpu", **{flag: True}))


@pytest.mark.parametrize("features", [1, "s", {"causal": 1}, [1]], ids=repr)
def test_features_must_be_a_sequence_of_text(features: object) -> None:
    with pytest.raises(metal_sdpa.InvalidType, match="supports: features: got a"):
        unsupported_reason("cpu", "f32", 1, 1, 8, 8, features)  # type: ignore[arg-type]


def test_features_in_any_sequence() -> None:
    for features in (["causal", "masks"], ("causal", "masks")):
        reason = unsupported_reason("cpu", "f32", 1, 1, 8, 8, features)  # type: ignore[arg-type]
        assert reason == 'supports: feature: "masks" is not known'


@pytest.mark.parametrize("name", ["head_dim", "value_dim"])
def test_one_range_on_both_sides(name: str, device_kind: str) -> None:
    most = metal_sdpa.Device(device_kind).limits.max_head_dim
    for width in (-1, 0, most + 1, 2**40):
        reason = supports(device_kind, **({"head_dim": 8} | {name: width}), n_heads=1).reason
        assert f": {width}, takes 1 to {most}" in reason


@pytest.mark.parametrize("dtype", ["f64", "u16", "i32", np.int64, None])
def test_the_text_lists_the_dtypes_of_attention(dtype: object, device_kind: str) -> None:
    reason = supports(device_kind, dtype=dtype).reason  # type: ignore[arg-type]
    assert reason.startswith("supports: dtype: ")
    assert reason.endswith(", takes f32, f16 or bf16")
