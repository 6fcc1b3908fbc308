"""The tables. Times are seconds since the epoch. Tables of tenants have `account_id`, all of them.

A change needs a migration (`python -m pillion.store.migrations.revise "why"`): a test compares the two.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Json = sa.JSON(none_as_null=True)  # not JSONB, which refuses \u0000


class PlainText(sa.types.TypeDecorator[str]):
    """Text that PostgreSQL takes too: NUL becomes U+FFFD, half a surrogate pair `?`."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        if not isinstance(value, str):
            return value
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _id() -> sa.Column[int]:
    return sa.Column("id", Int, sa.Identity(), primary_key=True)


def _text(name: str, *, null: bool = False, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, PlainText, nullable=null, primary_key=key)


def _account(*, null: bool = False, key: bool = False) -> sa.Column[str]:
    return sa.Column("account_id", PlainText, sa.ForeignKey("accounts.id"), nullable=null, primary_key=key)


def _time(name: str, *, null: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=null)


def _int(name: str, *, null: bool = False, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, Int, nullable=null, primary_key=key, autoincrement=False)


def _of_adapter(*, ondelete: str) -> sa.ForeignKeyConstraint:
    """The adapter is of the same account: the database itself keeps tenants apart."""
    return sa.ForeignKeyConstraint(
        ["adapter_row_id", "account_id"], ["adapters.row_id", "adapters.account_id"], ondelete=ondelete
    )


def _of_member() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["member_id", "account_id"], ["members.id", "members.account_id"], ondelete="CASCADE"
    )


accounts = sa.Table(
    "accounts",
    metadata,
    _text("id", key=True),
    _text("name"),
    _text("tier"),
    sa.Column("local_only", sa.Boolean, nullable=False),
    _time("created_at"),
    _time("suspended_at", null=True),
    _time("deleted_at", null=True),
    sa.UniqueConstraint("name"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    _text("id", key=True),
    _account(),
    _text("lookup"),
    _text("digest"),
    _text("name"),
    sa.Column("scopes", Json, nullable=False),
    _time("created_at"),
    _time("revoked_at", null=True),
    _time("expires_at", null=True),
    _int("requests_per_minute", null=True),
    _int("tokens_per_minute", null=True),
    sa.Column("allow", Json, nullable=True),
    _int("spend_limit", null=True),
    _text("created_by", null=True),
    sa.UniqueConstraint("lookup"),
    sa.Index(None, "account_id"),
)

members = sa.Table(
    "members",
    metadata,
    _text("id", key=True),
    _account(),
    _text("email"),
    _text("name"),
    _text("role"),
    _text("password", null=True),
    _text("subject", null=True),
    _time("created_at"),
    _time("last_login_at", null=True),
    sa.UniqueConstraint("account_id", "email"),
    sa.UniqueConstraint("account_id", "subject"),
    sa.UniqueConstraint("id", "account_id"),
    sa.Index(None, "email"),
    sa.Index(None, "subject"),
)

invites = sa.Table(
    "invites",
    metadata,
    _text("id", key=True),
    _account(),
    _text("email"),
    _text("role"),
    _text("digest"),
    _text("member_id", null=True),
    _text("created_by"),
    _time("created_at"),
    _time("expires_at"),
    _time("accepted_at", null=True),
    sa.UniqueConstraint("digest"),
    sa.Index(None, "account_id"),
    _of_member(),
)

logins = sa.Table(
    "logins",
    metadata,
    _text("digest", key=True),
    _account(),
    _text("member_id", null=True),
    _text("key_id", null=True),
    _time("created_at"),
    _time("expires_at"),
    sa.Index(None, "account_id", "member_id"),
    sa.Index(None, "expires_at"),
    _of_member(),
)

registered_models = sa.Table(
    "registered_models",
    metadata,
    _id(),
    _account(),
    _text("name"),
    _text("source"),
    _text("revision", null=True),
    _text("kind"),
    sa.Column("lora", sa.Boolean, nullable=False),
    _text("region", null=True),
    _text("image", null=True),
    _time("created_at"),
    sa.UniqueConstraint("account_id", "name"),
    sqlite_autoincrement=True,
)

adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("row_id", Int, sa.Identity(), primary_key=True),
    _text("id"),
    _account(),
    _text("name"),
    _text("label"),
    _text("base_model"),
    _text("region", null=True),
    _text("state"),
    _int("live_version", null=True),
    _time("created_at"),
    _int("wanted_version", null=True),
    _time("wanted_at", null=True),
    _int("previous_version", null=True),
    _int("canary_version", null=True),
    sa.Column("canary_share", sa.Double, nullable=True),
    _time("ended_at", null=True),
    _text("refused_name", null=True),
    _time("refused_until", null=True),
    sa.UniqueConstraint("id"),
    sa.UniqueConstraint("account_id", "name"),
    sa.UniqueConstraint("row_id", "account_id"),
    sa.Index(None, "account_id", "row_id"),
    sqlite_autoincrement=True,
)

