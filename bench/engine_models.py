"""Makes the random-weight Llamas of bench/engine.py and LoRA adapters of them. Run by an engine's Python.

    engine_models.py DIR HIDDEN LAYERS [VOCABULARY]

Leaves DIR/base (bfloat16) and DIR/r<rank>-<n>: eight adapters of rank 16, one each of rank 8 and 64.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ADAPTERS = [(16, number) for number in range(8)] + [(8, 0), (64, 0)]
HEAD = 64


def main(directory: Path, hidden: int, layers: int, vocabulary: int = 4096) -> None:
    torch.manual_seed(11)
    words = {"<s>": 1, "</s>": 2, "<unk>": 0} | {f"w{n}": n for n in range(3, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory / "base")
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=max(1, hidden // HEAD // 4),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory / "base")
    for rank, number in ADAPTERS:
        adapter(directory / f"r{rank}-{number}", config, rank)


def adapter(directory: Path, config: LlamaConfig, rank: int) -> None:
    """PEFT's format, all linear layers, weights that change every answer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * HEAD
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for module, (rows, columns) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = (torch.randn(rank, columns) * 0.05).to(torch.bfloat16)
            tensors[f"{stem}.lora_B.weight"] = (torch.randn(rows, rank) * 0.05).to(torch.bfloat16)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(module.partition(".")[2] for module in shapes),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:]))
