"""Objects whose __dlpack__ resizes an array that was read before them."""

from __future__ import annotations

import numpy as np
import pytest

import metal_sdpa
from metal_sdpa import InvalidArgument


class Resizes:
    """An array of an unknown class that takes another one's memory away."""

    def __init__(self, victim: np.ndarray, own: np.ndarray) -> None:
        self.victim = victim
        self.own = own

    def __dlpack__(self, **options: object) -> object:
        self.victim.resize((0,), refcheck=False)
        return self.own.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_a_mask_that_sinks_resize() -> None:
    q = np.zeros((1, 2, 512, 8), np.float32)
    mask = np.zeros((512, 512), np.float32)
    with pytest.raises(InvalidArgument, match="mask: its memory changed"):
        metal_sdpa.sdpa(q, q, q, mask=mask, sinks=Resizes(mask, np.zeros(2, np.float32)))


def test_a_query_that_keys_resize() -> None:
    q = np.zeros((1, 2, 512, 64), np.float32)
    k = np.zeros((1, 2, 4, 64), np.float32)
    with pytest.raises(InvalidArgument, match="q: its memory changed"):
        metal_sdpa.sdpa(q, Resizes(q, k), k)


def test_an_object_of_an_unknown_class_that_only_looks_is_an_array() -> None:
    q = np.ones((1, 2, 4, 8), np.float32)
    mask = np.ones((4, 4), bool)

    class Looks:
        def __dlpack__(self, **options: object) -> object:
            return mask.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    np.testing.assert_array_equal(
        metal_sdpa.sdpa(q, q, q, mask=Looks()), metal_sdpa.sdpa(q, q, q, mask=mask)
    )
