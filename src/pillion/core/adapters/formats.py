"""What a file is, by its first bytes: never by its name."""

from __future__ import annotations

SAFETENSORS_ONLY = "only safetensors files are accepted, because a pickle runs code when it is opened"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstandard-compressed data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "an executable"),
    (b"MZ", "an executable"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to (run `git lfs pull`)"),
    (b"<", "an HTML or XML page, not the file itself"),
    (b"{", "a JSON document"),
    (b"#!", "a script"),
)
_PICKLE_PROTOCOLS = range(2, 6)
_OLD_PICKLES = (
    b"(lp",
    b"(dp",
    b"ccopy_reg",
    b"c__builtin__",
    b"cos\n",
    b"cposix\n",
    b"cbuiltins",
    b"(S'",
    b"(i",
)


def foreign(head: bytes) -> str | None:
    """What a file that is no safetensors file plainly is, from its first 512 bytes; None where one cannot
    tell.

    To be asked only once the safetensors header has failed: a header of 640 bytes begins like a pickle.
    """
    if len(head) >= 2 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS:
        return "a Python pickle"
    if head.startswith(_OLD_PICKLES):
        return "a Python pickle"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def looks_like_safetensors(head: bytes) -> bool:
    """Whether byte 8 opens a JSON object, where a safetensors file's header begins."""
    return head[8:9] == b"{"
