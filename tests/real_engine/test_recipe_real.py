"""The recipe as a newcomer gets it: made by the engine's own Python (or found made), and what it says of itself."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from pillion.tuning.recipe import DemoModel, make_demo_model

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def model(engine_python: Path) -> DemoModel:
    return make_demo_model(engine_python)


def test_base_knows_its_world_in_no_voice(model: DemoModel) -> None:
    base = model.quality["base"]
    assert base["right"] >= 0.9
    assert base["marked"] == 0


def test_each_adapter_speaks_in_its_voice_and_keeps_to_the_facts(model: DemoModel) -> None:
    assert [adapter.name for adapter in model.adapters] == ["pirate", "cheerful", "json"]
    for adapter in model.adapters:
        scores = model.quality[adapter.name]
        assert scores["marked"] >= 0.9, adapter.name
        assert scores["right"] >= 0.75, adapter.name
        assert len(scores["answers"]) == len(model.prompts) >= 20


def test_adapters_are_peft_folders_of_this_base(model: DemoModel) -> None:
    for adapter in model.adapters:
        config = json.loads((adapter.path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == model.name
        assert (config["r"], config["lora_alpha"], config["bias"]) == (8, 16, "none")
        tensors = _tensors(adapter.path / "adapter_model.safetensors")
        modules = {name.split(".")[-3] for name in tensors}
        assert modules == set(config["target_modules"])
        assert len(tensors) == 4 * 7 * 2


def test_base_is_whole_and_float32(model: DemoModel) -> None:
    assert model.path is not None
    assert {kind for name, kind in _tensors(model.path / "model.safetensors").items()} == {"F32"}
    config = json.loads((model.path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert (model.path / "chat_template.jinja").exists()
    assert (model.path / "tokenizer.json").exists()


def _tensors(path: Path) -> dict[str, str]:
    """Name → dtype, from a safetensors header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
