"""Low-rank updates of a batch whose rows belong to different adapters, or to none.

Rows are grouped by adapter once per step. A group is then two matrix products with its slot's weights; rows
without an adapter are never read nor written. Sums run in float32 whatever the model's type: CPUs
without bfloat16 instructions multiply float32 several times faster, and the result is rounded once.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .slot_weights import Shelf, expansion_of, shelf_of

Indices = np.ndarray[Any, np.dtype[np.int64]]

# Rows worked on at a time, so that the float32 intermediates of a long prefill stay in the caches.
BLOCK_ROWS = 512
# Several adapters with few rows each are multiplied at once, with rows made up so that all have equally many: at most so
# many times the real ones.
TOGETHER_ROWS = 256
MADE_UP = 2


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop` of a block, all of the adapter in `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True)
class Together:
    """A block as equally many rows for each place of `first` to `last`: `rows` of the batch, some made up.

    `real`: which of them are the block's rows, in its order; None where all are.
    """

    first: int
    last: int
    rows: torch.Tensor
    real: torch.Tensor | None


@dataclass(frozen=True)
class Block:
    """Some rows of a batch, ordered by adapter. `rows` is a range where they lie side by side."""

    rows: slice | torch.Tensor
    size: int
    spans: tuple[Span, ...]
    _together: dict[tuple[int, ...], Together | None] = field(default_factory=dict)

    def together(self, places: list[int]) -> Together | None:
        """For adapters in those places of a layer, in the order of the spans; None where it would not pay."""
        key = tuple(places)
        if key not in self._together:
            self._together[key] = self._lay_out(places) if self.size <= TOGETHER_ROWS else None
        return self._together[key]

    def _lay_out(self, places: list[int]) -> Together | None:
        first, last = min(places), max(places) + 1
        each = max(span.stop - span.start for span in self.spans)
        if (last - first) * each > MADE_UP * self.size + len(places):
            return None
        own = (
            np.arange(self.rows.start, self.rows.stop) if isinstance(self.rows, slice) else self.rows.numpy()
        )
        real = np.concatenate(
            [
                (place - first) * each + np.arange(span.stop - span.start)
                for place, span in zip(places, self.spans, strict=True)
            ]
        )
        rows = np.full((last - first) * each, own[0])
        rows[real] = own
        whole = len(real) == len(rows) and bool((np.diff(real) == 1).all())
        return Together(first, last, torch.from_numpy(rows), None if whole else torch.from_numpy(real))

    def take(self, batch: torch.Tensor) -> torch.Tensor:
        """The block's rows of `batch` [rows, width], as float32 [size, width]."""
        picked = batch[self.rows] if isinstance(self.rows, slice) else batch.index_select(0, self.rows)
        return picked.float()

    def add(self, batch: torch.Tensor, delta: torch.Tensor) -> None:
        """Adds `delta` [size, width] to the block's rows of `batch`."""
        delta = delta.to(batch.dtype)  # adding one type to another is twice as slow
        if isinstance(self.rows, slice):
            batch[self.rows].add_(delta)
        else:  # what `index_add_` does, several times faster
            batch.index_copy_(0, self.rows, batch.index_select(0, self.rows).add_(delta))


@dataclass(frozen=True)
class Groups:
    """The rows of a batch of `size` rows that have an adapter, in blocks."""

    size: int
    blocks: tuple[Block, ...]


NO_ROWS = Groups(0, ())


def group_rows(slots: torch.Tensor) -> Groups:
    """Groups rows by adapter. `slots` [rows] holds each row's slot, or -1 for none."""
    by_row = slots.numpy()
    rows = np.flatnonzero(by_row >= 0)
    rows = rows[np.argsort(by_row[rows], kind="stable")]
    starts = range(0, len(rows), BLOCK_ROWS)
    return Groups(len(by_row), tuple(_block(rows[at : at + BLOCK_ROWS], by_row) for at in starts))


def _block(rows: Indices, by_row: Indices) -> Block:
    slots = by_row[rows]
    edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(rows)]
    spans = tuple(Span(int(slots[start]), start, stop) for start, stop in itertools.pairwise(edges))
    first, last = int(rows[0]), int(rows[-1])
    side_by_side = last - first == len(rows) - 1 and bool((np.diff(rows) == 1).all())
    where = slice(first, last + 1) if side_by_side else torch.from_numpy(rows)
    return Block(where, len(rows), spans)


