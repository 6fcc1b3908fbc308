"""The modules of a base model and their shapes, from its config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pillion.core.adapters.config import base_name
from pillion.core.adapters.families import FAMILIES, Family
from pillion.core.adapters.findings import invalid, shown
from pillion.core.adapters.strict_json import is_int

_MAX_LAYERS = 1024
_MAX_SIZE = 2**24

Shape = tuple[int, int]


@dataclass(frozen=True)
class Modules:
    """Where LoRA can go in a base. `linear` gives (out, in) features, `embedding` (rows, width), by module
    name.

    `prefixes` are the spellings a layer's name may have; the maps use the first. `refused` says for a
    module's last name why LoRA there is not accepted. `vocabulary` is the embeddings' (rows, width).
    """

    model_type: str
    prefixes: tuple[str, ...]
    linear: Mapping[str, Shape]
    embedding: Mapping[str, Shape]
    refused: Mapping[str, str]
    vocabulary: Shape

    def canonical(self, module: str) -> str:
        """A module's name in the maps' spelling."""
        for prefix in self.prefixes:
            if module.startswith(prefix):
                return self.prefixes[0] + module.removeprefix(prefix)
        return module


@dataclass(frozen=True)
class Base:
    """The base an adapter says it is for. `repo` is its Hugging Face repository, if it has one.

    `others` are the names and repositories of the other models one could have meant.
    """

    name: str
    modules: Modules
    repo: str | None = None
    others: frozenset[str] = field(default=frozenset())


def base_modules(config: Mapping[str, Any]) -> Modules:
    """The modules of the base with this config.json.

    Raises `AdapterInvalidError` where its `model_type` is not known or its sizes are not there: an adapter
    that cannot be checked against its base is not accepted.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise invalid(
            [f"the base has model_type {shown(model_type)}, which cannot be checked; known are {known}"]
        )
    text = config.get(family.nested, {}) if family.nested else config
    if not isinstance(text, Mapping):
        raise invalid([f"the base's config.json has no object {family.nested}"])
    sizes = _Sizes.read(text, family)
    said = (text.get("tie_word_embeddings"), config.get("tie_word_embeddings"), family.tied)
    tied = next(value for value in said if value is not None) is not False
    linear = dict(_linear(family, sizes))
    embedding: dict[str, Shape] = {}
    refused: dict[str, str] = {}
    _embeddings(family, sizes, tied, linear, embedding, refused)
    if family.mlp == "experts":
        why = "LoRA on experts and their router is not supported; target the attention's projections"
        refused |= dict.fromkeys(
            ("w1", "w2", "w3", "gate", "gate_proj", "up_proj", "down_proj", "experts"), why
        )
    vocabulary = (sizes.vocabulary, sizes.hidden)
    return Modules(str(model_type), family.prefixes, linear, embedding, refused, vocabulary)


def base_mismatch(claimed: str | None, base: Base) -> tuple[str | None, str | None]:
    """(reason to refuse, warning) for the base that an adapter's config names; at most one of the two.

    Names are compared by their last part, in lower case: a repository, a mirror of it, and a local copy
    agree. Another name is refused only where it plainly means another model that is offered here; else it
    may be a private copy, a quantised or renamed one, and the shapes decide.
    """
    if not claimed:
        return None, None
    own = {base.name.lower(), base_name(base.repo) if base.repo else base.name.lower()}
    if base_name(claimed) in own:
        return None, None
    others = {other.lower() for other in base.others} - own
    if claimed.lower() in others or base_name(claimed) in {base_name(other) for other in others} - own:
        return f"the adapter was trained on {shown(claimed)}, which is another model than {base.name}", None
    warning = (
        f"the adapter names {shown(claimed)} as its base; it is served on {base.name}, whose shapes it fits"
    )
    return None, warning


@dataclass(frozen=True)
class _Sizes:
    layers: int
    hidden: int
    intermediate: int
    query: int
    key: int
    vocabulary: int

    @classmethod
    def read(cls, config: Mapping[str, Any], family: Family) -> _Sizes:
        missing: list[str] = []

        def size(key: str, default: int | None = None, limit: int = _MAX_SIZE) -> int:
            value = config.get(key)
            value = family.defaults.get(key, default) if value is None else value
            if not is_int(value) or not 1 <= value <= limit:  # type: ignore[operator]
                missing.append(f"the base's config.json has no usable {key}: {shown(value)}")
                return 1
            return int(value)  # type: ignore[arg-type]

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        head = size("head_dim", hidden // heads)
        key_heads = size("num_key_value_heads", heads)
        layers = size("num_hidden_layers", limit=_MAX_LAYERS)
        found = cls(
            layers, hidden, size("intermediate_size"), heads * head, key_heads * head, size("vocab_size")
        )
        if missing:
            raise invalid(missing)
        return found


def _linear(family: Family, sizes: _Sizes) -> Iterator[tuple[str, Shape]]:
    parts = dict(_attention(family, sizes)) | dict(_mlp(family, sizes))
    for layer in range(sizes.layers):
        for part, shape in parts.items():
            yield f"{family.prefixes[0]}layers.{layer}.{part}", shape


def _attention(family: Family, sizes: _Sizes) -> Iterator[tuple[str, Shape]]:
    if family.fused:
        yield "self_attn.qkv_proj", (sizes.query + 2 * sizes.key, sizes.hidden)
    else:
        yield "self_attn.q_proj", (sizes.query, sizes.hidden)
        yield "self_attn.k_proj", (sizes.key, sizes.hidden)
        yield "self_attn.v_proj", (sizes.key, sizes.hidden)
    yield "self_attn.o_proj", (sizes.hidden, sizes.query)


def _mlp(family: Family, sizes: _Sizes) -> Iterator[tuple[str, Shape]]:
    up, down = (sizes.intermediate, sizes.hidden), (sizes.hidden, sizes.intermediate)
    if family.mlp == "plain":
        yield from (("mlp.c_fc", up), ("mlp.c_proj", down))
    elif family.mlp == "gated" and family.fused:
        yield from (("mlp.gate_up_proj", (2 * sizes.intermediate, sizes.hidden)), ("mlp.down_proj", down))
    elif family.mlp == "gated":
        yield from (("mlp.gate_proj", up), ("mlp.up_proj", up), ("mlp.down_proj", down))


def _embeddings(
    family: Family,
    sizes: _Sizes,
    tied: bool,
    linear: dict[str, Shape],
    embedding: dict[str, Shape],
    refused: dict[str, str],
) -> None:
    shape = (sizes.vocabulary, sizes.hidden)
    if not family.embeddings:
        why = "engines take no LoRA on the embeddings of this family"
        refused |= {"embed_tokens": why, "lm_head": why}
        return
    embedding[f"{family.prefixes[0]}embed_tokens"] = shape
    if tied:
        refused["lm_head"] = (
            "the base's lm_head is tied to its embed_tokens, so it cannot have a LoRA of its own"
        )
    else:
        linear["lm_head"] = shape
