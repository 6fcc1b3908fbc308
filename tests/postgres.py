"""A private PostgreSQL for tests: one cluster per test process, on a Unix socket, gone with it.

A test asks for the fixture `postgres` (import it in your conftest). Where PostgreSQL is not installed such tests are
skipped, or fail if `CI=true`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_S = 60
# No disk can fail here: do not wait for it.
OPTIONS: tuple[str, ...] = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "shared_buffers=16MB",
)
OPTIONS += ("listen_addresses=", "autovacuum=off", "max_wal_senders=0", "wal_level=minimal")


@dataclass
class Cluster:
    """A running cluster. `folder` has its socket."""

    bin: Path
    folder: Path
    names: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def create(self, template: str = "template1") -> str:
        """A new database, a copy of `template`, which nobody may be connected to. Returns its name."""
        name = f"t{next(self.names)}"
        self._run("createdb", "-T", template, name)
        return name

    def drop(self, name: str) -> None:
        self._run("dropdb", "--force", "--if-exists", name)

    def url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def _run(self, program: str, *args: str) -> None:
        command: list[str | Path] = [self.bin / program, "-h", self.folder, "-U", "postgres", *args]
        subprocess.run(command, check=True, timeout=START_S, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    bin = _find()
    if bin is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed (initdb, postgres); in CI it has to be.")
        pytest.skip("PostgreSQL is not installed (initdb, postgres): nothing was tested on it")
    folder = Path(tempfile.mkdtemp(prefix="pillion-pg-"))
    try:
        yield from _serve(bin, folder)
    finally:
        shutil.rmtree(folder)


def _find() -> Path | None:
    folders = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if _complete(folder)), None)


def _complete(folder: Path) -> bool:
    return all(
        (folder / program).exists() for program in ("initdb", "postgres", "pg_isready", "createdb", "dropdb")
    )


def _serve(bin: Path, folder: Path) -> Iterator[Cluster]:
    user = _user()
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    init: list[str | Path] = [
        bin / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
    ]
    subprocess.run(init, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=START_S)
    settings = [part for option in OPTIONS for part in ("-c", option)]
    serve: list[str | Path] = [*_dies_with_us(), bin / "postgres", "-D", data, "-k", folder, *settings]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(serve, user=user, cwd=folder, stdout=log, stderr=log)
    try:
        _wait(bin, folder, process)
        yield Cluster(bin, folder)
    finally:
        process.send_signal(2)  # SIGINT: fast shutdown
        process.wait(START_S)


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


def _dies_with_us() -> list[str]:
    """Also where this process is killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "INT"] if setpriv else []


def _wait(bin: Path, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until it answers, or has ended."""
    for _ in range(START_S * 50):
        if process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended with {process.returncode}: {(folder / 'log').read_text()}")
        asked = subprocess.run([bin / "pg_isready", "-q", "-h", folder, "-t", "1"], timeout=START_S)
        if asked.returncode == 0:
            return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    raise RuntimeError(f"PostgreSQL did not answer within {START_S} s: {(folder / 'log').read_text()}")
