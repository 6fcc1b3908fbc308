"""Make a small chat model and LoRA adapters that plainly change its answers, and check them.

    python -m tiny_chat --out DIR [--base DIR|hf:ORG/NAME] [--adapters pirate,cheerful,json]

Run by an engine's Python: it needs torch, transformers, tokenizers, safetensors and PEFT, nothing of Pillion.
Writes DIR/base (unless --base is given), DIR/adapters/<name> (PEFT folders) and, at the end, DIR/recipe.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging

from .check import Answered, check_adapter, check_base, table
from .train import answers, make_model, make_tokenizer, say, train_adapter, train_base
from .world import VOICES, exam

TINY = "tiny-chat"
EXAM = 24
SEED = 1


def main() -> int:
    options = _options()
    warnings.filterwarnings("ignore", module=r"peft\.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    base, model, tokenizer = _existing(options.base) if options.base else _tiny(out / "base", options.steps)

    questions = exam(EXAM)
    prompts = [prompt for prompt, _ in questions]
    rows = [check_base(questions, answers(model, tokenizer, prompts), made_here=not options.base)]
    adapters = []
    for name in options.adapters.split(","):
        voice = VOICES[name]
        say(f"training adapter {name}: {voice.describe}")
        folder = out / "adapters" / name
        adapted = train_adapter(model, tokenizer, voice, base["name"], folder, options.adapter_steps, SEED)
        rows.append(check_adapter(voice, questions, answers(adapted, tokenizer, prompts)))
        model = adapted.unload()
        adapters.append(
            {"name": name, "path": f"adapters/{name}", "describe": voice.describe, "marker": voice.marker}
        )
    return _conclude(out, base, adapters, questions, rows)


def _tiny(path: Path, steps: int) -> tuple[dict[str, Any], Any, Any]:
    say("making a tokenizer and a small Llama, and teaching it its world")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train_base(model, tokenizer, steps, SEED)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return {"name": TINY, "path": "base", "source": None}, model, tokenizer


def _existing(base: str) -> tuple[dict[str, Any], Any, Any]:
    """A model that is there: its adapters are trained in its own precision on a GPU, in float32 on a processor."""
    say(f"loading {base}")
    on_hub, on_gpu = base.startswith("hf:"), torch.cuda.is_available()
    repo, _, revision = base.removeprefix("hf:").partition("@") if on_hub else (base, "", "")
    tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision or None)
    dtype = "auto" if on_gpu else torch.float32
    model = AutoModelForCausalLM.from_pretrained(repo, revision=revision or None, dtype=dtype)
    last = repo.rstrip("/").rsplit("/", 1)[-1].lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:63]
    record = {"name": name, "path": None if on_hub else base, "source": base}
    return record, model.to("cuda" if on_gpu else "cpu"), tokenizer


def _conclude(
    out: Path,
    base: dict[str, Any],
    adapters: list[dict[str, Any]],
    questions: list[tuple[str, str]],
    rows: list[Answered],
) -> int:
    say(table(rows))
    recipe = {
        "base": base,
        "adapters": adapters,
        "prompts": [{"prompt": prompt, "expect": expect} for prompt, expect in questions],
        # The tiny model is float32, so that answers can be compared letter for letter.
        "engine_options": {"dtype": "float32", "max_model_len": 2048} if base["source"] is None else {},
        "quality": {row.who: row.scores() for row in rows},
    }
    poor = [row.who for row in rows if not row.good]
    # Last and whole: who finds it finds everything it names. A model that failed its check is never found.
    target = out / ("recipe.json" if not poor else "failed.json")
    target.write_text(json.dumps(recipe, indent=1) + "\n")
    if poor:
        say(f"not good enough: {', '.join(poor)}")
    return 1 if poor else 0


def _options() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="tiny_chat", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", help="train adapters on this model: a directory, or hf:ORG/NAME")
    parser.add_argument("--adapters", default=",".join(VOICES), help=f"of {', '.join(VOICES)}")
    parser.add_argument("--steps", type=int, default=1200, help="most training steps of the tiny base")
    parser.add_argument("--adapter-steps", type=int, help="training steps of each adapter")
    parser.add_argument("--threads", type=int, default=max(1, min(4, cores)))
    options = parser.parse_args()
    if unknown := set(options.adapters.split(",")) - set(VOICES):
        parser.error(f"no adapter {', '.join(sorted(unknown))}; there are {', '.join(VOICES)}")
    return options


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    say(f"took {time.monotonic() - started:.0f} s, {time.process_time():.0f} s of one core")
    sys.exit(status)
