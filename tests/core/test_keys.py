"""API keys: minted, recognised, told from typos, and kept as digests only."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core import keys


def minted(seed: int = 0) -> keys.Key:
    return keys.mint(random.Random(seed).choice)


def test_a_minted_key_is_parsed_again() -> None:
    key = minted()
    assert len(key.text) == keys.LENGTH == 54
    assert key.text.startswith("pil_" + key.lookup)
    assert keys.parse(key.text) == key
    assert key.lookup not in ("", key.text)


@given(
    st.integers(min_value=0, max_value=200),
    st.integers(min_value=4, max_value=53),
    st.sampled_from(keys.ALPHABET),
)
def test_one_wrong_character_is_noticed_without_a_look_up(seed: int, at: int, letter: str) -> None:
    text = minted(seed).text
    if text[at] != letter:
        assert keys.parse(text[:at] + letter + text[at + 1 :]) is None


@given(st.integers(min_value=0, max_value=50), st.integers(min_value=4, max_value=52))
def test_two_characters_that_changed_places_are_noticed(seed: int, at: int) -> None:
    text = minted(seed).text
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    assert swapped == text or keys.parse(swapped) is None


@given(st.text())
def test_nothing_makes_parse_raise(text: str) -> None:
    assert keys.parse(text) is None
    assert keys.parse("pil_" + text) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[:-1],
        lambda t: t + "x",
        lambda t: " " + t[1:],
        lambda t: t + "\n",
        lambda t: "PIL_" + t[4:],
        lambda t: t.swapcase(),
        lambda t: "",
    ],
)
def test_what_is_no_key_is_none(spoil) -> None:
    assert keys.parse(spoil(minted().text)) is None


def test_only_letters_and_digits_make_a_key() -> None:
    body = "-" * (keys.LOOKUP_LENGTH + keys.SECRET_LENGTH)
    assert keys.parse("pil_" + body + keys._checksum(body)) is None


def test_the_digest_depends_on_every_character_and_on_the_pepper() -> None:
    one, two = minted(1), minted(2)
    stored = keys.digest(b"pepper", one.text)
    assert keys.matches(b"pepper", one.text, stored)
    assert not keys.matches(b"pepper", two.text, stored)
    assert not keys.matches(b"salt", one.text, stored)
    same_lookup = keys.PREFIX + one.lookup + two.text[len(keys.PREFIX) + keys.LOOKUP_LENGTH :]
    assert not keys.matches(b"pepper", same_lookup, stored)
    assert one.text[4:] not in stored
