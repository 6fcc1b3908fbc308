"""Module shapes from config.json. The expected ones are those of Hugging Face's own implementations."""

from typing import Any

import pytest

from pillion.core.adapters.bases import base_mismatch, base_modules
from pillion.core.adapters.families import FAMILIES
from pillion.core.errors import AdapterInvalidError
from tests.adapter_files import LLAMA, base

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
}


def layer(config: dict[str, Any], prefix: str = "model.layers.1.") -> dict[str, tuple[int, int]]:
    linear = base_modules(config).linear
    return {name.removeprefix(prefix): shape for name, shape in linear.items() if name.startswith(prefix)}


def test_a_llama() -> None:
    assert layer({"model_type": "llama", **SMALL}) == {
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (96, 64),
        "mlp.up_proj": (96, 64),
        "mlp.down_proj": (64, 96),
    }


def test_heads_wider_than_the_model() -> None:
    found = layer({"model_type": "qwen3", **SMALL, "head_dim": 24})
    assert found["self_attn.q_proj"] == (96, 64)
    assert found["self_attn.k_proj"] == (48, 64)
    assert found["self_attn.o_proj"] == (64, 96)


def test_sizes_left_out_have_their_class_defaults() -> None:
    assert layer({"model_type": "qwen3", **SMALL, "head_dim": None})["self_attn.q_proj"] == (512, 64)
    without = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    assert layer({"model_type": "llama", **without})["self_attn.k_proj"] == (64, 64)


def test_a_fused_family() -> None:
    assert layer({"model_type": "phi3", **SMALL}) == {
        "self_attn.qkv_proj": (128, 64),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_up_proj": (192, 64),
        "mlp.down_proj": (64, 96),
    }


def test_experts_are_refused_with_a_reason_and_attention_is_not() -> None:
    modules = base_modules({"model_type": "mixtral", **SMALL})
    assert {name.rsplit(".", 1)[-1] for name in modules.linear} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "experts" in modules.refused["w1"]


def test_a_language_model_inside_a_larger_one() -> None:
    config = {"model_type": "gemma3", "text_config": {**SMALL, "num_attention_heads": None}}
    modules = base_modules(config)
    assert modules.linear["model.language_model.layers.0.self_attn.q_proj"] == (8 * 256, 64)
    assert modules.canonical("language_model.model.layers.0.x") == "model.language_model.layers.0.x"
    assert modules.canonical("model.layers.0.x") == "model.layers.0.x"


def test_embeddings_only_where_engines_take_them() -> None:
    untied = base_modules({"model_type": "llama", **SMALL, "tie_word_embeddings": False})
    assert untied.embedding == {"model.embed_tokens": (131, 64)}
    assert untied.linear["lm_head"] == (131, 64)
    tied = base_modules({"model_type": "llama", **SMALL, "tie_word_embeddings": True})
    assert "lm_head" not in tied.linear
    assert "tied" in tied.refused["lm_head"]
    assert base_modules({"model_type": "qwen2", **SMALL}).embedding == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_modules(family: str) -> None:
    assert len(base_modules({"model_type": family, **SMALL, "text_config": SMALL}).linear) >= 8


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"model_type": "gemma3", "text_config": 3}, "text_config"),
    ],
)
def test_a_base_that_cannot_be_checked(change: dict[str, Any], word: str) -> None:
    with pytest.raises(AdapterInvalidError) as caught:
        base_modules(LLAMA | change)
    assert word in " ".join(caught.value.reasons)


@pytest.mark.parametrize(
    ("claimed", "refused", "warned"),
    [
        (None, False, False),
        ("", False, False),
        ("tiny", False, False),
        ("Org/Tiny-8B", False, False),
        ("/home/me/models/tiny-8b/", False, False),
        ("C:\\models\\Tiny-8B", False, False),
        ("unsloth/tiny-8b-bnb-4bit", False, True),
        ("/tmp/x", False, True),
        ("other", True, False),
        ("Org/Other-8B", True, False),
        ("mirror/other-8b", True, False),
    ],
)
def test_the_base_an_adapter_names(claimed: str | None, refused: bool, warned: bool) -> None:
    served = base(repo="org/tiny-8b", others=frozenset({"other", "org/other-8b", "tiny"}))
    reason, warning = base_mismatch(claimed, served)
    assert (reason is not None, warning is not None) == (refused, warned)
