"""An adapter's weights in one layer as they are multiplied: float32, as wide as its rank, side by side in memory.

vLLM keeps slots as wide as the widest adapter allowed, in the model's type. Narrowed and converted at every step they
cost more than the products, so that is done once, when a slot is first used after it was written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

Stacked = tuple[torch.Tensor, ...]
KEPT = "_pillion_weights"


@dataclass(frozen=True)
class Slot:
    """`a` [in, sum of ranks]; `b` for each slice [rank, width], or None where the adapter leaves it alone."""

    a: torch.Tensor
    b: tuple[torch.Tensor | None, ...]

    @property
    def rank(self) -> int:
        """The sum over the slices."""
        return int(self.a.shape[1])


def slot_of(a_stacked: Stacked, b_stacked: Stacked, widths: tuple[int, ...], slot: int) -> Slot:
    """Shapes: A_i [slots, 1, max rank, in], B_i [slots, 1, at least widths[i], max rank]."""
    kept: dict[int, Slot] = a_stacked[0].__dict__.setdefault(KEPT, {})
    found = kept.get(slot)
    if found is None:
        found = kept[slot] = _slot(a_stacked, b_stacked, widths, slot)
    return found


def expansion_of(b_stacked: torch.Tensor, width: int, slot: int) -> torch.Tensor:
    """B alone, [rank, width]."""
    kept: dict[int, torch.Tensor] = b_stacked.__dict__.setdefault(KEPT, {})
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
        tensor.__dict__.get(KEPT, {}).pop(slot, None)


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


def _slot(a_stacked: Stacked, b_stacked: Stacked, widths: tuple[int, ...], slot: int) -> Slot:
    ranks = [
        min(used(a[slot, 0], axis=0), used(b[slot, 0], axis=1))
        for a, b in zip(a_stacked, b_stacked, strict=True)
    ]
    lows = [a[slot, 0, :rank].float() for a, rank in zip(a_stacked, ranks, strict=True)]
    a = torch.cat(lows).t().contiguous()
    b = tuple(
        stacked[slot, 0, :width, :rank].t().float().contiguous() if rank else None
        for stacked, width, rank in zip(b_stacked, widths, ranks, strict=True)
    )
    return Slot(a, b)
