"""The names of LoRA tensors, and the A and B of each module brought together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pillion.core.adapters.findings import shown
from pillion.core.adapters.header import Tensor

Side = Literal["A", "B"]
_PREFIX = "base_model.model."
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])")
_NAMED = re.compile(r".+\.lora_(embedding_)?[AB]\.(?P<adapter>[^.]+)(\.weight)?")
_COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


@dataclass(frozen=True)
class Pair:
    """The two matrices of one module: the module's change is B times A, scaled."""

    module: str
    embedding: bool
    a: Tensor
    b: Tensor


@dataclass
class Pairing:
    """What the tensors of a file came to: whole pairs, PEFT's copies of the base's embeddings, and reasons."""

    pairs: list[Pair]
    copies: list[Tensor]
    reasons: list[str]


@dataclass(frozen=True)
class _Part:
    module: str
    embedding: bool
    side: Side


def pair(tensors: Iterable[Tensor]) -> Pairing:
    """Pairs of all LoRA tensors, by module. Names are taken as engines take them: `base_model.model.` may
    lead, and `lora_A.weight` or `lora_embedding_A` ends them. Anything else in the file is a reason.
    """
    result = Pairing([], [], [])
    halves: dict[tuple[str, bool], dict[Side, Tensor]] = {}
    for tensor in tensors:
        part = _part(tensor.name)
        if part is None:
            _foreign(tensor, result)
        elif part.side in (sides := halves.setdefault((part.module, part.embedding), {})):
            result.reasons.append(f"{shown(part.module)} has its lora_{part.side} twice")
        else:
            sides[part.side] = tensor
    for (module, embedding), found in halves.items():
        if "A" in found and "B" in found:
            result.pairs.append(Pair(module, embedding, found["A"], found["B"]))
        else:
            have, lack = ("A", "B") if "A" in found else ("B", "A")
            result.reasons.append(f"{shown(module)} has a lora_{have} but no lora_{lack}")
    return result


def _part(name: str) -> _Part | None:
    bare = name.removeprefix(_PREFIX)
    for pattern, embedding in ((_LINEAR, False), (_EMBEDDING, True)):
        match = pattern.fullmatch(bare)
        if match:
            return _Part(match["module"], embedding, "A" if match["side"] == "A" else "B")
    return None


def _foreign(tensor: Tensor, result: Pairing) -> None:
    """Says what a tensor is that is no half of a pair."""
    name, quoted = tensor.name, shown(tensor.name)
    named = _NAMED.fullmatch(name)
    if name.endswith(_COPIES):
        result.copies.append(tensor)
    elif "lora_magnitude_vector" in name:
        result.reasons.append(f"{quoted} belongs to DoRA, which is not supported")
    elif name.endswith(".bias"):
        result.reasons.append(f"{quoted} is a bias, which is not supported")
    elif named:
        inner = shown(named["adapter"])
        result.reasons.append(
            f"{quoted} has the adapter's name {inner} in it; save with PEFT's save_pretrained"
        )
    elif name.endswith(".weight"):
        result.reasons.append(
            f"{quoted} is a whole weight of the base, not LoRA (modules_to_save is not supported)"
        )
    else:
        result.reasons.append(f"{quoted} is not a LoRA weight")
