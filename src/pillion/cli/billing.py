"""`pillion balance`, `pillion transactions`, `pillion prices`, `pillion credits`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from pillion.cli.options import Json, Limit
from pillion.cli.session import session

prices = typer.Typer(help="Prices (for the operator).", no_args_is_help=True)
credits = typer.Typer(help="Accounts' money (for the operator).", no_args_is_help=True)

Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="In the currency, e.g. 2.49.")]
Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's id.")]
From = Annotated[
    float | None, typer.Option("--from", metavar="EPOCH", help="From when on, in seconds. [default: now]")
]


class Kind(StrEnum):
    topup = "topup"
    hold = "hold"
    settlement = "settlement"
    refund = "refund"
    usage = "usage"
    admin_correction = "admin_correction"
    bonus = "bonus"


class Credit(StrEnum):
    topup = "topup"
    bonus = "bonus"
    admin_correction = "admin_correction"


OfKind = Annotated[Kind | None, typer.Option("--kind", help="Those of one kind alone.")]


def transactions(ctx: typer.Context, kind: OfKind = None, limit: Limit = None, as_json: Json = False) -> None:
    """List what changed the account's balance, oldest first."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(
            client.billing.transactions(kind=kind, limit=limit), columns.TRANSACTIONS, as_json
        )


def balance(ctx: typer.Context, as_json: Json = False) -> None:
    """Show the account's balance, and what it paid since the month began (UTC)."""
    from pillion.cli import output

    with session(ctx) as client:
        snapshot = client.usage.snapshot()
    wallet = snapshot.get("wallet") or {}
    if as_json:
        output.print_json({**wallet, "paid": snapshot.get("paid", 0)})
        return
    if not wallet.get("enabled"):
        output.note("billing is off: everything is free")
    rows = [(name, wallet.get(name, 0)) for name in ("available", "held", "free")]
    rows.append(("paid this month", snapshot.get("paid", 0)))
    output.print_rows(["", "amount"], [[name, output.money(amount)] for name, amount in rows])


@prices.command("list")
def list_prices(ctx: typer.Context, limit: Limit = None, as_json: Json = False) -> None:
    """List all prices that were ever set."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.admin.prices.list(limit=limit), columns.PRICES, as_json)


@prices.command("set-gpu")
def set_gpu(
    ctx: typer.Context,
    gpu_type: Annotated[str, typer.Argument(metavar="GPU_TYPE", help="A GPU type.")],
    hourly: Amount,
    region: Annotated[str | None, typer.Option("--region", help="In this region alone.")] = None,
    effective_at: From = None,
    as_json: Json = False,
) -> None:
    """Set what one GPU costs for an hour."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        made = client.admin.prices.set_gpu(
            gpu_type, output.micros(hourly), region=region, effective_at=effective_at
        )
    output.print_record(made, columns.PRICES, as_json)


@prices.command("set-model")
def set_model(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A base model.")],
    input: Annotated[str, typer.Argument(metavar="INPUT", help="Of 1,000,000 tokens read.")],
    output_: Annotated[str, typer.Argument(metavar="OUTPUT", help="Of 1,000,000 tokens written.")],
    effective_at: From = None,
    as_json: Json = False,
) -> None:
    """Set what tokens cost on shared pools of a base model, adapters on it included."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        made = client.admin.prices.set_model(
            model, output.micros(input), output.micros(output_), effective_at=effective_at
        )
    output.print_record(made, columns.PRICES, as_json)


@credits.command("list")
def list_credits(
    ctx: typer.Context, account: Account, kind: OfKind = None, limit: Limit = None, as_json: Json = False
) -> None:
    """List an account's transactions, oldest first."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        found = client.admin.credits.list(account, kind=kind, limit=limit)
        output.print_records(found, columns.TRANSACTIONS, as_json)


@credits.command("give")
def give_credit(
    ctx: typer.Context,
    account: Account,
    amount: Amount,
    kind: Annotated[Credit, typer.Option("--kind", help="What it is.")] = Credit.topup,
    take: Annotated[bool, typer.Option("--take", help="Take it away (of an admin_correction).")] = False,
    key: Annotated[
        str | None, typer.Option("--key", help="Given again with the same key, it is the same credit.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Shown to the account.")] = "",
    as_json: Json = False,
) -> None:
    """Add to an account's balance."""
    from pillion.cli import columns, output

    micros = output.micros(amount)
    with session(ctx) as client:
        made = client.admin.credits.give(account, -micros if take else micros, kind=kind, key=key, note=note)
    output.print_record(made, columns.TRANSACTIONS, as_json)
