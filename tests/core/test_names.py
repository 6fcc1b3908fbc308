"""The grammar: what a string in `model` or a ref can mean, and that it means one thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core import names
from pillion.core.errors import InvalidRequestError, NameTakenError
from pillion.core.names import MAX_ROW_ID, ModelString, Ref

ID = "adp_" + "a1b2" * 5


@pytest.mark.parametrize(
    "name", ["a", "0", "9x", "llama-3.1-70b-instruct", "a_b.c-d", "x" * 63, "status", "1..2"]
)
def test_a_name_is_a_name(name: str) -> None:
    assert names.is_name(name)
    assert names.check_model_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "é",
        "-a",
        ".a",
        "_a",
        "a b",
        "a:b",
        "a/b",
        "..",
        "../x",
        "x" * 64,
        "a\n",
        "\na",
        "a\0",
        "１",
        "ａ",
    ],
)
def test_what_is_not_a_name_is_refused_with_the_rule(name: str) -> None:
    assert not names.is_name(name)
    with pytest.raises(InvalidRequestError, match="1 to 63") as caught:
        names.check_model_name(name, "label")
    assert caught.value.param == "label"


@pytest.mark.parametrize("name", ["1", "007", "9" * 63, "adp_x", ID, "status", "upload", "warmup"])
def test_adapters_may_not_be_called_what_reads_as_something_else(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        names.check_adapter_name(name, ())


def test_an_adapter_may_not_have_a_models_name() -> None:
    with pytest.raises(NameTakenError) as caught:
        names.check_adapter_name("qwen", {"qwen"})
    assert caught.value.status == 409
    assert names.check_adapter_name("qwen-mine", {"qwen"}) == "qwen-mine"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        (ID, Ref(id=ID)),
        ("1", Ref(row_id=1)),
        (str(MAX_ROW_ID), Ref(row_id=MAX_ROW_ID)),
        ("mine", Ref(name="mine")),
        ("1a", Ref(name="1a")),
        ("ft10", Ref(name="ft10")),
        ("0", None),
        ("01", None),
        ("-1", None),
        ("+1", None),
        ("1_0", Ref(name="1_0")),
        (str(MAX_ROW_ID + 1), None),
        ("9" * 5000, None),
        ("²", None),
        ("١", None),
        ("adp_", None),
        ("adp_x", None),
        (ID + "a", None),
        (ID.upper(), None),
        ("..", None),
        ("a/../b", None),
        ("%2e%2e", None),
        ("a\n", None),
        ("1\n", None),
        (" 1", None),
        ("", None),
    ],
)
def test_refs(text: str, ref: Ref | None) -> None:
    assert names.parse_ref(text) == ref


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("qwen3-4b", ModelString("qwen3-4b")),
        ("ft10:1", ModelString("ft10", "1", 1)),
        ("qwen2.5-7b-instruct:125", ModelString("qwen2.5-7b-instruct", "125", 125)),
        ("llama-3.1:my-finetuned-v3", ModelString("llama-3.1", "my-finetuned-v3")),
        ("1:1", ModelString("1", "1", 1)),
        ("base:1a", ModelString("base", "1a")),
        ("base:0", None),
        ("base:01", None),
        ("base:" + "9" * 17, None),
        ("base:", None),
        (":1", None),
        (":", None),
        ("a:b:c", None),
        ("a:b:1", None),
        ("Base:1", None),
        ("base:B", None),
        ("base: 1", None),
        ("base:1\n", None),
        ("base:²", None),
        (f"adp_x@{'0' * 64}", None),
        ("", None),
    ],
)
def test_model_strings(text: str, parsed: ModelString | None) -> None:
    assert names.parse_model(text) == parsed


@given(st.text() | st.from_regex(r"[a-z0-9._:-]{0,80}") | st.integers().map(str))
def test_no_text_makes_the_parsers_raise(text: str) -> None:
    model, ref = names.parse_model(text), names.parse_ref(text)
    if model is not None:
        assert text == model.head if model.tail is None else f"{model.head}:{model.tail}"
        assert (model.row_id is not None) == (model.tail is not None and model.tail.isdigit())
    if ref is not None:
        assert sum(part is not None for part in (ref.id, ref.row_id, ref.name)) == 1
        assert text == str(next(part for part in (ref.id, ref.row_id, ref.name) if part is not None))


@given(st.from_regex(names.NAME, fullmatch=True))
def test_a_name_an_adapter_may_have_reads_back_as_that_name(name: str) -> None:
    try:
        names.check_adapter_name(name, ())
    except InvalidRequestError:
        return
    assert names.parse_ref(name) == Ref(name=name)
    assert names.parse_model(f"base:{name}") == ModelString("base", name)
    assert names.parse_model(f"{name}:7") == ModelString(name, "7", 7)


@given(st.integers(min_value=1, max_value=MAX_ROW_ID))
def test_row_ids_read_back(number: int) -> None:
    assert names.parse_row_id(str(number)) == number


def test_new_ids_are_ids() -> None:
    assert names.ADAPTER_ID.fullmatch(names.new_id("adp", lambda letters: letters[-1]))
    assert names.new_id("key", lambda letters: letters[0]) == "key_" + "a" * 20


def test_engine_names_cannot_be_asked_for_by_a_client() -> None:
    name = names.engine_name(ID, "0" * 64)
    assert names.parse_model(name) is None
    assert names.parse_ref(name) is None
