"""Muon: momentum whose matrices are made orthogonal (Keller Jordan, https://kellerjordan.github.io/posts/muon/).

It learns the little world in about half of AdamW's steps. PyTorch's own computes in bfloat16, which processors
without AVX-512 are slow at; this one stays in float32 and does matrices of one shape at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# The quintic of the Newton-Schulz iteration, as tuned in the post above.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices alone; embeddings, heads and norms belong to another optimizer."""

    def __init__(self, matrices: Iterable[Any], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[Any, list[tuple[Any, Any]]] = {}
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(mean, group["momentum"])
                by_shape.setdefault(weight.shape, []).append((weight, ahead))
            for (rows, columns), pairs in by_shape.items():
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                updates = _orthogonal(torch.stack([update for _, update in pairs]))
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.add_(update, alpha=-rate)


def _orthogonal(updates: Any) -> Any:
    """Nearly orthogonal matrices with the singular vectors of `updates` (count, rows, columns)."""
    tall = updates.shape[-2] > updates.shape[-1]
    x = updates.mT if tall else updates
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return x.mT if tall else x
