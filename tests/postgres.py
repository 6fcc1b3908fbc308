"""A private PostgreSQL for tests: one cluster per test process, on a Unix socket, gone with it.

A test asks for the fixture `postgres` (import it in your conftest). Where PostgreSQL is not installed such tests are
skipped, or fail if `CI=true`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
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


@dataclass
class Server:
    """The cluster's server process, which a test may kill and start again."""

    bin: Path
    folder: Path
    options: tuple[str, ...] = OPTIONS
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = [part for option in self.options for part in ("-c", option)]
        serve: list[str | Path] = [*_dies_with_us(), self.bin / "postgres", "-D", self.folder / "data"]
        serve += ["-k", self.folder, *settings]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(serve, user=_user(), cwd=self.folder, stdout=log, stderr=log)
        _wait(self.bin, self.folder, self.process)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(2)  # SIGINT: fast shutdown
        self.process.wait(START_S)

    def kill(self) -> None:
        """As a crash would: the server and all its children, at once."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, START_S)
        self.process.wait(START_S)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """One for all tests that leave it running."""
    with _cluster(OPTIONS) as (cluster, _):
        yield cluster


@pytest.fixture
def own_postgres() -> Iterator[tuple[Cluster, Server]]:
    """One that a test may kill: what it has committed is there when it comes back."""
    with _cluster((*OPTIONS, "synchronous_commit=on", "full_page_writes=on")) as made:
        yield made


@contextlib.contextmanager
def _cluster(options: tuple[str, ...]) -> Iterator[tuple[Cluster, Server]]:
    bin = _find()
    if bin is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed (initdb, postgres); in CI it has to be.")
        pytest.skip("PostgreSQL is not installed (initdb, postgres): nothing was tested on it")
    folder = Path(tempfile.mkdtemp(prefix="pillion-pg-"))
    try:
        _init(bin, folder)
        server = Server(bin, folder, options)
        server.start()
        try:
            yield Cluster(bin, folder), server
        finally:
            server.stop()
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


def _init(bin: Path, folder: Path) -> None:
    user = _user()
    if user is not None:
        shutil.chown(folder, user)
    init: list[str | Path] = [bin / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust"]
    init += ["-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(init, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=START_S)


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