adapter_labels = sa.Table(
    "adapter_labels",
    metadata,
    _int("adapter_row_id", key=True),
    _account(),
    _text("label", key=True),
    _time("created_at"),
    _of_adapter(ondelete="CASCADE"),
    sa.Index(None, "account_id", "label"),
)

adapter_versions = sa.Table(
    "adapter_versions",
    metadata,
    _int("adapter_row_id", key=True),
    _account(),
    _int("version", key=True),
    _text("digest"),
    _int("rank"),
    sa.Column("alpha", sa.Double, nullable=False),
    sa.Column("target_modules", Json, nullable=False),
    _int("size_bytes"),
    sa.Column("warnings", Json, nullable=False),
    sa.Column("source", Json, nullable=False),
    _time("created_at"),
    _time("live_at", null=True),
    _text("error_code", null=True),
    _text("error_message", null=True),
    _of_adapter(ondelete="CASCADE"),
    sa.Index(None, "digest"),
)

instances = sa.Table(
    "instances",
    metadata,
    _id(),
    _account(null=True),
    _text("model"),
    sa.Column("spec", Json, nullable=False),
    _text("wanted"),
    _text("state"),
    _text("termination_reason", null=True),
    _time("created_at"),
    _time("stopped_at", null=True),
    _int("generation"),
    sa.Index(None, "account_id", "id"),
    sa.Index(None, "wanted"),
    sqlite_autoincrement=True,
)

attachments = sa.Table(
    "attachments",
    metadata,
    _id(),
    _account(),
    _int("adapter_row_id"),
    sa.Column("instance_id", Int, sa.ForeignKey("instances.id"), nullable=False),
    _text("hold"),
    sa.Column("pinned", sa.Boolean, nullable=False),
    _time("expires_at", null=True),
    _text("session_key", null=True),
    _text("state"),
    _int("ready"),
    _int("wanted"),
    _text("error_code", null=True),
    _text("error_message", null=True),
    _time("created_at"),
    sa.Column("drain_deadline_s", sa.Double, nullable=False),
    _int("replaces", null=True),
    _of_adapter(ondelete="RESTRICT"),
    sa.UniqueConstraint("adapter_row_id", "instance_id"),
    sa.Index(None, "instance_id"),
    sa.Index(None, "account_id", "session_key"),
    sqlite_autoincrement=True,
)

jobs = sa.Table(
    "jobs",
    metadata,
    _text("id", key=True),
    _account(),
    _text("kind"),
    sa.Column("subject", Json, nullable=False),
    _text("state"),
    sa.Column("progress", sa.Double, nullable=False),
    _text("message"),
    sa.Column("error", Json, nullable=True),
    _time("created_at"),
    _time("updated_at"),
    _text("holder", null=True),
    sa.UniqueConstraint("id", "account_id"),
    sa.Index(None, "account_id", "created_at", "id"),
    sa.Index(None, "state", "kind", "created_at"),
)

job_log = sa.Table(
    "job_log",
    metadata,
    _text("job_id", key=True),
    _account(),
    _int("seq", key=True),
    _time("at"),
    _text("line"),
    sa.ForeignKeyConstraint(["job_id", "account_id"], ["jobs.id", "jobs.account_id"], ondelete="CASCADE"),
)

