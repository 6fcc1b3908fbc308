"""What the columns make of values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from pillion.store.tables import PlainText

ANY = st.text(st.characters())  # half surrogate pairs, too
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))


def stored(text: str) -> str:
    value = PlainText().process_bind_param(text, sqlite.dialect())
    assert isinstance(value, str)
    return value


@given(ANY)
def test_any_text_can_be_stored(text: str) -> None:
    value = stored(text)
    assert "\x00" not in value
    assert value.encode().decode() == value
    assert len(value) == len(text)


@given(PLAIN)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert stored(text) == text
