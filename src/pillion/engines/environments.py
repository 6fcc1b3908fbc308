"""Engines in virtual environments of their own, apart from the server's.

Layout under the root: `<name>` is a link to `.builds/<name>/<digest of its pins>`, a virtual environment that
ends with a marker once it is whole and has been seen to import. A new build is made beside the old one and the
link is turned in one step, so an install that breaks off leaves no half engine, and engines that run keep theirs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pillion.core.errors import PillionError, UnavailableError
from pillion.engines.builds import BUILDS, Build, build, fitting, this_machine
from pillion.engines.packages import InstallError, Packages

MARKER = "pillion-engine.json"
ALWAYS_THERE = "sim"
IMPORT_S = 300.0
Progress = Callable[[str], None]

__all__ = ["EngineEnvironments", "EngineNotInstalledError", "InstallError", "Installed", "default_root"]


class EngineNotInstalledError(UnavailableError):
    """The engine's environment is not on this machine, or is not whole."""

    code = "engine_missing"


@dataclass(frozen=True)
class Installed:
    """An engine as found on disk. `python` is None for what needs no environment; `why` says why it does not run."""

    name: str
    version: str
    path: Path | None
    python: Path | None
    runs: bool
    why: str = ""


def default_root() -> Path:
    """`PILLION_ENGINES_DIR`, or `~/.pillion/engines`."""
    return Path(os.environ.get("PILLION_ENGINES_DIR") or "~/.pillion/engines").expanduser()


class EngineEnvironments:
    """The environments under `root`. Any number of processes may use it at once."""

    def __init__(self, root: Path | None = None, packages: Packages | None = None) -> None:
        self.root = (root or default_root()).absolute()
        self._packages = packages or Packages()

    def detect(self) -> str:
        """The build that fits this machine. Raises `UnsupportedMachineError`."""
        return fitting(this_machine())

    def install(self, name: str | None = None, progress: Progress = lambda line: None) -> Installed:
        """Make the environment of `name` (default: what fits this machine), unless it is there with these pins.

        Blocks while another process installs the same. Raises `InstallError`, `InvalidRequestError`,
        `UnsupportedMachineError`.
        """
        wanted = build(name or self.detect())
        if not self._current(wanted):
            with self._lock(wanted.name, progress):
                if not self._current(wanted):
                    self._build(wanted, progress)
        return self._inspect(wanted.name)

    def list(self) -> list[Installed]:
        """What is here, `sim` first. Takes a fraction of a second: imports were tried at install time."""
        there = [self._inspect(name) for name in BUILDS if os.path.lexists(self.root / name)]
        return [Installed(ALWAYS_THERE, "", None, None, True), *there]

    def python(self, name: str) -> Path:
        """The interpreter of an installed engine. Raises `EngineNotInstalledError`, which says what to run."""
        found = self._inspect(build(name).name)
        if not found.runs or found.python is None:
            raise EngineNotInstalledError(
                f"engine {name} in {self.root} does not run ({found.why}): run `pillion engines install {name}`."
            )
        return found.python

    def _inspect(self, name: str) -> Installed:
        path = self.root / name
        python = path / "bin" / "python"
        marker = _read(path / MARKER)
        version = str(marker.get("versions", {}).get(BUILDS[name].packages[0], ""))
        why = ""
        if not path.exists():
            why = "not installed"
        elif not marker:
            why = "its installation was not finished"
        elif not os.access(python, os.X_OK):
            why = "its Python is gone"
        return Installed(name, version, path, python, not why, why)

    def _current(self, wanted: Build) -> bool:
        marker = _read(self.root / wanted.name / MARKER)
        return marker.get("digest") == wanted.digest() and self._inspect(wanted.name).runs

    def _build(self, wanted: Build, progress: Progress) -> None:
        self._sweep(wanted.name)
        self._check_space(wanted)
        path = _unused(self._builds(wanted.name) / wanted.digest())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._packages.make(wanted, path, progress)
            progress(f"trying {', '.join(wanted.packages)}")
            _mark(wanted, path, _versions(wanted, path / "bin" / "python"))
        except (PillionError, OSError) as error:
            shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError):
                raise InstallError(f"cannot write the environment under {self.root}: {error}.") from error
            raise
        except BaseException:  # Ctrl-C must not leave gigabytes behind
            shutil.rmtree(path, ignore_errors=True)
            raise
        self._turn(wanted.name, path)
        progress(f"{wanted.name} {wanted.version} is installed in {self.root / wanted.name}")

    def _builds(self, name: str) -> Path:
        return self.root / ".builds" / name

    def _check_space(self, wanted: Build) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.root).free / 1e9
        except OSError as error:
            raise InstallError(
                f"cannot write to {self.root}: {error}. Set PILLION_ENGINES_DIR to another directory."
            ) from error
        if free < wanted.gigabytes:
            raise InstallError(
                f"{wanted.name} takes {wanted.gigabytes:g} GB and {self.root} has {free:.1f} GB free: make room, "
                "or set PILLION_ENGINES_DIR to a directory on a larger disk."
            )

    def _sweep(self, name: str) -> None:
        """Remove builds of `name` that nothing points to. The one in use stays until the next install."""
        current = (self.root / name).resolve()
        for old in self._builds(name).glob("*"):
            if old.resolve() != current:
                shutil.rmtree(old, ignore_errors=True)

    def _turn(self, name: str, path: Path) -> None:
        """Let the name mean this build. Readers see the old one or the new one, never none."""
        link = self.root / name
        if (
            link.exists() and not link.is_symlink()
        ):  # a directory made by other means cannot be replaced in one step
            link.rename(_unused(self._builds(name) / "before"))
        fresh = self.root / f".{name}.link"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(path.relative_to(self.root))
        fresh.replace(link)

    @contextmanager
    def _lock(self, name: str, progress: Progress) -> Iterator[None]:
        """One installer per engine. The kernel frees the lock when its holder dies."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / f".{name}.lock").open("w")
        except OSError as error:
            raise InstallError(
                f"cannot write to {self.root}: {error}. Set PILLION_ENGINES_DIR to another directory."
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"another process is installing {name}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _versions(wanted: Build, python: Path) -> dict[str, str]:
    """Import what the build is made of and give the versions. Raises `InstallError` with the import's error."""
    modules = [name.removesuffix("-cpu") for name in wanted.packages]
    code = (
        f"import json, {', '.join(modules)}; from importlib.metadata import version\n"
        f"print(json.dumps({{name: version(name) for name in {list(wanted.packages)!r}}}))"
    )
    try:
        tried = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            timeout=IMPORT_S,
            check=False,
            cwd=python.parent,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{wanted.name} did not import within {IMPORT_S:.0f} s.") from error
    if tried.returncode != 0:
        last = "\n".join(tried.stderr.strip().splitlines()[-5:])
        raise InstallError(f"{wanted.name} was installed but does not import on this machine:\n{last}")
    return dict(json.loads(tried.stdout.strip().splitlines()[-1]))


def _mark(wanted: Build, path: Path, versions: dict[str, str]) -> None:
    content = {
        "name": wanted.name,
        "digest": wanted.digest(),
        "versions": versions,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "verified": True,
    }
    fresh = path / f"{MARKER}.partial"
    with fresh.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path / MARKER)


def _read(marker: Path) -> dict[str, Any]:
    """The marker's content; empty where it is missing or torn."""
    try:
        content = json.loads(marker.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("verified") else {}


def _unused(path: Path) -> Path:
    """`path`, or the first of `path.1`, `path.2`, … that is free."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in range(1, 10_000))
    return next(candidate for candidate in (path, *numbered) if not os.path.lexists(candidate))
