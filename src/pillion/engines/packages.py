"""Fill a virtual environment with a build's pinned packages, by uv."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from pillion.core.errors import PillionError
from pillion.engines.builds import Build

Progress = Callable[[str], None]
TAIL = 15
# Where a user says that packages come from: pip's settings, which uv does not read, and uv's own names for them.
PIP_TO_UV = {
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
}
NOT_INHERITED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT", "UV_EXCLUDE_NEWER")


class InstallError(PillionError):
    """An engine could not be installed; the message ends with what uv said."""

    code = "engine_install_failed"


class Packages:
    """uv, as it comes with Pillion. `uv` is its path, found where None; `environ` the settings it starts from."""

    def __init__(self, uv: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._uv = uv
        self._environ = environment(os.environ if environ is None else environ)

    def make(self, build: Build, path: Path, progress: Progress) -> None:
        """A virtual environment at `path` with the build's pins, compiled to bytecode. Raises `InstallError`."""
        progress(f"making an environment with Python {build.python}")
        self._make_venv(build, path)
        # Bytecode: without it every start of the engine compiles for tens of seconds.
        target = [
            "pip",
            "install",
            "--python",
            str(path / "bin" / "python"),
            "--no-deps",
            "--compile-bytecode",
        ]
        torch = f"torch=={build.pinned()['torch']}"
        if build.torch_index is not None:
            progress(f"fetching {torch}")
            self._first_that_works(
                [[*target, torch, *source] for source in self._sources(build)], path, progress
            )
        progress(f"fetching {build.name} {build.version} and {len(build.pinned()) - 1} packages it needs")
        self._run([*target, "--requirements", str(build.pins)], path, progress)

    def _make_venv(self, build: Build, path: Path) -> None:
        try:
            self._run(
                ["venv", "--no-project", "--python", build.python, str(path)], path.parent, lambda line: None
            )
        except InstallError as error:
            raise InstallError(
                f"no Python {build.python} for {build.name}: install one, or let uv download it "
                f"(it needs a network). {error.message}"
            ) from error

    def _sources(self, build: Build) -> list[list[str]]:
        """Where to look for torch, in order.

        PyTorch's index holds packages of other names too, so it is asked for torch alone and never mixed with
        PyPI. Who has configured places of their own is asked there first: PyTorch's may be out of reach.
        """
        configured, published = list[str](), ["--default-index", str(build.torch_index)]
        own = any(
            self._environ.get(name) for name in (*PIP_TO_UV.values(), "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")
        )
        return [configured, published] if own else [published, configured]

    def _first_that_works(self, tries: list[list[str]], path: Path, progress: Progress) -> None:
        failures = []
        for arguments in tries:
            try:
                return self._run(arguments, path, progress)
            except InstallError as error:
                failures.append(error.message)
        raise InstallError("\n".join(failures))

    def _run(self, arguments: list[str], directory: Path, progress: Progress) -> None:
        """Run uv in `directory`, away from any project whose settings it would take; pass on its lines."""
        last: deque[str] = deque(maxlen=TAIL)
        try:
            process = subprocess.Popen(
                [str(self._uv or _bundled()), *arguments, "--color", "never"],
                cwd=directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise InstallError(f"uv cannot be started: {error}.") from error
        try:
            assert process.stdout is not None
            for line in process.stdout:
                text = line.strip()
                last.append(text)
                if text and not text.startswith(("+", "-", "~")):
                    progress(text)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if status != 0:
            what = "there is no space left on the disk" if _no_space(last) else f"uv {arguments[0]} failed"
            raise InstallError(f"{what}:\n" + "\n".join(last))


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """uv's environment: pip's settings passed on under uv's names where uv has none, the server's own left out."""
    made = {name: value for name, value in environ.items() if name not in NOT_INHERITED}
    for pip, uv in PIP_TO_UV.items():
        if environ.get(pip) and not environ.get(uv):
            # pip separates by spaces; uv separates directories by commas and indexes by spaces.
            made[uv] = environ[pip].replace(" ", ",") if uv == "UV_FIND_LINKS" else environ[pip]
    return made


def _no_space(lines: deque[str]) -> bool:
    return any("No space left on device" in line for line in lines)


def _bundled() -> str:
    from uv import find_uv_bin

    try:
        return str(find_uv_bin())
    except FileNotFoundError as error:
        raise InstallError(
            "uv is not installed beside Pillion: reinstall Pillion, which brings it."
        ) from error
