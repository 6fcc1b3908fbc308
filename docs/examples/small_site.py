"""Write what it takes to try Pillion without a model: python small_site.py DIRECTORY

DIRECTORY/pillion.toml        a configuration with one base model, served by the simulated engine
DIRECTORY/base/config.json    that base: a Llama with nothing but its shapes
DIRECTORY/adapters/<name>/    two LoRA adapters of it with random weights, as PEFT writes them

It needs nothing but Python. The simulated engine reads shapes and digests, so random weights will do.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from array import array
from pathlib import Path

RANK = 8
HIDDEN, INTERMEDIATE, HEADS, LAYERS, VOCABULARY = 64, 128, 4, 2, 256
BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny",
    "r": RANK,
    "lora_alpha": 2 * RANK,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
}


def main(directory: Path) -> None:
    base = directory / "base"
    base.mkdir(parents=True, exist_ok=True)
    (base / "config.json").write_text(json.dumps(BASE, indent=1))
    for name in ("billing", "support"):
        folder = directory / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG, indent=1))
        (folder / "adapter_model.safetensors").write_bytes(weights(random.Random(name)))  # noqa: S311 (not for secrets)
    text = f"""\
[[models]]
name = "tiny"
source = {json.dumps(f"path:{base.absolute()}")}
engine = "sim"
"""
    (directory / "pillion.toml").write_text(text)
    print(f"wrote {directory}/pillion.toml, {directory}/base and two adapters")


def weights(numbers: random.Random) -> bytes:
    """A safetensors file: the header's length, the header, the numbers."""
    header: dict[str, object] = {}
    data = array("f")
    for layer in range(LAYERS):
        for module in CONFIG["target_modules"]:
            for matrix, shape in (("A", [RANK, HIDDEN]), ("B", [HIDDEN, RANK])):
                begin = 4 * len(data)
                data.extend(numbers.uniform(-0.05, 0.05) for _ in range(shape[0] * shape[1]))
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{matrix}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, 4 * len(data)]}
    if sys.byteorder == "big":
        data.byteswap()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data.tobytes()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
