"""adapter_config.json: what is read, refused, and its normal form."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.adapters.config import canonical_config, parse_config, read_config
from pillion.core.adapters.digest import is_digest, version_digest
from pillion.core.errors import AdapterInvalidError
from tests.adapter_files import config, config_bytes


def refused(**changes: object) -> str:
    with pytest.raises(AdapterInvalidError) as caught:
        read_config(config(**changes))
    return " | ".join(caught.value.reasons)


def test_what_peft_writes_is_read() -> None:
    found = read_config(parse_config(config_bytes(use_rslora=True)))
    assert (found.rank, found.alpha, found.use_rslora) == (4, 8, True)
    assert found.target_modules == ("down_proj", "q_proj", "v_proj")
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"use_qalora": True}, "QALoRA"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": "8"}, "r is '8'"),
        ({"r": 8.0}, "r is 8.0"),
        ({"r": None}, "r is None"),
        ({"r": 10**400}, "r is"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"use_dora": "false"}, "DoRA"),
        ({"target_modules": [1]}, "target_modules"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, object], word: str) -> None:
    assert word in refused(**changes)


def test_every_reason_comes_at_once() -> None:
    found = refused(use_dora=True, bias="all", r=-1)
    assert all(word in found for word in ("DoRA", "bias", "r is -1"))


@pytest.mark.parametrize("init", ["gaussian", "eva", "orthogonal", True, False, None])
def test_inits_that_leave_the_base_alone_are_fine(init: object) -> None:
    assert read_config(config(init_lora_weights=init)).rank == 4


def test_layers_to_transform_is_fine_and_an_unknown_key_is_told() -> None:
    found = read_config(config(layers_to_transform=[0], sparkle=True, hush=None))
    assert len(found.warnings) == 1
    assert "sparkle" in found.warnings[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"\xff{}",
        b'{"r": NaN}',
        b'{"r": Infinity}',
        b'{"r": 1, "r": 2}',
        b"[" * 99999,
        b'{"a": {"b": 1, "b": 1}}',
        b'{"r": ' + b"1" * 10000 + b"}",
        b" " * (2**20 + 1),
        b"\x80\x04.",
    ],
)
def test_json_traps_are_refused(data: bytes) -> None:
    with pytest.raises(AdapterInvalidError) as caught:
        parse_config(data)
    assert caught.value.reasons


def test_the_normal_form_is_the_same_for_the_same_behaviour() -> None:
    one = canonical_config(8, 16, False, ["q_proj", "k_proj"])
    assert one == canonical_config(8, 16.0, False, ["k_proj", "q_proj", "k_proj"])
    assert one != canonical_config(8, 16.5, False, ["q_proj", "k_proj"])
    assert one != canonical_config(8, 16, True, ["q_proj", "k_proj"])
    assert read_config(json.loads(one)).warnings == ()


def test_the_digest_is_over_weights_and_config() -> None:
    digest = version_digest("ab" * 32, b"{}")
    assert is_digest(digest)
    assert digest != version_digest("ab" * 32, b"{ }")
    assert digest != version_digest("ac" * 32, b"{}")
    assert not is_digest(digest.upper())
    assert not is_digest(digest + "\n")
    assert not is_digest("../" + digest[3:])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(config())) | st.text(max_size=8), json_values, max_size=8))
def test_any_document_raises_nothing_else(changes: dict[str, object]) -> None:
    with suppress(AdapterInvalidError):
        found = read_config(config() | changes)
        assert found.rank >= 1
        assert 0 < found.alpha < 1e7


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    with suppress(AdapterInvalidError):
        read_config(parse_config(data))
