"""Compares the grouped LoRA operators with a plain row-by-row reference. Run by an engine's Python.

    check_grouped.py SEED ROUNDS

Draws shapes, ranks, types, row orders, empty slots, empty slices and scales; prints `ok ROUNDS`.
"""

import random
import sys
from typing import Any

import torch
from pillion_engine import cpu_lora, grouped, slot_weights
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base import BaseLayerWithLoRA

TYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class Case:
    """A batch, its adapters, and a wrapper told which row is whose."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.dtype = draw.choice(TYPES)
        self.slots = draw.randint(1, 6)
        self.max_rank = draw.choice([1, 8, 16, 64])
        self.ranks = [draw.randint(0, self.max_rank) for _ in range(self.slots)]
        self.inner = draw.choice([8, 33, 96])
        kinds = [-1, *range(self.slots)] if draw.random() < 0.8 else [draw.randint(-1, self.slots - 1)]
        self.wrapper = cpu_lora.GroupedLora(256, 256, "cpu")
        self.step(kinds)

    def step(self, kinds: list[int]) -> None:
        """Other rows, of these slots."""
        draw = self.draw
        self.rows = [draw.choice(kinds) for _ in range(draw.choice([1, 2, 7, 40, 130]))]
        if draw.random() < 0.3:
            self.rows.sort()
        # vLLM numbers adapters from 1 and leaves holes in its slots.
        ids: list[int | None] = [10 + slot for slot in range(self.slots)]
        named = tuple(10 + slot if slot >= 0 else 0 for slot in self.rows)
        self.wrapper.update_metadata(LoRAMapping(named, named, is_prefill=True), ids, self.slots + 1, 50)

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(self.dtype)

    def a(self) -> torch.Tensor:
        return self.stacked(self.max_rank, self.inner, axis=1)

    def b(self, width: int) -> torch.Tensor:
        return self.stacked(width, self.max_rank, axis=2)

    def stacked(self, rows: int, columns: int, axis: int) -> torch.Tensor:
        """A weight per slot, as vLLM keeps them: made of zeros, and written to after."""
        weights = torch.zeros(self.slots, 1, rows, columns, dtype=self.dtype)
        for slot, rank in enumerate(self.ranks):
            if self.draw.random() < 0.85:
                part = weights[slot].narrow(axis, 0, rank)
                part.copy_(self.tensor(*part.shape) * 0.3)
        return weights

    def compare(self, what: str, got: torch.Tensor, before: torch.Tensor, delta: torch.Tensor) -> None:
        """`delta` [rows, width] in float64; rows of the base must be what they were, bit for bit."""
        base = torch.tensor(self.rows) < 0
        assert torch.equal(got[base], before[base]), f"{what}: rows of the base changed"
        want = before.double() + delta
        scale = 1 + want.abs().max() if want.numel() else 1
        worst = ((got.double() - want).abs().max() / scale).item() if got.numel() else 0.0
        assert worst <= TOLERANCE[self.dtype], f"{what}: {worst} off in {self.dtype}"

    def reference(self, x: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(self.rows), b.shape[2], dtype=torch.float64)
        for row, slot in enumerate(self.rows):
            if slot >= 0:
                low = x[row].double() if a is None else a[slot, 0].double() @ x[row].double()
                out[row] = b[slot, 0].double() @ low
        return out


def check_linear(case: Case) -> None:
    widths = tuple(case.draw.choice([8, 24, 65]) for _ in range(case.draw.randint(1, 3)))
    a, b = tuple(case.a() for _ in widths), tuple(case.b(width) for width in widths)
    scale = case.draw.choice([1.0, 0.5])
    x, y = case.tensor(len(case.rows), case.inner), case.tensor(len(case.rows), sum(widths))
    before = y.clone()
    for again in range(2):
        got = before.clone()
        case.wrapper.add_lora_linear(got, x, a, b, scale, widths)
        delta = torch.cat([scale * case.reference(x, *pair) for pair in zip(a, b, strict=True)], dim=1)
        case.compare("linear", got, before, delta)
        # Another adapter takes a slot: what was kept of the one before must be forgotten.
        if not again:
            with torch.inference_mode(case.draw.random() < 0.5):
                Layer(a, b).set_lora(case.draw.randrange(case.slots))


def check_life(case: Case) -> None:
    """Adapters of different ranks come into their slots and leave them, while the others' rows go on."""
    widths = tuple(case.draw.choice([8, 24]) for _ in range(case.draw.randint(1, 2)))
    a, b = tuple(case.a() for _ in widths), tuple(case.b(width) for width in widths)
    layer = Layer(a, b)
    here = set(range(case.slots))
    for _ in range(12):
        slot = case.draw.randrange(case.slots)
        if slot in here and case.draw.random() < 0.5:
            layer.reset_lora(slot)
            here.discard(slot)
        else:
            layer.set_lora(slot, case.draw.randint(0, case.max_rank))
            here.add(slot)
        case.step([-1, *here])
        x, y = case.tensor(len(case.rows), case.inner), case.tensor(len(case.rows), sum(widths))
        before = y.clone()
        case.wrapper.add_lora_linear(y, x, a, b, 1.0, widths)
        delta = torch.cat([case.reference(x, *pair) for pair in zip(a, b, strict=True)], dim=1)
        case.compare("life", y, before, delta)


