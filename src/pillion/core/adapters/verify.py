"""Whether an adapter can be served on a base, from headers alone, with every reason why not (SPEC §3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pillion.core.adapters.bases import Base, Modules, base_mismatch
from pillion.core.adapters.config import PeftConfig, canonical_config, read_config
from pillion.core.adapters.findings import invalid, shown
from pillion.core.adapters.header import Header, Tensor
from pillion.core.adapters.pairs import Pair, pair
from pillion.core.errors import AdapterInvalidError

DTYPES = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True)
class Limits:
    """`max_bytes` counts the weights file; 500 MB is decimal, as SPEC §3 has it."""

    max_rank: int = 64
    max_bytes: int = 500_000_000


@dataclass(frozen=True)
class Verified:
    """What is known of an adapter that passed. `config` is the normal form, ready to be hashed and stored.

    `pairs` tells where each A and B lies in the file, for the check of the weights that headers cannot give.
    """

    rank: int
    alpha: int | float
    use_rslora: bool
    target_modules: tuple[str, ...]
    config: bytes
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]


def verify(header: Header, config: Mapping[str, Any] | None, base: Base, limits: Limits) -> Verified:
    """The adapter whose file has this `header`, checked against `base`.

    `config` is the parsed adapter_config.json. Without one the rank is the tensors' own and alpha is taken
    as equal to it, with a warning. Raises `AdapterInvalidError` with every reason.
    """
    reasons: list[str] = []
    peft = _read(config, reasons)
    pairing = pair(header.tensors.values())
    reasons += pairing.reasons
    if not pairing.pairs and not pairing.reasons:
        reasons.append("the file holds no LoRA weights")
    rank = _common_rank(pairing.pairs)
    if peft and pairing.pairs and peft.rank != rank:
        reasons.append(f"adapter_config.json says r is {peft.rank}, the tensors have rank {rank}")
    mismatch, base_warning = base_mismatch(peft.base_model, base) if peft else (None, None)
    if mismatch:
        reasons.append(mismatch)
    if pairing.pairs and rank < 1:
        reasons.append("its rank is 0: it changes nothing")
    if rank > limits.max_rank:
        reasons.append(f"its rank is {rank}; at most {limits.max_rank} is served")
    reasons += _pair_faults(pairing.pairs, rank, base.modules, base.name)
    reasons += _resized(pairing.copies, base.modules)
    if reasons:
        raise invalid(reasons)
    suffixes = tuple(sorted({_last(item.module) for item in pairing.pairs}))
    alpha, rslora = (peft.alpha, peft.use_rslora) if peft else (rank, False)
    return Verified(
        rank=rank,
        alpha=alpha,
        use_rslora=rslora,
        target_modules=suffixes,
        config=canonical_config(rank, alpha, rslora, suffixes),
        pairs=tuple(pairing.pairs),
        warnings=(
            *(_unused(tensor) for tensor in pairing.copies),
            *([base_warning] if base_warning else []),
            *(_config_warnings(peft, pairing.pairs) if peft else [_no_config(rank)]),
        ),
    )


def _read(config: Mapping[str, Any] | None, reasons: list[str]) -> PeftConfig | None:
    if config is None:
        return None
    try:
        return read_config(config)
    except AdapterInvalidError as error:
        reasons += error.reasons
        return None


def _common_rank(pairs: Sequence[Pair]) -> int:
    """The rank most modules have, by which the others are measured."""
    ranks = Counter(item.a.shape[0] for item in pairs if item.a.shape)
    return max(ranks, key=lambda rank: (ranks[rank], rank), default=0)


def _pair_faults(pairs: Sequence[Pair], rank: int, modules: Modules, base: str) -> Iterator[str]:
    seen: set[str] = set()
    for item in pairs:
        name = modules.canonical(item.module)
        if name in seen:
            yield f"{shown(item.module)} is there twice, under two spellings"
        seen.add(name)
        for tensor in (item.a, item.b):
            if tensor.dtype not in DTYPES:
                yield f"{shown(tensor.name)} is {tensor.dtype}; F32, F16 and BF16 are supported"
        shape = (modules.embedding if item.embedding else modules.linear).get(name)
        if shape is None:
            yield _unknown_module(item, name, modules, base)
        else:
            yield from _shape_faults(item, rank, shape)


def _unknown_module(item: Pair, name: str, modules: Modules, base: str) -> str:
    why = modules.refused.get(_last(name))
    if why:
        return f"{shown(item.module)}: {why}"
    if name in modules.linear or name in modules.embedding:
        kind = "lora_embedding" if name in modules.embedding else "lora"
        return f"{shown(item.module)} must have {kind}_A and {kind}_B in {base}"
    return f"{shown(item.module)} does not exist in {base}"


def _shape_faults(item: Pair, rank: int, shape: tuple[int, int]) -> Iterator[str]:
    """An embedding's (rows, width) multiply the other way round: A takes a token's row, B gives the width."""
    rows, columns = shape if not item.embedding else (shape[1], shape[0])
    for tensor, expected in ((item.a, (rank, columns)), (item.b, (rows, rank))):
        if tensor.shape != expected:
            found = shown(list(tensor.shape))
            yield f"{shown(tensor.name)} has shape {found} where {list(expected)} is needed"


def _resized(copies: Sequence[Tensor], modules: Modules) -> Iterator[str]:
    """PEFT saves the embeddings along with LoRA on them, or when tokens were added, which no base can follow."""
    for tensor in copies:
        if tensor.shape != modules.vocabulary:
            rows = modules.vocabulary[0]
            yield f"{shown(tensor.name)} is of a resized vocabulary: {shown(tensor.shape)}, the base has {rows} rows"


def _unused(tensor: Tensor) -> str:
    return f"{shown(tensor.name)} is a copy of the base's own weights and is not used"


def _config_warnings(peft: PeftConfig, pairs: Sequence[Pair]) -> Iterator[str]:
    yield from peft.warnings
    if peft.target_modules is None:
        return
    endings = {item.module: frozenset(_endings(item.module)) for item in pairs}
    empty = set(peft.target_modules).difference(*endings.values())
    if empty:
        yield f"adapter_config.json targets {shown(sorted(empty))}, for which the file has no weights"
    extra = {_last(module) for module, ends in endings.items() if ends.isdisjoint(peft.target_modules)}
    if extra:
        yield f"the file has weights for {shown(sorted(extra))}, not targeted in adapter_config.json; used"


def _endings(module: str) -> Iterator[str]:
    """What PEFT's target_modules may call a module: its name or any ending of it that begins at a dot."""
    parts = module.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _no_config(rank: int) -> str:
    return f"no adapter_config.json was given: lora_alpha was taken as equal to the rank, {rank}"


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]