events = sa.Table(
    "events",
    metadata,
    _id(),
    _account(null=True),
    _time("at"),
    _text("kind"),
    _text("subject"),
    sa.Column("detail", Json, nullable=False),
    sa.Index(None, "account_id", "subject", "id"),
    sa.Index(None, "account_id", "id"),
    sa.Index(None, "at"),
    sqlite_autoincrement=True,
)

# No foreign keys: who did what stays true when they are gone. `status` is null while it is being done.
audit = sa.Table(
    "audit",
    metadata,
    _id(),
    _text("account_id"),
    _time("at"),
    _text("key_id"),
    _text("action"),
    _text("subject"),
    _text("request_id", null=True),
    _text("made", null=True),
    _int("status", null=True),
    _text("error", null=True),
    sa.Index(None, "account_id", "id"),
    sa.Index(None, "at"),
    sqlite_autoincrement=True,
)

# Which accounts' rows changed, put down by triggers: so readers need not read all again. No account: the operator's.
account_changes = sa.Table(
    "account_changes",
    metadata,
    _id(),
    _text("account_id", null=True),
    _int("xid"),
    _time("at"),
    sa.Index(None, "xid"),
    sa.Index(None, "at"),
    sqlite_autoincrement=True,
)

secrets = sa.Table(
    "secrets",
    metadata,
    _account(key=True),
    _text("name", key=True),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
)