class Layer(BaseLayerWithLoRA):
    """Writes to its slots as vLLM's layers do."""

    def __init__(self, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.lora_a_stacked, self.lora_b_stacked = a, b

    def reset_lora(self, index: int) -> None:
        for weights in (*self.lora_a_stacked, *self.lora_b_stacked):
            weights[index] = 0

    def set_lora(self, index: int, rank: int | None = None) -> None:
        self.reset_lora(index)
        for stacked, axis in ((self.lora_a_stacked, 0), (self.lora_b_stacked, 1)):
            for weights in stacked:
                part = weights[index, 0]
                part = part if rank is None else part.narrow(axis, 0, rank)
                part.copy_(torch.randn_like(part) * 0.1)


slot_weights.watch()


def check_embedding(case: Case) -> None:
    b = case.b(24)
    x, y = case.tensor(len(case.rows), case.max_rank), case.tensor(len(case.rows), 24)
    before = y.clone()
    case.wrapper.add_lora_embedding(y, x, b, add_input=True)
    case.compare("embedding", y, before, case.reference(x, None, b))


def check_logits(case: Case) -> None:
    a, b = case.a(), case.b(50)
    width = case.draw.choice([50, 64, 40])
    x, y = case.tensor(len(case.rows), case.inner), case.tensor(len(case.rows), width)
    before = y.clone()
    case.wrapper.add_lora_logits(y, x, a, b, 1.0)
    delta = torch.zeros(len(case.rows), width, dtype=torch.float64)
    common = min(width, 50)
    delta[:, :common] = case.reference(x, a, b)[:, :common]
    case.compare("logits", y, before, delta)


def check_sharded(case: Case) -> None:
    a, b = (case.a(), case.a()), (case.b(8), case.b(24))
    x, y = case.tensor(len(case.rows), case.inner), case.tensor(len(case.rows), 40)
    before = y.clone()
    low = torch.zeros(2, len(case.rows), case.max_rank)
    case.wrapper.add_shrink(low, x, a, 1.0)
    case.wrapper.add_expand(y, low, b, (8, 24), offset_start=5, add_input=True)
    delta = torch.zeros(len(case.rows), 40, dtype=torch.float64)
    delta[:, 5:13] = case.reference(x, a[0], b[0])
    delta[:, 13:37] = case.reference(x, a[1], b[1])
    case.compare("sharded", y, before, delta)


def check_full(case: Case) -> None:
    weights = case.tensor(case.slots, 1, 4, case.inner)
    biases = case.tensor(case.slots, 4)
    enabled = torch.tensor([case.draw.random() < 0.5 for _ in range(case.slots)])
    x, y = case.tensor(len(case.rows), case.inner), case.tensor(len(case.rows), 4)
    before = y.clone()
    case.wrapper.apply_lora_full_linear(y, x, weights, biases, enabled)
    delta = torch.zeros(len(case.rows), 4, dtype=torch.float64)
    for row, slot in enumerate(case.rows):
        if slot >= 0 and enabled[slot]:
            own = weights[slot, 0].double() @ x[row].double() + biases[slot].double()
            delta[row] = own - before[row].double()
    case.compare("full", y, before, delta)


def check_misuse() -> None:
    groups = grouped.group_rows(torch.tensor([0, -1, 0]))
    weights = torch.ones(1, 1, 2, 2)
    for size in (2, 4):
        try:
            batch = torch.zeros(size, 2)
            grouped.add_low_rank(batch, batch, groups, (weights,), (weights,), (2,))
        except ValueError:
            continue
        raise AssertionError("rows that do not match the step were taken")


def main(seed: int, rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    checks: list[Any] = [check_linear, check_life, check_embedding, check_logits, check_sharded, check_full]
    check_misuse()
    for turn in range(rounds):
        grouped.BLOCK_ROWS = 512 if turn % 2 else 16
        draw = random.Random(seed * 1_000_003 + turn)
        try:
            checks[turn % len(checks)](Case(draw))
        except Exception:
            print(f"failed in round {turn} of seed {seed}")
            raise
    print(f"ok {rounds}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
