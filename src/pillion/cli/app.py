"""The root of the command line. Everything heavy is imported by the command that needs it: help is instant."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pillion.cli import (
    account,
    adapters,
    billing,
    chat,
    events,
    gateways,
    instances,
    jobs,
    models,
    team,
    usage,
)
from pillion.cli.session import Target

HELP = """Many LoRA adapters on a few running base models.

Every command takes --json. Where its output is not a terminal, a table is printed as lines of tab-separated fields
without a header. Progress and errors go to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage.

\b
Which server: --url, else PILLION_URL, else http://127.0.0.1:8080.
Which key:    --api-key, else PILLION_API_KEY, else, for a server on this
              machine, the file admin-key in PILLION_DATA_DIR or ~/.pillion.
"""


ORDER = (
    "chat",
    "adapters",
    "instances",
    "models",
    "jobs",
    "events",
    "audit",
    "usage",
    "balance",
    "transactions",
    "keys",
    "members",
    "invites",
    "account",
    "accounts",
    "gateways",
    "prices",
    "credits",
    "regions",
    "gpu-types",
)


class Root(TyperGroup):
    """Turns the client's errors into one clear line and exit code 1. Lists the server's commands first."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        names = super().list_commands(ctx)
        return [*(n for n in names if n not in ORDER), *(n for n in ORDER if n in names)]

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        from pillion.sdk.errors import PillionError

        try:
            return super().invoke(ctx)
        except PillionError as error:
            from pillion.cli.failures import explain

            explain(error)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="pillion",
    cls=Root,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def target(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option("--url", help="The server's URL.")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="The key to call it with.")] = None,
) -> None:
    ctx.obj = Target(url, api_key)


app.add_typer(adapters.app, name="adapters")
app.add_typer(instances.app, name="instances")
app.add_typer(models.app, name="models")
app.add_typer(jobs.app, name="jobs")
app.add_typer(account.keys, name="keys")
app.add_typer(team.members, name="members")
app.add_typer(team.invites, name="invites")
app.add_typer(account.own, name="account")
app.add_typer(account.accounts, name="accounts")
app.add_typer(gateways.app, name="gateways")
app.command("regions")(models.regions)
app.command("gpu-types")(models.gpu_types)
app.command("chat")(chat.chat)
app.add_typer(usage.app, name="usage")
app.command("balance")(billing.balance)
app.command("transactions")(billing.transactions)
app.add_typer(billing.prices, name="prices")
app.add_typer(billing.credits, name="credits")
app.command("events")(events.events)
app.command("audit")(events.audit)
