"""Adapters' weights in one layer as they are multiplied: float32, as wide as their ranks, side by side in memory.

vLLM keeps slots as wide as the widest adapter allowed, in the model's type. Narrowed and converted at every step they
cost more than the products, so that is done once, when a slot is first used after it was written.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import accumulate
from typing import Any

import torch

Stacked = tuple[torch.Tensor, ...]
KEPT = "_pillion_weights"


class Shelf:
    """What the slots in use of one layer hold, each in a place of its own.

    `a` [places, in, sum of ranks]; `b` for each slice [places, rank, width], and where its rank begins in `a`'s. Ranks are
    the highest of any slot here; what a slot has less is zero.
    """

    def __init__(self, a_stacked: Stacked, b_stacked: Stacked, widths: tuple[int, ...]) -> None:
        """Shapes: A_i [slots, 1, max rank, in], B_i [slots, 1, at least widths[i], max rank]."""
        self._sources = list(zip(a_stacked, b_stacked, widths, strict=True))
        self._places: dict[int, int | None] = {}
        self._free: list[int] = []
        self._ranks = [0] * len(widths)
        self.a = torch.empty(0)
        self.b: list[tuple[int, torch.Tensor]] = []

    def places(self, slots: Sequence[int]) -> list[int | None]:
        """None where the adapter leaves this layer alone."""
        # All first: one that is new may move those that are here.
        for slot in slots:
            if slot not in self._places:
                self._take(slot)
        return [self._places[slot] for slot in slots]

    def _take(self, slot: int) -> None:
        ranks = [min(used(a[slot, 0], axis=0), used(b[slot, 0], axis=1)) for a, b, _ in self._sources]
        if not any(ranks):
            self._places[slot] = None
        elif self._free and all(rank <= most for rank, most in zip(ranks, self._ranks, strict=True)):
            self._put(slot, self._free.pop())
        else:
            self._ranks = [max(both) for both in zip(ranks, self._ranks, strict=True)]
            self._build([*(known for known, place in self._places.items() if place is not None), slot])

    def forget(self, slot: int) -> None:
        """Memory is given back when no slot is left."""
        place = self._places.pop(slot, None)
        if place is not None:
            self._free.append(place)
            if len(self._free) == len(self.a):
                self._free, self._ranks = [], [0] * len(self._ranks)
                self.a, self.b = torch.empty(0), []

    def _build(self, slots: list[int]) -> None:
        """Anew, with room for twice as many as there were where there was none for one more."""
        room = 1
        while room < len(slots):
            room *= 2
        self.a = torch.empty(room, self._sources[0][0].shape[-1], sum(self._ranks))
        starts = accumulate(self._ranks, initial=0)
        self.b = [
            (start, torch.empty(room, rank, width))
            for start, rank, (_, _, width) in zip(starts, self._ranks, self._sources, strict=False)
        ]
        self._free = list(range(room))[::-1]
        for slot in slots:
            self._put(slot, self._free.pop())

    def _put(self, slot: int, place: int) -> None:
        self._places[slot] = place
        for (start, own), (a, b, width) in zip(self.b, self._sources, strict=True):
            rank = own.shape[1]
            self.a[place, :, start : start + rank] = a[slot, 0, :rank].t()
            own[place] = b[slot, 0, :width, :rank].t()


def shelf_of(a_stacked: Stacked, b_stacked: Stacked, widths: tuple[int, ...]) -> Shelf:
    """The layer's. Shapes as for `Shelf`."""
    kept: dict[object, Shelf] = a_stacked[0].__dict__.setdefault(KEPT, {})
    found = kept.get(widths)
    if found is None:
        found = kept[widths] = Shelf(a_stacked, b_stacked, widths)
    return found


def expansion_of(b_stacked: torch.Tensor, width: int, slot: int) -> torch.Tensor:
    """B alone, [rank, width]."""
    kept: dict[object, torch.Tensor] = b_stacked.__dict__.setdefault(KEPT, {})
    found = kept.get(slot)
    if found is None:
        rank = used(b_stacked[slot, 0], axis=1)
        found = kept[slot] = b_stacked[slot, 0, :width, :rank].t().float().contiguous()
    return found


def used(weights: torch.Tensor, axis: int) -> int:
    """How many along `axis` of `weights` [_, _] are in use: up to the last that is not all zero."""
    found = (weights != 0).any(dim=1 - axis).nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def forget(stacked: torch.Tensor | Stacked, slot: int) -> None:
    """The slot is being written to."""
    for tensor in (stacked,) if isinstance(stacked, torch.Tensor) else stacked:
        kept = tensor.__dict__.get(KEPT, {})
        kept.pop(slot, None)
        for shelf in kept.values():
            if isinstance(shelf, Shelf):
                shelf.forget(slot)


def watch() -> None:
    """Has every layer's methods that write to a slot forget it, and an adapter's leaving give back its memory.

    Safe to call more than once.
    """
    from vllm.lora.layers.base import BaseLayerWithLoRA
    from vllm.lora.model_manager import LoRAModelManager

    leave = LoRAModelManager._deactivate_adapter
    if not hasattr(leave, "__wrapped__"):
        LoRAModelManager._deactivate_adapter = _leaving(leave)

    for layer in _with_subclasses(BaseLayerWithLoRA):
        for name in ("set_lora", "reset_lora"):
            method = vars(layer).get(name)
            if method is not None and not hasattr(method, "__wrapped__"):
                setattr(layer, name, _forgetting(method))


def _forgetting(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def write(layer: Any, index: int, *arguments: Any, **options: Any) -> Any:
        try:
            return method(layer, index, *arguments, **options)
        finally:
            _forget_in(layer, index)

    return write


def _leaving(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def deactivate(manager: Any, lora_id: int) -> Any:
        if lora_id in manager.lora_index_to_id:
            for layer in manager.modules.values():
                _forget_in(layer, manager.lora_index_to_id.index(lora_id))
        return method(manager, lora_id)

    return deactivate


def _forget_in(layer: Any, slot: int) -> None:
    for name in ("lora_a_stacked", "lora_b_stacked"):
        forget(getattr(layer, name, ()), slot)


def _with_subclasses(layer: Any) -> Iterator[Any]:
    yield layer
    for each in layer.__subclasses__():
        yield from _with_subclasses(each)