settings = sa.Table(
    "settings",
    metadata,
    _text("name", key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    _text("name", key=True),
    _text("holder"),
    _int("token"),
    _time("expires_at"),
)

usage_spools = sa.Table(
    "usage_spools",
    metadata,
    _text("spool", key=True),
    _int("mark"),
    _time("updated_at"),
)

# No foreign keys: what was used stays true when what it was used through is gone.
usage_events = sa.Table(
    "usage_events",
    metadata,
    _id(),
    _text("account_id"),
    _text("spool"),
    _int("seq"),
    _time("at"),
    _text("key_id"),
    _text("adapter_id", null=True),
    _int("adapter_version", null=True),
    _text("model"),
    _text("base_model"),
    _int("instance_id"),
    _text("replica"),
    _text("region"),
    _text("request_id"),
    _int("prompt_tokens", null=True),
    _int("cached_tokens", null=True),
    _int("completion_tokens", null=True),
    _text("status"),
    sa.Column("ttft_ms", sa.Double, nullable=True),
    sa.Column("duration_ms", sa.Double, nullable=False),
    sa.Column("cold", sa.Boolean, nullable=False),
    sa.UniqueConstraint("spool", "seq"),
    sa.Index(None, "account_id", "id"),
    sa.Index(None, "account_id", "at"),
    sqlite_autoincrement=True,
)

# Sums of `usage_events` by the hour, written with them. `adapter_id` is "" and `adapter_version` 0 for a base. `cost`: in
# 1e-9 of the currency.
usage_hours = sa.Table(
    "usage_hours",
    metadata,
    _text("account_id", key=True),
    _int("hour", key=True),
    _text("key_id", key=True),
    _text("base_model", key=True),
    _text("adapter_id", key=True),
    _int("adapter_version", key=True),
    _int("instance_id", key=True),
    _text("outcome", key=True),
    _int("requests"),
    _int("prompt_tokens"),
    _int("cached_tokens"),
    _int("completion_tokens"),
    sa.Column("cost", Int, nullable=False, server_default="0"),
    sa.Index(None, "account_id", "key_id", "hour"),
)

# Never changed, only added. Instants are milliseconds, amounts 1e-6 of the currency.
prices = sa.Table(
    "prices",
    metadata,
    _id(),
    _text("kind"),
    _text("item"),
    _text("region"),
    _int("hourly"),
    _int("input"),
    _int("output"),
    _int("effective_ms"),
    _text("source"),
    _time("created_at"),
    sa.UniqueConstraint("kind", "item", "region", "effective_ms"),
    sqlite_autoincrement=True,
)

# Balances as sums of `ledger_entries`, and what of `available` must be kept back. No foreign keys from here on: what was
# paid stays true when what it was paid for is gone.
wallets = sa.Table(
    "wallets",
    metadata,
    _text("account_id", key=True),
    _int("available"),
    _int("held"),
    _int("leased"),
    _int("owed"),
    sa.CheckConstraint("available >= 0", name="ck_wallets_available"),
    sa.CheckConstraint("held >= 0", name="ck_wallets_held"),
    sa.CheckConstraint("leased >= 0", name="ck_wallets_leased"),
    sa.CheckConstraint("owed >= 0", name="ck_wallets_owed"),
)

# The database refuses to change or delete its rows (triggers in the history).
ledger_entries = sa.Table(
    "ledger_entries",
    metadata,
    _id(),
    _text("account_id"),
    _text("key"),
    _text("kind"),
    _text("source"),
    _text("target"),
    _int("amount"),
    _time("at"),
    _int("hour"),
    _text("subject"),
    _text("model"),
    sa.Column("detail", Json, nullable=False),
    _int("available_after"),
    _int("held_after"),
    sa.CheckConstraint("amount > 0", name="ck_ledger_entries_amount"),
    sa.CheckConstraint("source <> target", name="ck_ledger_entries_books"),
    sa.UniqueConstraint("account_id", "key"),
    sa.Index(None, "account_id", "id"),
    sa.Index(None, "account_id", "hour"),
    sqlite_autoincrement=True,
)

bills = sa.Table(
    "bills",
    metadata,
    _int("instance_id", key=True),
    _text("account_id"),
    _int("held"),
    _int("number"),
    sa.Column("open", sa.Boolean, nullable=False),
    _time("opened_at"),
    sa.CheckConstraint("held >= 0", name="ck_bills_held"),
    sa.Index(None, "open"),
)

# A replica was ready from `began_ms` to `seen_ms`.
runs = sa.Table(
    "runs",
    metadata,
    _id(),
    _text("account_id"),
    _int("instance_id"),
    _text("replica"),
    _text("region"),
    _text("gpu_type"),
    _int("gpu_count"),
    _int("began_ms"),
    _int("seen_ms"),
    _int("charged_ms"),
    sa.Column("open", sa.Boolean, nullable=False),
    sa.Column("billed", sa.Boolean, nullable=False),
    sa.CheckConstraint("began_ms <= charged_ms AND charged_ms <= seen_ms", name="ck_runs_order"),
    sa.Index(None, "instance_id"),
    sa.Index(None, "replica"),
    sa.Index(
        "uq_runs_open", "replica", unique=True, sqlite_where=sa.text("open"), postgresql_where=sa.text("open")
    ),
    sqlite_autoincrement=True,
)

carries = sa.Table(
    "carries",
    metadata,
    _text("account_id", key=True),
    _int("price_id", key=True),
    _int("remainder"),
    _int("owed"),
    _int("number"),
    _int("posted_hour"),
)

# What gateways may spend of accounts' balances without asking again. `outstanding` is not yet covered by usage events.
slices = sa.Table(
    "slices",
    metadata,
    _text("account_id", key=True),
    _text("gateway", key=True),
    _text("epoch", key=True),
    sa.Column("key_id", sa.Text, primary_key=True, server_default=""),
    _int("number"),
    _int("given"),
    _int("outstanding"),
    _time("until"),
    sa.CheckConstraint("outstanding >= 0", name="ck_slices_outstanding"),
    sa.Index(None, "until"),
)

# Gateways that joined by a one-time token, or may. `token` and `credential` are digests.
gateways = sa.Table(
    "gateways",
    metadata,
    _text("id", key=True),
    _text("name"),
    _text("token"),
    _text("created_by"),
    _time("created_at"),
    _time("expires_at"),
    _text("credential", null=True),
    _time("joined_at", null=True),
    _time("revoked_at", null=True),
    sa.UniqueConstraint("token"),
    sa.Index(None, "credential"),
)

TENANT_TABLES = frozenset(table.name for table in metadata.sorted_tables if "account_id" in table.c)
