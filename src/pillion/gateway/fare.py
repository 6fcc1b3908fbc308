"""What a request has of its account while it is on shared pools: a place among its requests, and money."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillion.core.errors import PillionError
from pillion.core.routing import Route
from pillion.core.snapshot import Key
from pillion.gateway.budgets import Paid, Payer
from pillion.gateway.charges import Charge, check_answers, most
from pillion.gateway.question import Question

if TYPE_CHECKING:
    from pillion.gateway.inference import Inference


class Fare:
    """From its beginning until `end`. Raises `PillionError` where its account may have no more."""

    __slots__ = ("_charge", "_in", "_key", "_paying", "_question")

    def __init__(self, inference: Inference, key: Key, question: Question) -> None:
        check_answers(question.path, question.document)
        inference.fair.admit(key)
        self._in = inference
        self._key = key
        self._question = question
        self._charge: Charge | None = None
        self._paying: Payer | None = None

    def due(self, route: Route) -> Charge | None:
        """The most that the request may cost there; None where it costs nothing, or that is paid or being paid."""
        if self._charge is not None:
            return None
        model = self._in.knowledge.routes().shared_model(route.base)
        if model is None or model.prices is None:
            return None
        asked, now = self._question, self._in.clock()
        files = asked.has_files
        return most(asked.path, asked.text_size, asked.document, model, now, has_files=files)

    def pay(self, charge: Charge, then: Paid) -> None:
        """Sets it aside: at once, or where it `waits` later, when `then` is called, which is to call `paid`."""
        self._charge = charge
        self._paying = self._in.budgets.reserve(self._key, charge.reserved, then)

    @property
    def waits(self) -> bool:
        """For money."""
        return self._paying is not None

    def paid(self, refusal: PillionError | None) -> None:
        self._paying = None
        if refusal is not None:
            self._charge = None

    def end(self, prompt: int, completion: int) -> None:
        """Its place is free, and what was set aside for it is paid for so many tokens, or given back."""
        self._in.fair.dismiss(self._key.account)
        if self._paying is not None:
            self._paying.cancel()
        elif self._charge is not None:
            spent = self._charge.cost(prompt, completion)
            self._in.budgets.settle(self._key, self._charge.reserved, spent)
