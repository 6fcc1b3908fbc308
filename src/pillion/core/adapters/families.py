"""The model families whose modules are known: where LoRA can go, as the engines honour it.

Module names are those of Hugging Face's implementations, which PEFT writes into its files; what the engine
honours was read in vLLM 0.32. Values of a config that may be left out have their class's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """How one `model_type` is laid out.

    `fused`: qkv_proj and gate_up_proj in place of five separate projections. `mlp`: "gated", "plain" (c_fc,
    c_proj), or "experts", on which LoRA is refused. `embeddings`: the engine takes LoRA on embed_tokens and
    on an untied lm_head. `prefixes`: what a module's name may begin with in place of `model.`, for a
    language model inside a larger one.
    """

    defaults: dict[str, int] = field(default_factory=dict)
    tied: bool = False
    fused: bool = False
    mlp: str = "gated"
    embeddings: bool = False
    prefixes: tuple[str, ...] = ("model.",)
    nested: str | None = None


_GEMMA3 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}

FAMILIES: dict[str, Family] = {
    "llama": Family(embeddings=True),
    "mistral": Family({"num_key_value_heads": 8}),
    "ministral3": Family({"num_key_value_heads": 8}),
    "qwen2": Family({"num_key_value_heads": 32}),
    "qwen3": Family({"num_key_value_heads": 32, "head_dim": 128}, embeddings=True),
    "gemma": Family({"num_key_value_heads": 16, "head_dim": 256}, tied=True),
    "gemma2": Family({"num_key_value_heads": 4, "head_dim": 256}, tied=True),
    "gemma3_text": Family(_GEMMA3, tied=True),
    "gemma3": Family(
        _GEMMA3, tied=True, prefixes=("model.language_model.", "language_model.model."), nested="text_config"
    ),
    "phi3": Family(fused=True, embeddings=True),
    "granite": Family(embeddings=True),
    "olmo2": Family(),
    "olmo3": Family(),
    "smollm3": Family({"num_key_value_heads": 4}, tied=True),
    "starcoder2": Family({"num_key_value_heads": 2}, tied=True, mlp="plain"),
    "exaone4": Family({"num_key_value_heads": 32}, embeddings=True),
    "mixtral": Family({"num_key_value_heads": 8}, mlp="experts"),
    "qwen3_moe": Family({"num_key_value_heads": 4}, mlp="experts"),
}
