"""Layers of a cache that append in place: transformers' own, with spare room behind the rows."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from transformers import cache_utils
from transformers.utils import is_torchdynamo_compiling

Tensor: TypeAlias = torch.Tensor

# Memory grows by this factor. Rows that nothing has been written to are not resident.
_GROWTH = 1.5
_LEAST_ROOM = 128


class SpareRoom:
    """Memory [B, H, capacity, E] of which a layer's keys or values are a view.

    The layer's tensor is the truth: a tensor that is no view of this memory, because somebody
    replaced it, is copied in with the next append.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._view: Tensor | None = None
        self._start = 0

    def append(self, held: Tensor, new: Tensor, keep: int | None = None) -> tuple[Tensor, Tensor]:
        """(all rows: those held, then the new ones; of these the last `keep`, all by default)."""
        length = held.shape[2] if held.dim() == 4 else 0
        total = length + new.shape[2]
        start = self._start_of(held) if length else None
        memory = self._memory
        if start is None or memory is None or start + total > memory.shape[2]:
            if keep is not None and total > 2 * keep + _LEAST_ROOM:
                return self._long_append(held, new, length, keep)
            memory, start = self._moved(held, length, new, total), 0
        elif new.untyped_storage()._cdata == memory.untyped_storage()._cdata:
            new = new.clone()  # rows that were handed out, and may lie where they are written to
        memory.narrow(2, start + length, new.shape[2]).copy_(new)
        rows = memory.narrow(2, start, total)
        if keep is None or total <= keep:
            return rows, self._remember(rows, start)
        dropped = total - keep
        return rows, self._remember(memory.narrow(2, start + dropped, keep), start + dropped)

    def gather(self, held: Tensor, indices: Tensor) -> Tensor:
        """Sequences of `held` by number, with room behind their rows."""
        length = held.shape[2]
        memory = held.new_empty((len(indices), held.shape[1], _capacity(length), held.shape[3]))
        rows = memory.narrow(2, 0, length)
        torch.index_select(held, 0, indices.to(held.device), out=rows)
        self._memory = memory
        return self._remember(rows, 0)

    def holds(self, held: Tensor) -> bool:
        """Whether `held` is a view of this memory."""
        return self._memory is not None and self._place_of(held, self._memory) is not None

    def _long_append(
        self, held: Tensor, new: Tensor, length: int, keep: int
    ) -> tuple[Tensor, Tensor]:
        """Many new rows of which few stay: no memory is kept for the others."""
        rows = torch.cat((held, new), dim=2) if length else new
        kept, memory = rows.narrow(2, rows.shape[2] - keep, keep), None
        memory = self._moved(kept, keep, new, keep)
        return rows, self._remember(memory.narrow(2, 0, keep), 0)

    def _moved(self, held: Tensor, length: int, like: Tensor, total: int) -> Tensor:
        """New memory with room behind `total` rows, of which the first are those of `held`."""
        batch, heads, _, extent = like.shape
        memory = like.new_empty((batch, heads, _capacity(total), extent))
        if length:
            memory.narrow(2, 0, length).copy_(held)
        self._memory = memory
        return memory

    def _remember(self, view: Tensor, start: int) -> Tensor:
        self._view, self._start = view, start
        return view

    def _start_of(self, held: Tensor) -> int | None:
        """The row of the memory that `held` begins at; None where it is elsewhere or read-only."""
        memory = self._memory
        if memory is None or (memory.is_inference() and not torch.is_inference_mode_enabled()):
            return None
        return self._place_of(held, memory)

    def _place_of(self, held: Tensor, memory: Tensor) -> int | None:
        if held is self._view:
            return self._start
        batch, heads, _, extent = memory.shape
        same_shape = held.dim() == 4 and (held.shape[0], held.shape[1], held.shape[3]) == (
            batch,
            heads,
            extent,
        )
        if not same_shape or held.stride() != memory.stride() or held.dtype != memory.dtype:
            return None
        if held.untyped_storage()._cdata != memory.untyped_storage()._cdata:
            return None
        offset: int = held.storage_offset() - memory.storage_offset()
        return offset // max(int(memory.stride(2)), 1)


def _capacity(rows: int) -> int:
    return max(int(rows * _GROWTH), rows + _LEAST_ROOM)


