"""A replica's directory on its node: what it was started with, what it left for its successor, its logs."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from pillion.core.errors import PillionError
from pillion.core.replica import ReplicaSpec

LOCK_PATIENCE_S = 2.0

log = structlog.get_logger(__name__)
Record = TypeVar("Record", bound=msgspec.Struct)


class AlreadyRunningError(PillionError):
    """Another agent serves this directory."""

    status, code = 409, "agent_running"


class EngineRecord(msgspec.Struct, frozen=True):
    """`engine.json`: the engine's process, as `processes.identity` has it, and how often it was started."""

    pid: int
    identity: str
    port: int
    epoch: int


class Home:
    """The directory `<data dir>/replicas/<id>`. Files are written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.data_dir = self.directory.parent.parent
        self.engine_log = self.directory / "engine.log"

    def spec(self) -> ReplicaSpec:
        """Raises `PillionError` where there is none that can be read."""
        path = self.directory / "spec.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=ReplicaSpec)
        except (OSError, msgspec.MsgspecError) as error:
            raise PillionError(f"{path} is no replica's specification: {error}") from error

    def read(self, name: str, shape: type[Record]) -> Record | None:
        """None where there is no such file; one that cannot be read is told of, and counts as none."""
        path = self.directory / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=shape)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.error("file_unreadable", path=str(path), error=str(error))
            return None

    def write(self, name: str, record: Any) -> None:
        """Replaces the file as a whole, on disk when this returns. Mode 0600."""
        descriptor, temporary = tempfile.mkstemp(dir=self.directory, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.directory / name)
        except BaseException:
            os.unlink(temporary)
            raise

    def is_ending(self) -> bool:
        """Whether this replica is to go: nothing is to be started here any more."""
        return (self.directory / "ending").exists()

    def remove(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self, pause: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Held for an agent's life; the kernel lets go of it when the process ends, however it ends.

        What an agent before this one said of itself is void from then on.
        Raises `AlreadyRunningError`. A provisioner that only looks holds it for an instant: hence some patience.
        """
        deadline = time.monotonic() + LOCK_PATIENCE_S
        with (self.directory / "lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise AlreadyRunningError(f"another agent serves {self.directory}") from error
                    pause(0.02)
            self.remove("agent.json")
            yield
