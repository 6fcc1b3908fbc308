"""Low-rank updates of a batch whose rows belong to different adapters, or to none.

Rows are grouped by adapter once per step. A group is then two matrix products with its slot's weights; rows
without an adapter are never read nor written. Sums run in float32 whatever the model's type: CPUs
without bfloat16 instructions multiply float32 several times faster, and the result is rounded once.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .slot_weights import Slot, expansion_of, slot_of

Indices = np.ndarray[Any, np.dtype[np.int64]]

# Rows worked on at a time, so that the float32 intermediates of a long prefill stay in the caches.
BLOCK_ROWS = 512


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop` of a block, all of the adapter in `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """Some rows of a batch, ordered by adapter. `rows` is a range where they lie side by side."""

    rows: slice | torch.Tensor
    size: int
    spans: tuple[Span, ...]

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
    for block in groups.blocks:
        slots = [slot_of(a_stacked, b_stacked, widths, span.slot) for span in block.spans]
        if any(slot.rank for slot in slots):
            _check(groups, x, batch)
            block.add(target, _low_rank(block, block.take(x), slots, widths, scale))


def _low_rank(
    block: Block, rows: torch.Tensor, slots: list[Slot], widths: tuple[int, ...], scale: float
) -> torch.Tensor:
    delta = torch.empty(block.size, sum(widths), dtype=torch.float32)
    for span, slot in zip(block.spans, slots, strict=True):
        low = torch.mm(rows[span.start : span.stop], slot.a)
        if scale != 1.0:
            low.mul_(scale)
        first = 0
        for part, b in zip(delta[span.start : span.stop].split(widths, dim=1), slot.b, strict=True):
            if b is None:
                part.zero_()
            else:
                torch.mm(low[:, first : first + len(b)], b, out=part)
                first += len(b)
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
