"""What a request on a shared pool may cost at most, before anybody knows what it will."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from pillion.core.budgets import TokenPrice, price_at
from pillion.core.errors import ModelNotPricedError
from pillion.core.snapshot import Model
from pillion.gateway.body import Document

# Around a prompt: what a chat template adds. A token has at least one byte, so that a body has no more than its bytes.
TEMPLATE_TOKENS = 256
CONTEXT = 32_768  # of models that do not say
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_COUNTS = ("n", "best_of")
_WITHOUT_ANSWER = frozenset({"/v1/embeddings"})


@dataclass(frozen=True)
class Charge:
    """`reserved` of the account's balance, in 1e-6 of the currency."""

    price: TokenPrice
    reserved: int

    def cost(self, prompt: int, completion: int) -> int:
        return self.price.cost(prompt, completion)


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
    answers = max([1, *(n for name in _COUNTS if (n := _number(document, name)) is not None)])
    prompt = size + TEMPLATE_TOKENS + (context if has_files else 0)
    return Charge(price, price.cost(prompt, answer * min(answers, 128)))


def _number(document: Document, name: str) -> int | None:
    """A whole number above zero; what is none is the engine's to refuse."""
    raw = document.get(name)
    try:
        value = None if raw is None else msgspec.json.decode(raw, type=int)
    except msgspec.MsgspecError:
        return None
    return value if value is not None and value > 0 else None
