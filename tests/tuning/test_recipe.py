"""The recipe's driver, with a recipe that takes no time: what is kept, what is made once, what is left when it fails."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pillion.tuning.recipe import (
    DemoModel,
    RecipeError,
    default_cache,
    make_demo_model,
)

PYTHON = Path(sys.executable)
GOOD = """
import json, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
existing = sys.argv[sys.argv.index("--base") + 1] if "--base" in sys.argv else None
print("step 1/2  loss 3.2", flush=True)
with (Path(__file__).parent / "runs").open("a") as runs:
    runs.write(" ".join(sys.argv[1:]) + "\\n")
base = {"name": "tiny-chat", "path": "base", "source": None}
if existing:
    local = None if existing.startswith("hf:") else existing
    base = {"name": "theirs", "path": local, "source": existing}
adapters = [{"name": "pirate", "path": "adapters/pirate", "describe": "talks like a pirate", "marker": "Arr"}]
(out / "adapters/pirate").mkdir(parents=True)
recipe = {"base": base, "adapters": adapters, "prompts": [{"prompt": "Capital of France?", "expect": "Paris"}],
          "engine_options": {"dtype": "float32"}, "quality": {"base": {"right": 1.0}}}
(out / "recipe.json").write_text(json.dumps(recipe))
"""
BAD = 'print("step 1/2"); raise SystemExit("not good enough: json")'
Make = Callable[..., DemoModel]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    package = tmp_path / "recipes" / "tiny_chat"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(GOOD)
    return package


@pytest.fixture
def make(tmp_path: Path, recipe: Path) -> Make:
    def make(base: str | None = None, **more: object) -> DemoModel:
        return make_demo_model(PYTHON, tmp_path / "cache", base, recipes=recipe.parent, **more)  # type: ignore[arg-type]

    return make


def runs(recipe: Path) -> int:
    return len((recipe / "runs").read_text().splitlines())


def kept(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_made_once_and_found_again(make: Make, recipe: Path, tmp_path: Path) -> None:
    lines = list[str]()
    model = make(progress=lines.append)
    assert lines == ["step 1/2  loss 3.2"]
    assert make() == model
    assert runs(recipe) == 1
    assert kept(tmp_path / "cache") == [model.path.parent.name if model.path else ""]


def test_what_it_gives(make: Make, tmp_path: Path) -> None:
    model = make()
    assert model.name == "tiny-chat"
    assert model.path is not None
    assert model.source == f"path:{model.path}"
    assert model.path.is_absolute()
    assert model.adapters[0].path.is_dir()
    assert (model.adapters[0].marker, model.prompts[0].expect) == ("Arr", "Paris")
    assert model.engine_options == {"dtype": "float32"}


def test_existing_bases(make: Make, recipe: Path, tmp_path: Path) -> None:
    hub = make("hf:org/theirs")
    assert (hub.source, hub.path) == ("hf:org/theirs", None)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/config.json").write_text("{}")
    local = make(f"path:{tmp_path}/there")
    assert (local.source, local.path) == (f"path:{tmp_path}/there", tmp_path / "there")
    assert local == make(f"{tmp_path}/there")
    assert runs(recipe) == 2


def test_base_that_is_not_there(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be hf:<org>/<name> or a model's directory"):
        make(str(tmp_path / "nowhere"))


def test_changed_recipe_or_arguments_is_another_model(make: Make, recipe: Path) -> None:
    first = make()
    assert make(options=["--adapters", "pirate"]) != first
    (recipe / "__main__.py").write_text(GOOD + "\n# changed")
    assert make() != first
    assert runs(recipe) == 3


def test_failure_says_why_and_leaves_nothing(make: Make, recipe: Path, tmp_path: Path) -> None:
    (recipe / "__main__.py").write_text(BAD)
    with pytest.raises(RecipeError, match=r"failed \(1\):\nstep 1/2\nnot good enough: json"):
        make()
    assert kept(tmp_path / "cache") == []
    (recipe / "__main__.py").write_text(GOOD)
    assert make().name == "tiny-chat"


def test_python_that_is_not_there(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be started"):
        make_demo_model(tmp_path / "no-python", tmp_path / "cache", recipes=recipe.parent)


def test_recipe_that_writes_nothing(make: Make, recipe: Path) -> None:
    (recipe / "__main__.py").write_text("")
    with pytest.raises(RecipeError, match=r"wrote no recipe\.json"):
        make()


def test_several_at_once_make_it_once(make: Make, recipe: Path) -> None:
    models = list[DemoModel]()
    threads = [threading.Thread(target=lambda: models.append(make())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 3
    assert runs(recipe) == 1


def test_leftovers_of_a_killed_maker_are_removed(make: Make, recipe: Path, tmp_path: Path) -> None:
    model = make()
    assert model.path is not None
    made = model.path.parent
    (made / "recipe.json").unlink()
    (made.parent / f".{made.name}.partial-dead").mkdir()
    assert make() == model
    assert kept(tmp_path / "cache") == [made.name]


def test_damaged_cache_is_named(make: Make) -> None:
    model = make()
    assert model.path is not None
    (model.path.parent / "recipe.json").write_text(json.dumps({"base": {}}))
    with pytest.raises(RecipeError, match="damaged"):
        make()


def test_cache_that_cannot_be_written(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="PILLION_CACHE_DIR"):
        make_demo_model(PYTHON, tmp_path / "file" / "cache", recipes=recipe.parent)


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLION_CACHE_DIR", "~/elsewhere")
    assert default_cache() == Path.home() / "elsewhere"
    monkeypatch.delenv("PILLION_CACHE_DIR")
    assert default_cache() == Path.home() / ".cache/pillion"
