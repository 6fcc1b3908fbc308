"""PEFT's adapter_config.json: what in it changes the answer, what is refused, and its one normal form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pillion.core.adapters.findings import invalid, shown
from pillion.core.adapters.strict_json import is_int, parse_object

MAX_CONFIG = 2**20
MAX_RANK_VALUE = 2**16
MAX_ALPHA = 1e6

# Inits that only choose where training starts. The others (PiSSA, OLoRA, CorDA, LoftQ) change the base's own
# weights, so their adapters mean something only on that changed base.
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_REFUSED: dict[str, str] = {
    "modules_to_save": "modules_to_save replaces modules of the base, which is shared",
    "use_dora": "DoRA (use_dora) is not supported; train plain LoRA",
    "lora_bias": "lora_bias is not supported; train with lora_bias: false",
    "rank_pattern": "rank_pattern gives modules ranks of their own; one rank for all is supported",
    "alpha_pattern": "alpha_pattern gives modules alphas of their own; one alpha for all is supported",
    "fan_in_fan_out": "fan_in_fan_out is for Conv1D layers, which no supported base has",
    "layer_replication": "layer_replication changes the base's layers, which are shared",
    "trainable_token_indices": "trainable_token_indices changes the base's embeddings, which are shared",
    "target_parameters": "target_parameters (LoRA on expert parameters) is not supported",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens) is not supported",
    "use_qalora": "QALoRA (use_qalora) is not supported",
    "use_bdlora": "block-diagonal LoRA (use_bdlora) is not supported",
    "arrow_config": "Arrow routing (arrow_config) is not supported",
    "kasa_config": "KaSA (kasa_config) is not supported",
    "monteclora_config": "MonteCLoRA (monteclora_config) is not supported",
}
_READ = frozenset(
    {
        "r", "lora_alpha", "target_modules", "use_rslora", "bias", "peft_type", "task_type",
        "init_lora_weights", "base_model_name_or_path",
    }
)  # fmt: skip
# They steer training, or choose modules, and the choice shows in the file's tensors.
_HARMLESS = frozenset(
    {
        "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
        "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
        "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size",
        "revision", "runtime_config", "velora_config",
    }
)  # fmt: skip
_KNOWN = _READ | _HARMLESS | _REFUSED.keys()


@dataclass(frozen=True)
class PeftConfig:
    """What of an adapter_config.json bears on serving. `target_modules` is None where it is no list."""

    rank: int
    alpha: int | float
    use_rslora: bool
    target_modules: tuple[str, ...] | None
    base_model: str | None
    warnings: tuple[str, ...]


def parse_config(data: bytes) -> dict[str, Any]:
    """The document itself. Raises `AdapterInvalidError` where it is not one sane JSON object."""
    return parse_object(data, "adapter_config.json", MAX_CONFIG)


def read_config(document: Mapping[str, Any]) -> PeftConfig:
    """The facts of a parsed adapter_config.json. Raises `AdapterInvalidError` with every reason."""
    reasons = [*_kind_faults(document), *_value_faults(document)]
    reasons += [why for key, why in _REFUSED.items() if not _unset(document.get(key))]
    if reasons:
        raise invalid(reasons)
    targets = document.get("target_modules")
    unknown = [key for key, value in document.items() if key not in _KNOWN and not _unset(value)]
    return PeftConfig(
        rank=document["r"],
        alpha=_plain_number(document["lora_alpha"]),
        use_rslora=document.get("use_rslora") or False,
        target_modules=tuple(targets) if isinstance(targets, list) else None,
        base_model=document.get("base_model_name_or_path") or None,
        warnings=tuple(f"adapter_config.json: {shown(key)} is not known; ignored" for key in unknown),
    )


def canonical_config(rank: int, alpha: float, use_rslora: bool, modules: Sequence[str]) -> bytes:
    """The normal form, which is hashed, stored, and what an engine reads: equal behaviour gives equal bytes.

    `modules` are the last parts of the names of the modules the file has weights for.
    """
    document = {
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": _plain_number(alpha),
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(set(modules)),
        "task_type": "CAUSAL_LM",
        "use_rslora": use_rslora,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _kind_faults(document: Mapping[str, Any]) -> list[str]:
    reasons = []
    if document.get("peft_type") not in (None, "LORA"):
        reasons.append(f"peft_type is {shown(document['peft_type'])}; only LORA is supported")
    if document.get("task_type") not in (None, "CAUSAL_LM"):
        reasons.append(f"task_type is {shown(document['task_type'])}; only CAUSAL_LM is supported")
    if document.get("bias") not in (None, "none"):
        reasons.append(f"bias is {shown(document['bias'])}; only none is supported")
    init = document.get("init_lora_weights")
    if not (
        init is None or isinstance(init, bool) or (isinstance(init, str) and init.lower() in _PLAIN_INITS)
    ):
        reasons.append(
            f"init_lora_weights is {shown(init)}, which changes the base in training; make it plain LoRA "
            "(PEFT: path_initial_model_for_weight_conversion)"
        )
    return reasons


def _value_faults(document: Mapping[str, Any]) -> list[str]:
    reasons = []
    rank, alpha = document.get("r"), document.get("lora_alpha")
    if not is_int(rank) or not 1 <= rank <= MAX_RANK_VALUE:  # type: ignore[operator]
        reasons.append(f"r is {shown(rank)}; it must be a positive integer")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MAX_ALPHA:
        reasons.append(f"lora_alpha is {shown(alpha)}; it must be positive, up to {MAX_ALPHA:.0f}")
    if not isinstance(document.get("use_rslora"), bool | None):
        reasons.append(f"use_rslora is {shown(document['use_rslora'])}; it must be true or false")
    targets = document.get("target_modules")
    listed = isinstance(targets, list) and all(isinstance(item, str) for item in targets)
    if not (targets is None or isinstance(targets, str) or listed):
        reasons.append(f"target_modules is {shown(targets)}; it must be a list of names or a pattern")
    claimed = document.get("base_model_name_or_path")
    if not isinstance(claimed, str | None):
        reasons.append(f"base_model_name_or_path is {shown(claimed)}; it must be a string")
    return reasons


def _unset(value: object) -> bool:
    """Whether PEFT takes a value as "not used". Zero is a value, `false` is not."""
    return value is None or value is False or value in ("", [], {})


def _plain_number(value: float) -> int | float:
    """16.0 and 16 scale alike, so they are written alike."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def base_name(text: str) -> str:
    """The last part of a repository id or a path, in lower case: what people compare."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1].lower()
