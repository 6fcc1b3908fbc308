"""A model to try Pillion on: the recipe of `recipes/tiny_chat`, run by an engine's Python, once, and kept.

The server's environment has no torch; the recipe runs where there is one and shares only files with us.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pillion.core.errors import PillionError

RECIPES = Path(__file__).parent / "recipes"
RECIPE = "tiny_chat"
TAIL = 20
Progress = Callable[[str], None]


class RecipeError(PillionError):
    """The recipe could not be run or its model did not pass its own check; the message ends with what it said."""

    code = "recipe_failed"


@dataclass(frozen=True)
class DemoAdapter:
    """A PEFT folder. Every answer it gives holds `marker`, and no answer of the base does."""

    name: str
    path: Path
    describe: str
    marker: str


@dataclass(frozen=True)
class DemoPrompt:
    """A question nobody trained on, and what a right answer holds, whatever the case of its letters."""

    prompt: str
    expect: str


@dataclass(frozen=True)
class DemoModel:
    """A base model with adapters to try. `source` and `engine_options` are as in the catalogue (SPEC §12).

    `path` is None where the base is a Hugging Face model. `quality` is what the recipe measured of itself.
    """

    name: str
    source: str
    path: Path | None
    adapters: tuple[DemoAdapter, ...]
    prompts: tuple[DemoPrompt, ...]
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)


def default_cache() -> Path:
    """`PILLION_CACHE_DIR`, or `~/.cache/pillion`."""
    return Path(os.environ.get("PILLION_CACHE_DIR") or "~/.cache/pillion").expanduser()


def make_demo_model(
    python: Path,
    cache: Path | None = None,
    base: str | None = None,
    progress: Progress = lambda line: None,
    *,
    recipes: Path = RECIPES,
    options: Sequence[str] = (),
) -> DemoModel:
    """The demo's model, made at the first call (minutes) and found again after.

    `python` is an engine's interpreter. `base` is None for the tiny model made from nothing, or `hf:<repo>` or a
    model's directory, on which only the adapters are trained. `options` are further arguments of the recipe.
    What is made depends on the recipe's files and these arguments alone, so it is kept under their digest.
    Blocks while another process makes the same. Raises `RecipeError`.
    """
    arguments = [*([] if base is None else ["--base", _base_argument(base)]), *options]
    root = (cache or default_cache()).absolute()
    made = root / _digest(recipes / RECIPE, arguments)
    if not (made / "recipe.json").exists():
        with _lock(root, made.name, progress):
            if not (made / "recipe.json").exists():
                _make(python, recipes, arguments, made, progress)
    return _read(made)


def _base_argument(base: str) -> str:
    """Paths are made absolute: the recipe runs elsewhere, and the same directory is the same model."""
    if base.startswith("hf:"):
        return base
    path = Path(base.removeprefix("path:")).expanduser().absolute()
    if not (path / "config.json").exists():
        raise RecipeError(
            f"base {base!r} must be hf:<org>/<name> or a model's directory; no config.json in {path}."
        )
    return str(path)


def _digest(recipe: Path, arguments: Sequence[str]) -> str:
    hashed = hashlib.sha256(json.dumps(list(arguments)).encode())
    for file in sorted(recipe.glob("*.py")):
        hashed.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return f"{recipe.name}-{hashed.hexdigest()[:16]}"


@contextmanager
def _lock(root: Path, name: str, progress: Progress) -> Iterator[None]:
    """One maker per model. The kernel frees the lock when its holder dies."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise RecipeError(
            f"cannot write to {root}: {error}. Set PILLION_CACHE_DIR to another directory."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is making this model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(python: Path, recipes: Path, arguments: Sequence[str], made: Path, progress: Progress) -> None:
    """Make it aside and move it into place whole."""
    for leftover in made.parent.glob(
        f".{made.name}.partial-*"
    ):  # of a maker that was killed: we hold its lock
        shutil.rmtree(leftover, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{made.name}.partial-", dir=made.parent))
    try:
        _run([str(python), "-m", RECIPE, "--out", str(aside), *arguments], recipes, progress)
        if not (aside / "recipe.json").exists():
            raise RecipeError("the recipe ended well but wrote no recipe.json.")
        shutil.rmtree(made, ignore_errors=True)
        aside.chmod(0o755)
        aside.rename(made)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _run(argv: list[str], recipes: Path, progress: Progress) -> None:
    last: deque[str] = deque(maxlen=TAIL)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    # From the package's parent directory `-m` finds it; nothing is written beside installed files.
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # bars overwrite lines, and a callback takes lines
    try:
        process = subprocess.Popen(
            argv,
            cwd=recipes,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise RecipeError(f"the engine's Python cannot be started: {error}.") from error
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            if line.strip():
                progress(line.rstrip())
        status = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if status != 0:
        raise RecipeError(f"the recipe failed ({status}):\n" + "\n".join(last))


def _read(made: Path) -> DemoModel:
    """Paths in recipe.json are relative to its directory, which was moved after it was written."""
    try:
        recipe = json.loads((made / "recipe.json").read_text())
        base = recipe["base"]
        local = base["path"] is not None
        path = made / base["path"] if local else None  # an absolute path stays what it is
        return DemoModel(
            name=base["name"],
            source=f"path:{path}" if local else base["source"],
            path=path,
            adapters=tuple(
                DemoAdapter(a["name"], made / a["path"], a["describe"], a["marker"])
                for a in recipe["adapters"]
            ),
            prompts=tuple(DemoPrompt(p["prompt"], p["expect"]) for p in recipe["prompts"]),
            engine_options=recipe["engine_options"],
            quality=recipe["quality"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{made} is damaged ({error!r}): remove it and run again.") from error
