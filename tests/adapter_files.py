"""Adapters built for tests: a small Llama's config, and LoRA files for it, whole or spoilt on purpose."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from pillion.core.adapters.bases import Base, base_modules

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}
PREFIX = "base_model.model."
TARGETS = ("q_proj", "v_proj", "down_proj")

Arrays = dict[str, np.ndarray]


def base(config: Mapping[str, Any] = LLAMA, name: str = "tiny", **rest: Any) -> Base:
    return Base(name, base_modules(config), **rest)


def arrays(
    rank: int = 4,
    targets: tuple[str, ...] = TARGETS,
    of: Base | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> Arrays:
    """A and B of every module of the base whose last name is in `targets`, random and not zero."""
    random = np.random.default_rng(seed)
    made: Arrays = {}
    for module, (rows, columns) in (of or base()).modules.linear.items():
        if module.rsplit(".", 1)[-1] in targets:
            made[f"{PREFIX}{module}.lora_A.weight"] = random.normal(size=(rank, columns)).astype(dtype)
            made[f"{PREFIX}{module}.lora_B.weight"] = random.normal(size=(rows, rank)).astype(dtype)
    return made


def weights(**options: Any) -> bytes:
    return save(arrays(**options))


def config(rank: int = 4, **changes: Any) -> dict[str, Any]:
    """An adapter_config.json as PEFT writes it."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted(TARGETS),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    } | changes


def config_bytes(**changes: Any) -> bytes:
    return json.dumps(config(**changes)).encode()


def raw(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header, sane or not: an object, or the very bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
