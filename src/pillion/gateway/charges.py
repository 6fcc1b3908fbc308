"""What a request on a shared pool may cost at most, before anybody knows what it will."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from pillion.core.budgets import TokenPrice, price_at
from pillion.core.errors import InvalidRequestError, ModelNotPricedError
from pillion.core.snapshot import Model
from pillion.gateway.body import Document

# Around a prompt: what a chat template adds. A token has at least one byte, so that a body has no more than its bytes.
TEMPLATE_TOKENS = 256
CONTEXT = 32_768  # of models that do not say
# Where engines read how long an answer may be; of two fields the one or the other. What else a body has of the kind they
# do not look at, and whoever sends it has no less set aside for it.
_CHAT = ("max_completion_tokens", "max_tokens")
BATCH = "/v1/chat/completions/batch"
_LENGTHS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": _CHAT,
    BATCH: _CHAT,
    "/v1/completions": ("max_tokens",),
    "/v1/messages": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}
# What holds many prompts.
_MANY = {"/v1/completions": "prompt", BATCH: "messages"}
_COUNTS = ("n", "best_of")
MAX_ANSWERS = 128
_WITHOUT_ANSWER = frozenset({"/v1/embeddings"})


@dataclass(frozen=True)
class Charge:
    """`reserved` of the account's balance, in 1e-6 of the currency."""

    price: TokenPrice
    reserved: int

    def cost(self, prompt: int, completion: int) -> int:
        return self.price.cost(prompt, completion)


def check_answers(path: str, document: Document) -> None:
    """A request takes one turn of a shared pool, however much it asks for. Raises `InvalidRequestError`."""
    if not ("n" in document or "best_of" in document or path in _MANY):
        return
    if (asked := answers_asked(path, document)) > MAX_ANSWERS:
        raise InvalidRequestError(
            f"The request asks for {asked} answers; of a shared pool it may be {MAX_ANSWERS} (n, for each prompt). "
            "Send several requests.",
            param="n",
        )


def answers_asked(path: str, document: Document) -> int:
    """How many texts are to be written. Raises `InvalidRequestError`."""
    each = max([1, *(_count(document, name) for name in _COUNTS if name in document)])
    many = document.get(_MANY.get(path, ""))
    return each if many is None else each * _prompts(many)


def most(
    path: str, size: int, document: Document, model: Model, now: float, *, has_files: bool = False
) -> Charge:
    """For a body of `size` bytes: its prompt, and the longest answer it allows, or what is left of the context. Files are
    not in `size`; what they hold is at most a context.

    Raises `ModelNotPricedError`, `InvalidRequestError`.
    """
    price = price_at(model.prices or (), now)
    if price is None:
        raise ModelNotPricedError(
            f"The model '{model.name}' has no price yet, so it cannot be called. Ask the operator to set one.",
            param="model",
        )
    context = model.context or CONTEXT
    answer = 0 if path in _WITHOUT_ANSWER else _longest(path, document, context)
    answers = answers_asked(path, document)
    prompt = size + TEMPLATE_TOKENS + (context if has_files else 0)
    return Charge(price, price.cost(prompt, answer * answers))


def _prompts(raw: msgspec.Raw) -> int:
    """A list of texts, or of lists of tokens, is many; a list of tokens is one."""
    try:
        given = msgspec.json.decode(raw, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return 1
    return len(given) if given and bytes(given[0])[:1] in (b'"', b"[") else 1


def _longest(path: str, document: Document, context: int) -> int:
    """Tokens of one answer. An engine may read a number where there is none: then all that is left."""
    given = [raw for name in _LENGTHS.get(path, ()) if (raw := document.get(name)) is not None]
    asked = [_number(raw) for raw in given if bytes(raw) != b"null"]
    known = [number for number in asked if number is not None]
    return min(context, max(known)) if known and len(known) == len(asked) else context


def _count(document: Document, name: str) -> int:
    """In a form it is text. Engines read `8.0` as 8, so that what is no whole number is not for them to refuse."""
    try:
        value = msgspec.json.decode(document[name], type=int | str | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        value = ""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise InvalidRequestError(f"The field '{name}' must be a whole number.", param=name)
        value = int(value)
    return 1 if value is None else value


def _number(raw: msgspec.Raw) -> int | None:
    """A whole number above zero."""
    try:
        value = msgspec.json.decode(raw, type=int)
    except msgspec.MsgspecError:
        return None
    return value if value > 0 else None