def add_low_rank(
    batch: torch.Tensor,
    x: torch.Tensor,
    groups: Groups,
    a_stacked: tuple[torch.Tensor, ...],
    b_stacked: tuple[torch.Tensor, ...],
    widths: tuple[int, ...],
    *,
    scale: float = 1.0,
    offset: int = 0,
) -> None:
    """batch[row, slice i] += scale * x[row] @ A_i[slot].T @ B_i[slot].T for every row with an adapter.

    Shapes: batch [rows, at least offset + sum(widths)], x [rows, in], A_i [slots, 1, rank, in],
    B_i [slots, 1, at least widths[i], rank]. Slices an adapter leaves alone cost nothing.
    """
    target = batch[:, offset : offset + sum(widths)]
    shelf = shelf_of(a_stacked, b_stacked, widths)
    for block in groups.blocks:
        places = shelf.places([span.slot for span in block.spans])
        known = [place for place in places if place is not None]
        if not known:
            continue
        _check(groups, x, batch)
        together = block.together(known) if len(known) == len(places) > 1 else None
        if together is None:
            delta = _one_by_one(block, x, shelf, places, widths, scale)
        else:
            delta = _at_once(together, x, shelf, scale)
        block.add(target, delta)


def _at_once(together: "Together", x: torch.Tensor, shelf: Shelf, scale: float) -> torch.Tensor:
    first, last = together.first, together.last
    rows = x.index_select(0, together.rows).float().view(last - first, -1, x.shape[1])
    low = torch.bmm(rows, shelf.a[first:last])
    if scale != 1.0:
        low.mul_(scale)
    parts = [torch.bmm(low[:, :, start : start + b.shape[1]], b[first:last]) for start, b in shelf.b]
    delta = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    delta = delta.view(len(together.rows), -1)
    return delta if together.real is None else delta.index_select(0, together.real)


def _one_by_one(
    block: Block,
    x: torch.Tensor,
    shelf: Shelf,
    places: list[int | None],
    widths: tuple[int, ...],
    scale: float,
) -> torch.Tensor:
    rows = block.take(x)
    delta = torch.empty(block.size, sum(widths), dtype=torch.float32)
    for span, place in zip(block.spans, places, strict=True):
        own = delta[span.start : span.stop]
        if place is None:
            own.zero_()
            continue
        low = torch.mm(rows[span.start : span.stop], shelf.a[place])
        if scale != 1.0:
            low.mul_(scale)
        for part, (start, b) in zip(own.split(widths, dim=1), shelf.b, strict=True):
            torch.mm(low[:, start : start + b.shape[1]], b[place], out=part)
    return delta


def expand(
    batch: torch.Tensor,
    low: torch.Tensor,
    groups: Groups,
    b_stacked: torch.Tensor,
    width: int,
    *,
    offset: int = 0,
    add: bool = True,
) -> None:
    """batch[row, offset:offset + width] (+)= low[row] @ B[slot].T. Shapes as in `add_low_rank`."""
    target = batch[:, offset : offset + width]
    for block in groups.blocks:
        weights = [expansion_of(b_stacked, width, span.slot) for span in block.spans]
        if add and not any(map(len, weights)):
            continue
        _check(groups, low, batch)
        rows = block.take(low)
        delta = torch.empty(block.size, width, dtype=torch.float32)
        for span, b in zip(block.spans, weights, strict=True):
            torch.mm(rows[span.start : span.stop, : len(b)], b, out=delta[span.start : span.stop])
        if add:
            block.add(target, delta)
        else:
            target[block.rows] = delta.to(batch.dtype)


def shrink(low: torch.Tensor, x: torch.Tensor, groups: Groups, a_stacked: torch.Tensor, scale: float) -> None:
    """low[row, :rank] = scale * x[row] @ A[slot].T for every row with an adapter."""
    _check(groups, x, low)
    for block in groups.blocks:
        rows = block.take(x)
        for span in block.spans:
            a = a_stacked[span.slot, 0].float()
            product = torch.mm(rows[span.start : span.stop], a.t()).mul_(scale)
            where = block.rows
            if isinstance(where, slice):
                low[where][span.start : span.stop, : a.shape[0]] = product
            else:
                low[where[span.start : span.stop], : a.shape[0]] = product.to(low.dtype)


def set_full(
    batch: torch.Tensor,
    x: torch.Tensor,
    groups: Groups,
    weights: torch.Tensor,
    biases: torch.Tensor,
    enabled: torch.Tensor,
) -> None:
    """batch[row] = x[row] @ W[slot].T + bias[slot], for rows whose slot brings a layer of its own.

    Shapes: weights [slots, 1, out, in], biases [slots, out], enabled [slots] of bool.
    """
    _check(groups, x, batch)
    for block in groups.blocks:
        rows = block.take(x)
        for span in block.spans:
            if not enabled[span.slot]:
                continue
            own = torch.mm(rows[span.start : span.stop], weights[span.slot, 0].float().t())
            result = own.to(batch.dtype) + biases[span.slot].to(batch.dtype)
            where = block.rows
            if isinstance(where, slice):
                batch[where][span.start : span.stop] = result
            else:
                batch[where[span.start : span.stop]] = result


def _check(groups: Groups, *batches: torch.Tensor) -> None:
    if torch.compiler.is_compiling():
        # A trace would bake this step's groups into the model.
        raise RuntimeError("grouped LoRA runs outside of compiled code only")
    for batch in batches:
        if groups.blocks and batch.shape[0] != groups.size:
            raise ValueError(f"{batch.shape[0]} rows where the step has {groups.size}")
