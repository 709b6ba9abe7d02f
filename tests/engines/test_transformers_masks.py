"""The mask function of "metal_attention": what is said by arguments is what sdpa_mask makes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import masking_utils
from transformers.masking_utils import sdpa_mask

import metal_sdpa
from metal_sdpa.integrations.transformers.masks import LazyMask, attention_mask

FUNCTIONS = {
    "causal": (masking_utils.causal_mask_function, None),
    "window": (masking_utils.sliding_window_causal_mask_function(4), 4),
    "window_of_one": (masking_utils.sliding_window_causal_mask_function(1), 1),
    "bidirectional": (masking_utils.bidirectional_mask_function, None),
    "both_sides": (masking_utils.sliding_window_bidirectional_mask_function(2), 2),
    "behind": (masking_utils.sliding_window_overlay(3), 3),
    "two_windows": (
        masking_utils.and_masks(
            masking_utils.sliding_window_causal_mask_function(5),
            masking_utils.sliding_window_overlay(3),
        ),
        3,
    ),
}
LENGTHS = (
    (1, 1, 0, 0),
    (5, 5, 0, 0),
    (1, 9, 8, 0),
    (3, 9, 6, 0),
    (1, 4, 20, 17),
    (3, 7, 20, 16),
    (5, 12, 0, 0),
    (1, 12, 5, 0),
)


def seen(mask: Any, batch: int, q_length: int, kv_length: int, causal: bool) -> torch.Tensor:
    """[B, L, S] of the keys that metal_sdpa.sdpa lets a row see: value j has one at j alone."""
    q = torch.ones((batch, 1, q_length, 1))
    k = torch.ones((batch, 1, kv_length, 1))
    v = torch.eye(kv_length).expand(batch, 1, kv_length, kv_length)
    if mask is None:
        out = metal_sdpa.sdpa(q, k, v, causal=causal and q_length > 1, q_start=0)
    elif isinstance(mask, LazyMask):
        assert mask.visible is not None
        out = metal_sdpa.sdpa(q, k, v, **mask.visible.arguments())
    else:
        out = metal_sdpa.sdpa(q, k, v, mask=mask)
    return out[:, 0] > 0


def paddings(kv_end: int) -> dict[str, torch.Tensor | None]:
    ones = torch.ones((2, kv_end), dtype=torch.bool)
    left, right, none = ones.clone(), ones.clone(), ones.clone()
    left[0, : kv_end // 2] = False
    right[1, kv_end // 2 + 1 :] = False
    none[0] = False
    return {
        "no": None,
        "ones": ones,
        "left": left,
        "right": right,
        "nothing": none,
        "short": ones[:, : max(kv_end - 2, 1)],
    }


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("static", [False, True])
def test_arguments_say_what_the_mask_says(
    function: str, lengths: tuple[int, int, int, int], static: bool
) -> None:
    mask_function, local_size = FUNCTIONS[function]
    q_length, kv_length, q_offset, kv_offset = lengths
    causal = function in ("causal", "window", "window_of_one", "two_windows")
    for padding in paddings(kv_offset + kv_length).values():
        arguments: dict[str, Any] = {
            "batch_size": 2,
            "q_length": q_length,
            "kv_length": kv_length,
            "q_offset": torch.tensor(q_offset) if static else q_offset,
            "kv_offset": kv_offset,
            "mask_function": mask_function,
            "attention_mask": padding,
            "local_size": local_size,
        }
        dense = sdpa_mask(**arguments, allow_is_causal_skip=False)
        for skips in (
            {"allow_is_causal_skip": causal},
            {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": not causal},
            {"allow_is_causal_skip": False},
        ):
            if skips["allow_is_causal_skip"] and lengths == (1, 12, 5, 0):
                continue  # transformers itself does not let a static cache's decoding skip
            mask = attention_mask(**arguments, **skips)
            assert (mask is None) == (sdpa_mask(**arguments, **skips) is None)
            assert mask is None or isinstance(mask, LazyMask)
            found = seen(mask, 2, q_length, kv_length, causal)
            assert torch.equal(found, dense[:, 0]), (padding, skips)
            assert mask is None or torch.equal(mask & True, dense)


def test_what_is_not_a_run_or_a_band_is_a_mask() -> None:
    holes = torch.tensor([[True, False, True, True], [True, True, True, False]])
    mask = attention_mask(2, 4, 4, attention_mask=holes)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, sdpa_mask(2, 4, 4, attention_mask=holes))
    for function in (
        masking_utils.or_masks(masking_utils.causal_mask_function, lambda b, h, q, k: k == 3),
        masking_utils.chunked_causal_mask_function(2, torch.zeros(2, dtype=torch.int)),
        masking_utils.and_masks(masking_utils.causal_mask_function, lambda b, h, q, k: k != 1),
    ):
        mask = attention_mask(2, 4, 4, mask_function=function, allow_is_causal_skip=False)
        wanted = sdpa_mask(2, 4, 4, mask_function=function, allow_is_causal_skip=False)
        assert type(mask) is torch.Tensor
        assert torch.equal(mask, wanted)


def lazy() -> LazyMask:
    padding = torch.tensor([[False, True, True, True], [True, True, True, True]])
    mask = attention_mask(2, 4, 4, attention_mask=padding)
    assert isinstance(mask, LazyMask)
    return mask


def dense() -> torch.Tensor:
    padding = torch.tensor([[False, True, True, True], [True, True, True, True]])
    return sdpa_mask(2, 4, 4, attention_mask=padding)


def test_lazy_masks_are_tensors() -> None:
    mask = lazy()
    assert (mask.shape, mask.dtype, mask.dim(), mask.device.type) == (
        (2, 1, 4, 4),
        torch.bool,
        4,
        "cpu",
    )
    assert mask.to("cpu") is mask
    assert mask.to(torch.bool) is mask
    assert mask.visible is not None
    for operation in (
        lambda x: x[:, :, 1:, :3],
        lambda x: torch.cat((x, x), dim=-1),
        lambda x: torch.where(x, 0.0, -1.0),
        lambda x: ~x,
        lambda x: x.float(),
        lambda x: x.expand(2, 3, 4, 4),
        torch.Tensor.clone,
        copy.deepcopy,
        copy.copy,
        lambda x: pickle.loads(pickle.dumps(x)),
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: torch.nn.functional.scaled_dot_product_attention(
            *(torch.ones((2, 1, 4, 4)),) * 3, attn_mask=x
        ),
    ):
        assert torch.equal(operation(lazy()), operation(dense()))
    assert repr(lazy()) == repr(dense())


def test_a_mask_that_is_written_is_what_was_written() -> None:
    for write in (
        lambda x: x.logical_not_(),
        lambda x: x[0].fill_(False),
        lambda x: x.__setitem__((0, 0, 2), True),
        lambda x: x.__iand__(torch.eye(4, dtype=torch.bool)),
    ):
        mask, wanted = lazy(), dense()
        write(mask)
        write(wanted)
        assert mask.visible is None
        assert torch.equal(mask.dense(), wanted)


def test_a_mask_of_a_static_cache_does_not_move_with_its_counter() -> None:
    """Layers of a static cache add to the tensor that the mask was told, before it may be made."""
    counter = torch.tensor(3)
    given = {"batch_size": 1, "q_length": 2, "kv_length": 8, "q_offset": counter}
    mask, wanted = attention_mask(**given), sdpa_mask(**given)
    assert isinstance(mask, LazyMask)
    counter.add_(2)
    assert torch.equal(mask.dense(), wanted)
