"""Usage in events: the quick way gives what the careful one does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.gateway.tokens import Tokens, Wanted

TEXT = st.text(alphabet='a",{}\\:[]é', max_size=6)
NUMBERS = st.integers(0, 99) | st.none()
USAGE = st.none() | st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "x"]),
    NUMBERS | TEXT | st.dictionaries(TEXT, NUMBERS, max_size=2),
    max_size=3,
)
CHOICES = st.lists(st.fixed_dictionaries({"delta": st.fixed_dictionaries({"content": TEXT})}), max_size=2)


@given(
    st.permutations(["choices", "usage", "model"]),
    CHOICES,
    USAGE,
    TEXT,
    st.sampled_from(Wanted),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_both_ways_are_one(
    order: list[str],
    choices: list[object],
    usage: object,
    model: str,
    wanted: Wanted,
    separators: tuple[str, str],
) -> None:
    document = {"choices": choices, "usage": usage, "model": model}
    text = json.dumps({name: document[name] for name in order}, separators=separators)
    event = b"data: " + text.encode() + b"\n\n"
    quick, careful = Tokens(), Tokens()
    assert quick.sift(event, wanted) == careful.sift_any(event, wanted)
    assert quick.counted == careful.counted


@pytest.mark.parametrize("after", [b"", b',"x":1'])
def test_the_comma_goes_with_it(after: bytes) -> None:
    event = b'data: {"choices":[{}],"usage":{"prompt_tokens":3}' + after + b"}\n\n"
    tokens = Tokens()
    assert tokens.sift(event, Wanted.NOTHING) == b'data: {"choices":[{}]' + after + b"}\n\n"
    assert tokens.counted == (3, None, None)


@pytest.mark.parametrize("wanted", [Wanted.NOTHING, Wanted.AT_THE_END])
def test_who_says_usage_hides_none(wanted: Wanted) -> None:
    event = b'data: {"usage": {"prompt_tokens":3}, "choices":[{"delta":{"content":"usage"}}]}\n\n'
    tokens = Tokens()
    assert tokens.sift(event, wanted) == b'data: { "choices":[{"delta":{"content":"usage"}}]}\n\n'
    assert tokens.counted == (3, None, None)


@given(
    st.permutations(["choices", "usage", "model"]), USAGE, TEXT, st.sampled_from([(",", ":"), (", ", ": ")])
)
def test_documents_are_read_the_same_however_they_are_printed(
    order: list[str], usage: object, model: str, separators: tuple[str, str]
) -> None:
    document = {"choices": [], "usage": usage, "model": model}
    plain, spaced = Tokens(), Tokens()
    plain.document(json.dumps({name: document[name] for name in order}, separators=separators).encode())
    spaced.document(json.dumps({name: document[name] for name in order}, indent=1).encode())
    assert plain.counted == spaced.counted


@pytest.mark.parametrize("count", [-1, 2**31 + 1, 10**30, 1.5])
def test_counts_that_no_answer_has_are_not_believed(count: float) -> None:
    for usage in (
        {"prompt_tokens": 3, "completion_tokens": count},
        {"prompt_tokens_details": {"cached_tokens": count}},
    ):
        tokens = Tokens()
        tokens.document(json.dumps({"usage": usage}).encode())
        assert tokens.counted == (None, None, None)
