"""Masks that arguments of `metal_sdpa.sdpa` say, made only where somebody looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils._pytree import tree_map_only
from transformers import masking_utils
from transformers.masking_utils import prepare_padding_mask, sdpa_mask
from transformers.utils.import_utils import is_torchdynamo_compiling, is_tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_UNLIMITED = -1


@dataclass(frozen=True)
class Visible:
    """Which keys the queries see, in the words of `metal_sdpa.sdpa`; positions count from slot 0.

    `window` is (left, right), -1 for unlimited. `kv_starts` and `kv_lengths` have an entry a
    sequence, or are None where there is no padding.
    """

    causal: bool
    q_start: int
    window: tuple[int, int] | None
    kv_starts: list[int] | None
    kv_lengths: list[int] | None

    def arguments(self) -> dict[str, Any]:
        """Keywords of `metal_sdpa.sdpa`."""
        given: dict[str, Any] = {"causal": self.causal, "q_start": self.q_start}
        if self.window is not None:
            given["window"] = self.window
        if self.kv_lengths is not None:
            given.update(kv_starts=self.kv_starts, kv_lengths=self.kv_lengths)
        return given


class LazyMask(torch.Tensor):  # type: ignore[misc]
    """A boolean mask [B, 1, L, S] (True = attend) of which only the rule is held.

    Any operation on it works on the dense mask, which is made then. From there on `visible` is
    None: the dense mask counts, as somebody may have written it.
    """

    visible: Visible | None
    _make: Callable[[], Tensor]
    _dense: Tensor | None

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        device: torch.device | str,
        visible: Visible,
        make: Callable[[], Tensor],
    ) -> LazyMask:
        mask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        mask.visible, mask._make, mask._dense = visible, make, None
        return cast("LazyMask", mask)

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def dense(self) -> Tensor:
        """The mask as an ordinary tensor."""
        if self._dense is None:
            self._dense = self._make()
            self.visible = None
        return self._dense

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(LazyMask, LazyMask.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **keywords: Any) -> str:
        return repr(self.dense())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.dense().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    def numpy(self, **keywords: Any) -> Any:
        return self.dense().numpy(**keywords)


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **keywords: Any,
) -> Tensor | None:
    """The mask function of "metal_attention": what transformers' `sdpa_mask` gives, cheaper.

    None exactly where `sdpa_mask` gives None. Otherwise a `LazyMask` [B, 1, L, S] where causality,
    a window and padding of one run of keys a sequence are all there is, else the boolean mask.
    """

    def make(causal_skip: bool = False, bidirectional_skip: bool = False) -> Tensor | None:
        mask: Tensor | None = sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=causal_skip,
            allow_is_bidirectional_skip=bidirectional_skip,
            use_vmap=use_vmap,
            device=device,
            **keywords,
        )
        return mask

    band = None if _traced(attention_mask, q_offset) else _band(mask_function)
    if band is None:
        return make(allow_is_causal_skip, allow_is_bidirectional_skip)
    # A static cache's own counter, which its layers move on before the dense mask may be asked for.
    q_offset = int(q_offset)
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if allow_is_causal_skip and masking_utils._ignore_causal_mask_sdpa(
        padding, q_length, kv_length, q_offset, kv_offset, local_size
    ):
        return None
    if allow_is_bidirectional_skip and masking_utils._ignore_bidirectional_mask_sdpa(
        padding, kv_length, local_size
    ):
        return None
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length]
    runs = _runs(padding, batch_size)
    if runs is None:
        return make()
    left, right = band
    visible = Visible(
        causal=right == 0,
        q_start=q_offset - kv_offset,
        window=None if left == _UNLIMITED and right <= 0 else (left, right),
        kv_starts=runs[0],
        kv_lengths=runs[1],
    )
    shape = (batch_size, 1, q_length, kv_length)
    return LazyMask(shape, device, visible, cast("Callable[[], Tensor]", make))


def _traced(attention_mask: Tensor | None, q_offset: int | Tensor) -> bool:
    """Whether values must not be read, nor objects made, because a graph is being recorded."""
    tensors = [x for x in (attention_mask, q_offset) if isinstance(x, torch.Tensor)]
    return is_torchdynamo_compiling() or any(is_tracing(x) for x in tensors) or is_tracing()


# Functions that masking_utils makes are told apart by their code, one object for all of a kind.
_AND = masking_utils.and_masks(masking_utils.causal_mask_function).__code__
_BEHIND = masking_utils.sliding_window_overlay(1).__code__
_AROUND = masking_utils.sliding_window_bidirectional_overlay(1).__code__


def _band(mask_function: Callable[..., Any]) -> tuple[int, int] | None:
    """(left, right): positions before and behind its own that a query sees, -1 for unlimited.

    None where the function is another one, or does more.
    """
    if mask_function is masking_utils.bidirectional_mask_function:
        return _UNLIMITED, _UNLIMITED
    if mask_function is masking_utils.causal_mask_function:
        return _UNLIMITED, 0
    code = getattr(mask_function, "__code__", None)
    if code not in (_AND, _BEHIND, _AROUND):
        return None
    cells = mask_function.__closure__ or ()
    enclosed = dict(zip(mask_function.__code__.co_freevars, cells, strict=True))
    if code is _AND:
        bands = [_band(part) for part in enclosed["mask_functions"].cell_contents]
        return _intersection(bands)
    width = enclosed["sliding_window"].cell_contents
    if not isinstance(width, int) or width < 1:
        return None
    return (width - 1, _UNLIMITED) if code is _BEHIND else (width, width)


def _intersection(bands: list[tuple[int, int] | None]) -> tuple[int, int] | None:
    left, right = _UNLIMITED, _UNLIMITED
    for band in bands:
        if band is None:
            return None
        left, right = _narrower(left, band[0]), _narrower(right, band[1])
    return left, right


def _narrower(a: int, b: int) -> int:
    if _UNLIMITED in (a, b):
        return max(a, b)
    return min(a, b)


def _runs(
    padding: Tensor | None, batch_size: int
) -> tuple[list[int] | None, list[int] | None] | None:
    """First slot in use and end of the slots in use, a sequence; (None, None) without padding.

    None where the slots of a sequence are not one run.
    """
    if padding is None:
        return None, None
    if padding.dim() != 2 or padding.shape[0] != batch_size or padding.dtype != torch.bool:
        return None
    used = padding.sum(dim=1)
    if bool((used == padding.shape[1]).all()):
        return None, None
    numbers = padding.to(torch.uint8)
    starts = numbers.argmax(dim=1)
    ends = padding.shape[1] - numbers.flip(1).argmax(dim=1)
    ends = torch.where(used == 0, starts, ends)
    if not torch.equal(ends - starts, used):
        return None
    return starts.tolist(), ends.tolist()
