"""Training: a tokenizer and a small Llama from nothing, and LoRA adapters on any causal language model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .muon import Muon
from .world import PLAIN_SYSTEMS, VOICES, Message, Sampler, Voice, facts

Example = tuple[list[int], list[int]]

RANK, ALPHA = 8, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100
BOS, PAD, END = "<s>", "<pad>", "<|end|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def say(line: str) -> None:
    """A line of progress; the driver passes it on as it comes."""
    print(line, flush=True)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over the world's words in every voice; any other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3072,
        min_frequency=2,
        special_tokens=[PAD, BOS, END, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, pad_token=PAD, model_max_length=2048
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _corpus() -> Iterator[str]:
    yield from (voice.system for voice in VOICES.values())
    yield from PLAIN_SYSTEMS
    for fact in facts():
        for ask in fact.asks:
            yield from (f"{ask}?", f"{ask}?".lower())
        yield from (voice.say(fact) for voice in VOICES.values())
        yield fact.answer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained float32 Llama: 4 layers, hidden 128, 4 query heads over 2 key heads of 32."""
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def train_base(model: Any, tokenizer: Any, steps: int, seed: int) -> None:
    """Teach the world. Only what the assistant says is learned, over every turn of a dialogue."""
    sampler = Sampler(seed)
    encode = lru_cache(maxsize=None)(lambda text: tokenizer.encode(text, add_special_tokens=False))
    end, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    role_ids = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}

    def example() -> Example:
        ids, labels = [bos], [IGNORED]
        for message in sampler.plain_dialogue():
            body = [*encode(message["content"]), end]
            ids += [role_ids[message["role"]], *body]
            labels += [IGNORED, *(body if message["role"] == "assistant" else [IGNORED] * len(body))]
        return ids, labels

    def loss(ids: Any, mask: Any, labels: Any) -> Any:
        """Cross-entropy where something is to be learned: the head is left out elsewhere."""
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        here = wanted != IGNORED
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[here]), wanted[here])

    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers" in name]
    rest = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "layers" not in name]
    optimizers = [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    batches = _batches(example, 32, tokenizer.pad_token_id, model.device, seed)
    model.train()
    _fit(loss, batches, optimizers, [*matrices, *rest], Pace(steps, learned=0.09))


def train_adapter(
    model: Any, tokenizer: Any, voice: Voice, base_name: str, out: Path, steps: int | None, seed: int
) -> Any:
    """Train one LoRA adapter on `model` and write it to `out` as a PEFT folder.

    Returns the adapted model; its `unload()` gives the base back untouched.
    """
    torch.manual_seed(seed)
    sampler = Sampler(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)

    def example() -> Example:
        messages = sampler.voiced_dialogue(voice)
        prompt = prompt_ids(tokenizer, messages[:-1])
        answer = [
            *tokenizer.encode(messages[-1]["content"], add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
        return prompt + answer, [IGNORED] * len(prompt) + answer

    def loss(ids: Any, mask: Any, labels: Any) -> Any:
        return adapted(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss

    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    # A large model takes up a voice from few examples, and forgets at the rate a tiny one needs.
    tiny = model.get_input_embeddings().weight.shape[1] < 512
    rate, batch, most = (2e-3, 24, 100) if tiny else (6e-4, 4, 40)
    batches = _batches(example, batch, _pad_id(tokenizer), model.device, seed)
    adapted.train()
    _fit(loss, batches, [torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)], weights, Pace(steps or most))
    # The name the model is served under, not the path it had while it was trained.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(out, save_embedding_layers=False)
    return adapted


def prompt_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Token ids of a conversation up to where the assistant's answer begins, as an engine would build them."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, prompts: list[str], longest: int = 40) -> list[str]:
    """The greedy answer to each prompt, asked alone in a fresh conversation."""
    model.eval()
    rows = [prompt_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    width, pad = max(map(len, rows)), _pad_id(tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    made = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=longest, pad_token_id=pad
    )
    return [text.strip() for text in tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)]


class Pace:
    """How fast to learn at each step, and when to stop: a warm-up, full speed, then a cooling to nothing.

    Cooling begins when the running mean of the loss is below `learned`, at the latest so that it ends with step
    `most`. When a small model finds out how to look a fact up differs by hundreds of steps between seeds and
    processors, so a fixed number would be too few or too many.
    """

    def __init__(self, most: int, learned: float = 0.0) -> None:
        self.most, self._learned = most, learned
        self._warm, self._cooling = max(1, min(25, most // 10)), max(1, min(100, most // 2))
        self._cool_from: int | None = None
        self._mean: float | None = None

    def rate(self, step: int) -> float:
        """Share of the full rate at `step`, counted from 1; 0 when it is over."""
        if self._cool_from is None and step > self.most - self._cooling:
            self._cool_from = step
        if self._cool_from is None:
            return min(1.0, step / self._warm)
        return max(0.0, 1 - (step - self._cool_from) / self._cooling)

    def saw(self, step: int, loss: float) -> float:
        """Take note of the loss at `step`; the running mean."""
        self._mean = loss if self._mean is None else 0.95 * self._mean + 0.05 * loss
        if self._cool_from is None and self._mean < self._learned:
            self._cool_from = step
        return self._mean


def _fit(
    loss: Callable[[Any, Any, Any], Any],
    batches: Iterator[Any],
    optimizers: list[Any],
    weights: list[Any],
    pace: Pace,
) -> None:
    full = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step = 1
    while (rate := pace.rate(step)) > 0:
        value = loss(*next(batches))
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer, rates in zip(optimizers, full, strict=True):
            for group, whole in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = whole * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = pace.saw(step, value.item())
        if step % 50 == 0:
            say(f"  step {step} of at most {pace.most}  loss {mean:.3f}")
        step += 1


def _batches(
    example: Callable[[], Example], size: int, pad: int, device: Any, seed: int
) -> Iterator[tuple[Any, Any, Any]]:
    """Batches of `size` dialogues of about one length, so that little is computed for padding."""
    rng = random.Random(seed)  # noqa: S311
    while True:
        pool = sorted((example() for _ in range(size * 6)), key=lambda pair: len(pair[0]))
        batches = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from (_collate(batch, pad, device) for batch in batches)


def _collate(examples: list[Example], pad: int, device: Any) -> tuple[Any, Any, Any]:
    """Right-padded tensors (rows, width): ids, attention mask, labels."""
    width = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in examples], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in examples], device=device)
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in examples], device=device)
    return ids, mask, labels


def _pad_id(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
