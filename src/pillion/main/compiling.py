"""Compiles the way of a request through the gateway, by mypyc: `python -m pillion.main.compiling`.

`make setup` does it. Where there is no compiler, or no mypyc, the gateway runs as Python.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from pillion.core.compiled import GROUP, MODULES, SOURCES, place

KEPT_S = 86_400


class CannotCompileError(Exception):
    """What is missing or went wrong."""


def compile_all() -> Path:
    """Compiles them, if that is not done yet; where they are. Raises `CannotCompileError`."""
    to = place()
    if to.is_dir():
        return to
    with tempfile.TemporaryDirectory(prefix="pillion-compile-") as scratch:
        built = Path(scratch) / "built"
        _build(Path(scratch), built)
        to.parent.mkdir(parents=True, exist_ok=True)
        _forget_old(to.parent)
        partial = to.with_suffix(".partial")
        shutil.copytree(built, partial)
        partial.rename(to)
    return to


def _forget_old(directory: Path) -> None:
    """Of other sources; but not what might be in use just now."""
    for other in directory.iterdir():
        if time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)


def _build(scratch: Path, built: Path) -> None:
    try:
        from mypyc.build import mypycify
        from setuptools import setup
    except ImportError as error:
        raise CannotCompileError(f"{error.name} is not installed") from error
    options = ["--config-file=", f"--cache-dir={scratch}/mypy", "--follow-imports=silent"]
    said = io.StringIO()
    try:
        with contextlib.chdir(SOURCES.parent), redirect_stdout(said), redirect_stderr(said):
            extensions = mypycify(
                [*options, "--ignore-missing-imports", *(f"pillion/{name}.py" for name in MODULES)],
                opt_level="2",
                debug_level="0",
                multi_file=True,
                group_name=GROUP,
                target_dir=str(scratch / "c"),
            )
            for extension in extensions:
                extension.extra_compile_args += ["-Wno-error", "-w", "-g0"]
            places = [f"--build-lib={built}", f"--build-temp={scratch / 'objects'}"]
            setup(
                name=GROUP,
                ext_modules=extensions,
                script_args=["-q", "build_ext", *places, f"-j{os.cpu_count() or 1}"],
            )
    except (Exception, SystemExit) as error:
        raise CannotCompileError(f"{error} {said.getvalue()[-300:]}".strip()) from error


def main() -> None:
    try:
        print(f"the gateway is compiled: {compile_all()}")
    except (CannotCompileError, OSError) as error:
        print(f"the gateway is not compiled and runs as Python, a little slower: {error}")


if __name__ == "__main__":
    main()