class _Growing:
    """What transformers' dynamic layers do, with `update` in place.

    Tensors that require gradients, that are traced or of a class of their own, and shapes that do
    not fit go through torch.cat, as in transformers.
    """

    keys: Tensor | None
    values: Tensor | None
    is_initialized: bool
    _rooms: tuple[SpareRoom, SpareRoom] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends [B, H, n, D] and [B, H, n, Dv]; returns all rows held, views of the memory."""
        if not self._prepare(key_states, value_states):
            return self._concatenated(key_states, value_states, *args, **kwargs)
        keys, values = self._room()
        self.keys, _ = keys.append(self.keys, key_states)
        self.values, _ = values.append(self.values, value_states)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was."""
        keys, values = self.keys, self.values
        if keys is None or values is None or not _plain(keys, values):
            super().reorder_cache(beam_idx)  # type: ignore[misc]
            return
        if len(beam_idx) == len(keys) and _is_identity(beam_idx):
            return
        rooms = SpareRoom(), SpareRoom()
        gathered = rooms[0].gather(keys, beam_idx), rooms[1].gather(values, beam_idx)
        # What else the layer holds is reordered beside keys and values without rows.
        self.keys, self.values = keys[:, :, :0], values[:, :, :0]
        try:
            super().reorder_cache(beam_idx)  # type: ignore[misc]
        except BaseException:
            self.keys, self.values = keys, values
            raise
        self.keys, self.values = gathered
        self._rooms = rooms

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._rooms = None

    def offload(self) -> None:
        super().offload()  # type: ignore[misc]
        self._rooms = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the rows alone."""
        state = self.__dict__.copy()
        rooms = state.pop("_rooms", None)
        if rooms is not None:
            for name, room in zip(("keys", "values"), rooms, strict=True):
                if state[name] is not None and room.holds(state[name]):
                    state[name] = state[name].clone(memory_format=torch.contiguous_format)
        return state

    def _room(self) -> tuple[SpareRoom, SpareRoom]:
        if self._rooms is None:
            self._rooms = SpareRoom(), SpareRoom()
        return self._rooms

    def _prepare(self, key_states: Tensor, value_states: Tensor) -> bool:
        """Whether these can be appended in place; readies the layer."""
        if is_torchdynamo_compiling() or not _plain(key_states, value_states):
            return False
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)  # type: ignore[attr-defined]
        return _fits(self.keys, key_states) and _fits(self.values, value_states)

    def _concatenated(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self._rooms = None
        rows: tuple[Tensor, Tensor] = super().update(  # type: ignore[misc]
            key_states, value_states, *args, **kwargs
        )
        return rows


class _GrowingWindow(_Growing):
    """The same of layers that hold the last `sliding_window` - 1 rows."""

    cumulative_length: int
    sliding_window: int
    record_past: bool

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends; returns the rows that the new queries may see. Until `crop` all stay held where
        the past is recorded.
        """
        if not self._prepare(key_states, value_states):
            return self._concatenated(key_states, value_states, *args, **kwargs)
        keep = None if self.record_past else self.sliding_window - 1
        keys, values = self._room()
        all_keys, held_keys = keys.append(self.keys, key_states, keep)
        all_values, held_values = values.append(self.values, value_states, keep)
        self.keys, self.values = held_keys, held_values
        self.cumulative_length += key_states.shape[2]
        if not self.record_past:
            return all_keys, all_values
        n_visible = min(self.sliding_window - 1 + key_states.shape[2], all_keys.shape[2])
        first = all_keys.shape[2] - n_visible
        return all_keys.narrow(2, first, n_visible), all_values.narrow(2, first, n_visible)


class GrowingLayer(_Growing, cache_utils.DynamicLayer):  # type: ignore[misc]
    """DynamicLayer that appends in place."""


class GrowingSlidingWindowLayer(_GrowingWindow, cache_utils.DynamicSlidingWindowLayer):  # type: ignore[misc]
    """DynamicSlidingWindowLayer that appends in place."""


class GrowingIndexedLayer(_Growing, cache_utils.DynamicIndexedLayer):  # type: ignore[misc]
    """DynamicIndexedLayer that appends in place; its indexer keys are concatenated as before."""


class GrowingHybridLayer(_Growing, cache_utils.LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """LinearAttentionAndFullAttentionLayer whose keys and values are appended in place."""


_SlidingHybrid: Any = cache_utils.LinearAttentionAndSlidingWindowAttentionLayer


class GrowingSlidingHybridLayer(_GrowingWindow, _SlidingHybrid):  # type: ignore[misc]
    """LinearAttentionAndSlidingWindowAttentionLayer, likewise."""


GROWING: dict[type, type] = {
    cache_utils.DynamicLayer: GrowingLayer,
    cache_utils.DynamicSlidingWindowLayer: GrowingSlidingWindowLayer,
    cache_utils.DynamicIndexedLayer: GrowingIndexedLayer,
    cache_utils.LinearAttentionAndFullAttentionLayer: GrowingHybridLayer,
    _SlidingHybrid: GrowingSlidingHybridLayer,
}


def _plain(*tensors: Tensor) -> bool:
    grad = torch.is_grad_enabled()
    return (
        all(
            type(x) is torch.Tensor and x.dim() == 4 and not (grad and x.requires_grad)
            for x in tensors
        )
        and tensors[0].shape[2] == tensors[1].shape[2]
    )


def _fits(held: Tensor | None, new: Tensor) -> bool:
    """Whether torch.cat would take both and keep the dtype."""
    if held is None or held.dtype != new.dtype or held.device != new.device:
        return False
    if held.dim() != 4:
        return bool(held.numel() == 0)
    same = (held.shape[0], held.shape[1], held.shape[3]) == (
        new.shape[0],
        new.shape[1],
        new.shape[3],
    )
    return bool(same and not held.requires_grad and type(held) is torch.Tensor)


def _is_identity(indices: Tensor) -> bool:
    return bool((indices == torch.arange(len(indices), device=indices.device)).all())
