"""The safetensors header: what is read, what is refused, and that nothing else ever comes out."""

import pickle
import struct
import zipfile
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load, save

from pillion.core.adapters.header import MAX_HEADER, header_length, parse_file
from pillion.core.errors import AdapterInvalidError
from tests.adapter_files import arrays, entry, raw, weights


def reasons(data: bytes) -> str:
    with pytest.raises(AdapterInvalidError) as caught:
        parse_file(data)
    assert caught.value.reasons, "a refusal says why"
    return " | ".join(caught.value.reasons)


def test_a_real_file_is_read_as_its_own_library_reads_it() -> None:
    data = weights()
    header = parse_file(data)
    for name, value in load(data).items():
        tensor = header.tensors[name]
        assert tensor.shape == value.shape
        assert data[tensor.offset : tensor.offset + tensor.size] == value.tobytes()


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        arrays_of.arrays(
            st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u2", "?"]), arrays_of.array_shapes(max_dims=3)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_file_the_library_writes_is_read(tensors: dict[str, np.ndarray]) -> None:
    header = parse_file(save(tensors, metadata={"format": "np"}))
    assert {name: t.shape for name, t in header.tensors.items()} == {n: a.shape for n, a in tensors.items()}


def test_a_header_whose_length_begins_like_a_pickle_is_no_pickle() -> None:
    padded = raw(b'{"a":' + b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(635), b"\0" * 4)
    assert padded.startswith(b"\x80\x02")
    assert parse_file(padded).tensors["a"].shape == (1,)


def _torch_zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        *((pickle.dumps({"a": [1] * 50}, protocol), "pickle") for protocol in range(2, 6)),
        (pickle.dumps([1, 2], 0), "pickle"),
        (_torch_zip(), "torch.save"),
        (b"\x1f\x8b\x08\x00\0\0\0\0\x02\xff" + b"x" * 20, "gzip"),
        (b"GGUF" + b"\0" * 40, "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b'{"r": 8, "lora_alpha": 16}', "JSON"),
        (b"\0" * 257 + b"ustar" + b"\0" * 300, "tar"),
        (b"", "empty"),
        (b"abc", "not a safetensors"),
        (b"\xff" * 64, "not a safetensors"),
    ],
)
def test_other_formats_are_told_by_their_content(data: bytes, word: str) -> None:
    assert word in reasons(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (struct.pack("<Q", MAX_HEADER + 1) + b"{" * 100, "at most"),
        (struct.pack("<Q", 2**63) + b"{}", "at most"),
        (struct.pack("<Q", 500) + b'{"a": 1}', "cut off"),
        (raw(b"{" * 100_000), "JSON"),
        (raw(b'{"a":' + b"[" * 200_000), "deep"),
        (raw(b'{"a": NaN}'), "NaN"),
        (raw(b'{"a": ' + b"9" * 5000 + b"}"), "JSON"),
        (raw(b'{"a": 1, "a": 2}'), "twice"),
        (raw(b'{"\xff": 1}'), "UTF-8"),
        (raw({}), "no tensors"),
        (raw({"__metadata__": {"a": 1}, "t": entry(0, 4, [1])}, b"1234"), "__metadata__"),
        (raw({"t": entry(0, 4, [1], "F31")}, b"1234"), "dtype"),
        (raw({"t": entry(0, 4, [-1])}, b"1234"), "non-negative"),
        (raw({"t": entry(0, 4, [True])}, b"1234"), "non-negative"),
        (raw({"t": entry(0, 4, [1.0])}, b"1234"), "non-negative"),
        (raw({"t": entry(0, 4, [2**70])}, b"1234"), "non-negative"),
        (raw({"t": entry(0, 4, [1] * 9)}, b"1234"), "up to 8"),
        (raw({"t": entry(4, 0, [1])}, b"1234"), "begin and an end"),
        (raw({"t": entry(0, 4, [2])}, b"1234"), "do not hold"),
        (raw({"t": entry(0, 8, [2])}, b"1234"), "cut off"),
        (raw({"t": entry(0, 4, [1])}, b"12345"), "1 bytes follow"),
        (raw({"t": entry(1, 5, [1])}, b"12345"), "hole"),
        (raw({"t": entry(0, 4, [1]), "u": entry(2, 6, [1])}, b"123456"), "overlaps"),
        (raw({"t": entry(0, 4, [1]), "u": entry(0, 4, [1])}, b"1234"), "overlaps"),
        (raw({"t": {**entry(0, 4, [1]), "x": 1}}, b"1234"), "nothing else"),
        (raw({"t": 3}), "dtype, shape"),
        (raw({"": entry(0, 4, [1])}, b"1234"), "name"),
        (raw({"\ud800": entry(0, 4, [1])}, b"1234"), "printable"),
        (raw({"a\nb": entry(0, 4, [1])}, b"1234"), "printable"),
        (raw(b"{" + b" " * 10), "JSON"),
    ],
)
def test_what_is_wrong_with_a_header_is_named(data: bytes, word: str) -> None:
    assert word in reasons(data)


def test_every_reason_is_given_and_many_are_counted() -> None:
    bad = {"a": entry(0, 4, [2]), "b": entry(0, 4, [1], "X")}
    found = reasons(raw(bad, b"1234"))
    assert "'a'" in found
    assert "'b'" in found
    with pytest.raises(AdapterInvalidError) as caught:
        parse_file(raw({str(i): entry(0, 1, [1]) for i in range(1000)}))
    assert len(caught.value.reasons) == 201
    assert "800 more" in caught.value.reasons[-1]
    assert len(caught.value.message) < 1000


VALID = weights(rank=2, targets=("q_proj",))
HEADER_END = 8 + header_length(VALID[:512], len(VALID))


@given(st.binary(max_size=600) | st.builds(raw, st.binary(max_size=300), st.binary(max_size=40)))
@example(b"\x08\0\0\0\0\0\0\0{")
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    with suppress(AdapterInvalidError):
        parse_file(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F4"]) | json_values,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40), max_size=3) | json_values,
    },
)


@given(st.dictionaries(st.text(max_size=4), entries | json_values, max_size=4), st.binary(max_size=40))
def test_any_json_header_raises_nothing_else(header: dict[str, object], data: bytes) -> None:
    try:
        parsed = parse_file(raw(header, data))
    except AdapterInvalidError:
        return
    assert sum(tensor.size for tensor in parsed.tensors.values()) == len(data), "what passes tiles its file"


@given(st.integers(0, HEADER_END - 1), st.integers(1, 255))
def test_one_changed_byte_of_a_header_never_moves_a_tensor(position: int, by: int) -> None:
    spoilt = bytearray(VALID)
    spoilt[position] = (spoilt[position] + by) % 256
    try:
        found = parse_file(bytes(spoilt))
    except AdapterInvalidError:
        return
    original = parse_file(VALID)
    assert [(t.offset, t.size) for t in found.tensors.values()] == [
        (t.offset, t.size) for t in original.tensors.values()
    ]


@given(st.integers(0, len(VALID) - 1))
def test_a_cut_file_is_refused(length: int) -> None:
    with pytest.raises(AdapterInvalidError):
        parse_file(VALID[:length])


def test_names_of_many_tensors_are_read_fast_enough() -> None:
    names = arrays(rank=1)
    many = {f"{name}{index}": value for index in range(200) for name, value in names.items()}
    assert len(parse_file(save(many)).tensors) == len(many)
