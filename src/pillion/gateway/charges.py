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
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
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
    if not ("n" in document or "best_of" in document or "prompt" in document):
        return
    if (asked := answers_asked(path, document)) > MAX_ANSWERS:
        raise InvalidRequestError(
            f"The request asks for {asked} answers; of a shared pool it may be {MAX_ANSWERS} (n, for each prompt). "
            "Send several requests.",
            param="n",
        )


def answers_asked(path: str, document: Document) -> int:
    """How many texts are to be written."""
    each = max([1, *(n for name in _COUNTS if (n := _number(document, name)) is not None)])
    return each * _prompts(document["prompt"]) if path == "/v1/completions" and "prompt" in document else each


def most(
    path: str, size: int, document: Document, model: Model, now: float, *, has_files: bool = False
) -> Charge:
    """For a body of `size` bytes: its prompt, and the longest answer it allows, or what is left of the context. Files are
    not in `size`; what they hold is at most a context.

    Raises `ModelNotPricedError`.
    """
    price = price_at(model.prices or (), now)
    if price is None:
        raise ModelNotPricedError(
            f"The model '{model.name}' has no price yet, so it cannot be called. Ask the operator to set one.",
            param="model",
        )
    context = model.context or CONTEXT
    asked = [n for name in _LENGTHS if (n := _number(document, name)) is not None]
    answer = 0 if path in _WITHOUT_ANSWER else min([context, *asked])
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


def _number(document: Document, name: str) -> int | None:
    """A whole number above zero; what is none is the engine's to refuse."""
    raw = document.get(name)
    try:
        value = None if raw is None else msgspec.json.decode(raw, type=int)
    except msgspec.MsgspecError:
        return None
    return value if value is not None and value > 0 else None
