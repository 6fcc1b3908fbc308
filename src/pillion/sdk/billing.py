"""Money: the account's transactions; for the operator, prices and credits. Amounts are 1e-6 of the currency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pillion.sdk.transport import Transport
from pillion.sdk.types import Price, Transaction, read


class Billing:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def transactions(self, *, kind: str | None = None, limit: int | None = None) -> Iterator[Transaction]:
        """Oldest first. `kind`: topup, hold, settlement, refund, usage, admin_correction, bonus."""
        query = {} if kind is None else {"kind": kind}
        return self._transport.pages(Transaction, "/v1/billing/transactions", query, limit=limit)


class AdminPrices:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Price]:
        return self._transport.pages(Price, "/v1/admin/prices", limit=limit)

    def set_gpu(
        self, gpu_type: str, hourly: int, *, region: str | None = None, effective_at: float | None = None
    ) -> Price:
        """For one GPU and an hour; of one region, or of all that have none of their own."""
        return self._set(
            {"kind": "gpu_hour", "item": gpu_type, "hourly": hourly, "region": region}, effective_at
        )

    def set_model(self, model: str, input: int, output: int, *, effective_at: float | None = None) -> Price:
        """Per 1,000,000 tokens, on shared pools."""
        return self._set({"kind": "tokens", "item": model, "input": input, "output": output}, effective_at)

    def _set(self, wanted: dict[str, Any], effective_at: float | None) -> Price:
        body = {k: v for k, v in (wanted | {"effective_at": effective_at}).items() if v is not None}
        return read(Price, self._transport.send("POST", "/v1/admin/prices", json=body))


class AdminCredits:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, account: str, *, kind: str | None = None, limit: int | None = None
    ) -> Iterator[Transaction]:
        """All transactions of an account, oldest first."""
        query = {"account": account} if kind is None else {"account": account, "kind": kind}
        return self._transport.pages(Transaction, "/v1/admin/credits", query, limit=limit)

    def give(
        self, account: str, amount: int, *, kind: str = "topup", key: str | None = None, note: str = ""
    ) -> Transaction:
        """`kind`: topup, bonus, or admin_correction, which may be below zero. The same `key` again changes nothing."""
        body: dict[str, Any] = {"account": account, "amount": amount, "kind": kind, "note": note}
        if key is not None:
            body["key"] = key
        return read(Transaction, self._transport.send("POST", "/v1/admin/credits", json=body))
