"""The safetensors header: 8 bytes little-endian length, then that many bytes of JSON, then the tensors.

After https://github.com/huggingface/safetensors#format, as strictly as its own reader or more so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pillion.core.adapters.findings import invalid, shown
from pillion.core.adapters.formats import SAFETENSORS_ONLY, foreign, looks_like_safetensors
from pillion.core.adapters.strict_json import is_int, parse_object

MAX_HEADER = 16 * 2**20
HEAD = 512
"""How many first bytes of a file `header_length` wants to see."""
_LENGTH = 8
_MAX_NAME = 512
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 2**40
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file. `offset` is from the start of the file, `size` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """Every tensor by name, in the order of their bytes."""

    tensors: Mapping[str, Tensor]


def header_length(head: bytes, file_size: int) -> int:
    """The length of the JSON that follows the first 8 bytes. `head` is the file's first `HEAD` bytes or all
    it has.

    Raises `AdapterInvalidError` where the file is no safetensors file, and says what it is instead if that
    is plain.
    """
    if looks_like_safetensors(head):
        length = int.from_bytes(head[:_LENGTH], "little")
        if length > MAX_HEADER:
            raise invalid([f"the safetensors header claims {length} bytes; at most {MAX_HEADER} are read"])
        if _LENGTH + length > file_size:
            raise invalid(
                [f"the file is cut off: its header claims {length} bytes, the file has {file_size}"]
            )
        return length
    kind = foreign(head)
    if kind is not None:
        raise invalid([f"the file is {kind}, not safetensors; {SAFETENSORS_ONLY}"])
    if file_size == 0:
        raise invalid(["the file is empty"])
    raise invalid([f"the file is not a safetensors file: no header where one must be; {SAFETENSORS_ONLY}"])


def parse_header(text: bytes, file_size: int) -> Header:
    """The header whose JSON is `text`, of a file of `file_size` bytes. Raises `AdapterInvalidError` with
    every reason.

    Tensors must tile the rest of the file: no hole, no overlap, nothing after the last.
    """
    document = parse_object(text, "the safetensors header", MAX_HEADER)
    reasons: list[str] = []
    reasons += _metadata_faults(document.pop("__metadata__", {}))
    start = _LENGTH + len(text)
    tensors: list[Tensor] = []
    for name, entry in document.items():
        tensor = _tensor(name, entry, start, reasons)
        if tensor is not None:
            tensors.append(tensor)
    if not document:
        reasons.append("the file holds no tensors")
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.size))
    if not reasons:  # offsets of a file with unreadable entries would only repeat what is already said
        reasons += _layout_faults(tensors, start, file_size)
    if reasons:
        raise invalid(reasons)
    return Header({tensor.name: tensor for tensor in tensors})


def parse_file(data: bytes) -> Header:
    """The header of a whole file in memory: for tests and small things."""
    length = header_length(data[:HEAD], len(data))
    return parse_header(data[_LENGTH : _LENGTH + length], len(data))


def _metadata_faults(metadata: object) -> list[str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return ["the header's __metadata__ must map strings to strings"]
    return []


def _tensor(name: str, entry: Any, start: int, reasons: list[str]) -> Tensor | None:
    """The tensor that one entry of the header describes, or None with its faults added to `reasons`."""
    faults = _entry_faults(name, entry)
    if faults:
        reasons += [f"tensor {shown(name)}: {fault}" for fault in faults]
        return None
    begin, end = entry["data_offsets"]
    return Tensor(name, entry["dtype"], tuple(entry["shape"]), start + begin, end - begin)


def _entry_faults(name: str, entry: Any) -> list[str]:
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        return [f"its name must be 1 to {_MAX_NAME} printable characters"]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return ["its entry must have dtype, shape and data_offsets, and nothing else"]
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    faults = []
    if not isinstance(dtype, str) or dtype not in BITS:
        faults.append(f"unknown dtype {shown(dtype)}")
    if not _naturals(shape, _MAX_DIMENSION) or len(shape) > _MAX_DIMENSIONS:
        faults.append(f"shape {shown(shape)} must be up to {_MAX_DIMENSIONS} non-negative integers")
    if not _naturals(offsets, 2**62) or len(offsets) != 2 or offsets[0] > offsets[1]:
        faults.append(f"data_offsets {shown(offsets)} must be a begin and an end")
    if not faults and BITS[dtype] * math.prod(shape) != 8 * (offsets[1] - offsets[0]):
        faults.append(f"{offsets[1] - offsets[0]} bytes do not hold {dtype} of shape {shown(shape)}")
    return faults


def _naturals(value: object, limit: int) -> bool:
    return isinstance(value, list) and all(is_int(item) and 0 <= item <= limit for item in value)


def _layout_faults(tensors: list[Tensor], start: int, file_size: int) -> list[str]:
    reasons = []
    expected = start
    for tensor in tensors:
        if tensor.offset != expected:
            what = "overlaps the one before it" if tensor.offset < expected else "leaves a hole before it"
            reasons.append(f"tensor {shown(tensor.name)} {what}")
        expected = max(expected, tensor.offset + tensor.size)
    if expected > file_size:
        reasons.append(f"the file is cut off: its tensors end at byte {expected}, the file at {file_size}")
    if expected < file_size:
        reasons.append(f"{file_size - expected} bytes follow the last tensor")
    return reasons
