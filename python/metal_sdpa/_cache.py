"""New keys and values, written to where a cache keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core

_LAYOUTS = ("NHD", "HND")
_MOST_SLOTS = 2**31 - 1


def _indices(name: str, value: Any, ndim: tuple[int, ...]) -> NDArray[np.int64]:
    """An index array as int64, whatever framework it is of."""
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "iu":
        raise _core.UnsupportedDType(
            f"write_kv: {name}: dtype {array.dtype}, takes an integer type"
        )
    if array.ndim not in ndim:
        wanted = " or ".join(str(n) for n in ndim)
        raise _core.InvalidArgument(
            f"write_kv: {name}: shape {list(array.shape)} has {array.ndim} dimensions, "
            f"takes {wanted}"
        )
    return array.astype(np.int64)


def _require_range(name: str, values: NDArray[np.int64], count: int) -> None:
    """-1 or below `count`."""
    bad = values[(values < -1) | (values >= count)]
    if bad.size:
        raise _core.InvalidArgument(f"write_kv: {name}: {bad.flat[0]}, takes -1 to {count - 1}")


def _positions_of(positions: Any, batch: int, length: int) -> NDArray[np.int64]:
    """[B, L]; one number a sequence is the position of its first token."""
    array = _indices("positions", positions, (1, 2))
    wanted = (batch,) if array.ndim == 1 else (batch, length)
    if array.shape != wanted:
        raise _core.InvalidArgument(
            f"write_kv: positions: shape {list(array.shape)}, takes [{batch}] or "
            f"[{batch}, {length}]"
        )
    if array.ndim == 2:
        return array
    first = array[:, None]
    return np.where(first < 0, first, first + np.arange(length))


def _paged_slots(
    block_table: Any, positions: NDArray[np.int64], page_size: int, n_pages: int
) -> NDArray[np.int64]:
    table = _indices("block_table", block_table, (2,))
    if table.shape[0] != positions.shape[0]:
        raise _core.InvalidArgument(
            f"write_kv: block_table: {table.shape[0]} sequences, but k_new has {positions.shape[0]}"
        )
    _require_range("positions", positions, table.shape[1] * page_size)
    used = positions >= 0
    page = np.take_along_axis(table, np.where(used, positions // page_size, 0), axis=1)
    pages = page[used]
    bad = pages[(pages < 0) | (pages >= n_pages)]
    if bad.size:
        raise _core.InvalidArgument(
            f"write_kv: block_table: page {bad.flat[0]}, takes 0 to {n_pages - 1}"
        )
    return np.where(used, page * page_size + positions % page_size, -1)


def write_kv(
    k_new: Any,
    v_new: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    slot_mapping: Any = None,
    block_table: Any = None,
    positions: Any = None,
    layout: str = "NHD",
    check_indices: bool = True,
) -> None:
    """Writes new keys and values to their slots of a cache, in place and in one pass.

    Caches are [n_pages, page, Hkv, D] (layout "NHD") or [n_pages, Hkv, page, D] ("HND"), with any
    outer strides: K and V may be views of one tensor. A slot is page number * page size + place in
    the page. Which slots, one of:

    * slot_mapping [T], with k_new [T, Hkv, D] and v_new [T, Hkv, Dv];
    * block_table [B, max_blocks] and positions [B, L], or [B] of the first token, with new rows
      [B, L, Hkv, D];
    * positions alone, for a contiguous cache [B, S, Hkv, D] or [B, Hkv, S, D].

    A slot or position of -1 leaves its token out. Integer arrays of any framework on the host.

    Errors, before anything is written: InvalidArgument for indices out of range, two equal slots,
    shapes that do not fit, caches that are read-only; UnsupportedDType. Without check_indices
    slots are not looked at: of two equal ones one token stays, those out of range are left out.

        write_kv(k, v, k_pages, v_pages, slot_mapping=[5, 6, -1])
    """
    if layout not in _LAYOUTS:
        raise _core.InvalidArgument(f'write_kv: layout: "{layout}", takes "NHD" or "HND"')
    heads_first = layout == "HND"
    if slot_mapping is not None:
        if block_table is not None or positions is not None:
            raise _core.InvalidArgument(
                "write_kv: slot_mapping: comes without block_table and positions"
            )
        slots = _indices("slot_mapping", slot_mapping, (1,))
    else:
        if positions is None:
            raise _core.InvalidArgument("write_kv: takes slot_mapping or positions")
        shape = tuple(k_new.shape)
        if len(shape) != 4:
            raise _core.InvalidArgument(
                f"write_kv: k_new: shape {list(shape)}, takes [B, L, Hkv, D] with positions"
            )
        n_pages = k_cache.shape[0]
        page_size = k_cache.shape[2 if heads_first else 1]
        at = _positions_of(positions, shape[0], shape[1])
        if block_table is not None:
            slots = _paged_slots(block_table, at, page_size, n_pages)
        else:
            if n_pages != shape[0]:
                raise _core.InvalidArgument(
                    f"write_kv: k_cache: batch {n_pages}, but k_new has {shape[0]}"
                )
            _require_range("positions", at, page_size)
            rows = np.arange(shape[0])[:, None] * page_size
            slots = np.where(at >= 0, rows + at, -1)
        slots = slots.reshape(-1)
        k_new = k_new.reshape(-1, *shape[2:])
        v_new = v_new.reshape(-1, *v_new.shape[2:])
    if slots.size and (slots.max() > _MOST_SLOTS or slots.min() < -_MOST_SLOTS):
        raise _core.InvalidArgument(f"write_kv: slots reach past {_MOST_SLOTS}")
    _core.write_kv(
        k_new, v_new, k_cache, v_cache, slots.astype(np.int32), heads_first, check_indices
    )
