"""An adapter's files as the simulated engine sees them: whether they fit the base, and change anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pillion.core.adapters.bases import Base
from pillion.core.adapters.config import parse_config
from pillion.core.adapters.header import HEAD, Tensor, header_length, parse_header
from pillion.core.adapters.pairs import pair
from pillion.core.adapters.verify import Limits, verify
from pillion.core.errors import AdapterInvalidError

_PREFIX = 8
_CHUNK = 1 << 20


class RefusedWeightsError(Exception):
    """The files cannot be loaded; the message says why."""


@dataclass(frozen=True)
class Weights:
    """`effective`: some B is not all zero. `size` in bytes."""

    path: Path
    size: int
    effective: bool


def check(directory: Path, base: Base | None, max_rank: int) -> Weights:
    """Reads headers, and of the weights as much as it takes to find one B that is not zero.

    Without a `base` no shapes are checked. Raises `RefusedWeightsError`.
    """
    path = directory / "adapter_model.safetensors"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(HEAD), size)
            file.seek(_PREFIX)
            header = parse_header(file.read(length), size)
            config = parse_config((directory / "adapter_config.json").read_bytes())
            if base is not None:
                verify(header, config, base, Limits(max_rank, size))
            ends = [item.b for item in pair(header.tensors.values()).pairs]
            return Weights(path, size, any(_nonzero(file, tensor) for tensor in ends))
    except AdapterInvalidError as error:
        raise RefusedWeightsError("; ".join(error.reasons)) from error
    except OSError as error:
        raise RefusedWeightsError(f"{error.filename}: {error.strerror}") from error


def _nonzero(file: BinaryIO, tensor: Tensor) -> bool:
    file.seek(tensor.offset)
    left = tensor.size
    while left > 0:
        chunk = file.read(min(_CHUNK, left))
        if not chunk or chunk.strip(b"\x00"):
            return bool(chunk)
        left -= len(chunk)
    return False
