"""Makes a small Llama with random weights and random adapters of it. Run by an engine's Python.

    make_models.py DIR

Weights are drawn wide, so that adapters change the greedy answers plainly and ties are rare.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 500
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Different ranks and modules, so that slots, slices and layers are filled unevenly.
ADAPTERS: dict[str, tuple[int, list[str]]] = {
    "one": (4, ALL_LINEAR),
    "two": (16, ["q_proj", "v_proj"]),
    "three": (8, ["o_proj", "up_proj", "down_proj"]),
    "four": (16, [*ALL_LINEAR, "lm_head"]),
    "five": (8, [*ALL_LINEAR, "embed_tokens"]),
}


def main(directory: Path) -> None:
    torch.manual_seed(7)
    base = directory / "base"
    tokenizer().save_pretrained(base)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).float()
    model.save_pretrained(base)
    for name, (rank, modules) in ADAPTERS.items():
        adapter(base, directory / name, rank, modules)
    broken(directory)
    (directory / "reference.json").write_text(json.dumps(reference(directory)))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{n}": n for n in range(4, WORDS)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def adapter(base: Path, directory: Path, rank: int, modules: list[str]) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, lora)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(directory, save_embedding_layers=False)


def reference(directory: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """What transformers and PEFT answer: per model and prompt the greedy tokens and the prompt's scores."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in ("base", *ADAPTERS):
        model = LlamaForCausalLM.from_pretrained(directory / "base").float()
        if name != "base":
            model = PeftModel.from_pretrained(model, directory / name).merge_and_unload()
        found[name] = {}
        for seed in range(6):
            draw = torch.Generator().manual_seed(seed)
            ids = torch.randint(4, WORDS, (1, 5 + 6 * seed), generator=draw)
            prompt = " ".join(f"w{token}" for token in ids[0].tolist())
            with torch.no_grad():
                scores = model(ids).logits[0].log_softmax(-1)
                answer = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
            found[name][prompt] = {
                "tokens": answer[0, ids.shape[1] :].tolist(),
                "scores": scores[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist(),
            }
    return found


def broken(directory: Path) -> None:
    """What an engine must refuse: a rank over its limit, weights that do not fit, no weights."""
    source = directory / "one"
    for name, change in {
        "bad-rank": {"r": 512},
        "bad-shape": {},
        "no-weights": {},
    }.items():
        target = directory / name
        target.mkdir(exist_ok=True)
        settings = json.loads((source / "adapter_config.json").read_text()) | change
        (target / "adapter_config.json").write_text(json.dumps(settings))
    (directory / "bad-rank" / "adapter_model.safetensors").write_bytes(
        (source / "adapter_model.safetensors").read_bytes()
    )
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "adapter_model.safetensors")
    save_file(
        {name: torch.ones(w.shape[0] + 8, w.shape[1] + 64) for name, w in weights.items()},
        directory / "bad-shape" / "adapter_model.safetensors",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
