"""Adapter files on their way to the server and back: streamed both ways, never whole in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from pillion.sdk.errors import PillionConfigError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Upload:
    """What is sent: a weights file or an archive, and a config where there is one."""

    weights: Path
    config: Path | None = None

    @property
    def size(self) -> int:
        return self.weights.stat().st_size


def upload_of(path: str | Path, config: str | Path | None = None) -> Upload:
    """`path` is a safetensors file, an archive of a PEFT folder, or such a folder itself.

    Raises `PillionConfigError` for what is not there.
    """
    weights, beside = Path(path).expanduser(), None if config is None else Path(config).expanduser()
    if weights.is_dir():
        if beside is None and (weights / CONFIG).is_file():
            beside = weights / CONFIG
        weights = weights / WEIGHTS
    for file in (weights, beside):
        if file is not None and not file.is_file():
            raise PillionConfigError(
                f"{file} is not a file. Give a {WEIGHTS}, a .tar.gz or .zip, or a PEFT folder."
            )
    return Upload(weights, beside)


class _Counted:
    """A file that says how far it has been read. `on_bytes` gets bytes so far and in all."""

    def __init__(self, file: BinaryIO, size: int, on_bytes: OnBytes) -> None:
        self._file, self._size, self._on_bytes, self._sent = file, size, on_bytes, 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        if chunk:
            self._sent += len(chunk)
            self._on_bytes(self._sent, self._size)
        return chunk

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._sent = self._file.seek(offset, whence)
        return self._sent

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def multipart(upload: Upload, on_bytes: OnBytes | None = None) -> Iterator[dict[str, Any]]:
    """httpx's `files` for an upload. httpx reads them in chunks of 64 KiB as it sends."""
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        if upload.config is not None:
            file = stack.enter_context(upload.config.open("rb"))
            files["config"] = (CONFIG, file, "application/json")
        weights: Any = stack.enter_context(upload.weights.open("rb"))
        if on_bytes is not None:
            weights = _Counted(weights, upload.size, on_bytes)
        files["file"] = (upload.weights.name, weights, "application/octet-stream")
        yield files


def save(response: httpx.Response, target: Path, on_bytes: OnBytes | None = None) -> Path:
    """The body of an answer in a file at `target`, in place only once it is whole. Returns its path."""
    length = response.headers.get("content-length", "")
    total = int(length) if length.isdigit() else None
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                if on_bytes is not None:
                    on_bytes(response.num_bytes_downloaded, total)
        part.chmod(0o644)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return target


def offered_name(response: httpx.Response, otherwise: str) -> str:
    """The file name the server offers, without any folder in it."""
    disposition = response.headers.get("content-disposition", "")
    _, found, rest = disposition.partition("filename=")
    name = Path(rest.split(";")[0].strip().strip('"').replace("\\", "/")).name if found else ""
    return name if name and not name.startswith(".") else otherwise
