"""Money through real processes that are killed: what was charged is what was used, and no more than there was."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pillion.control.billing import Billing
from pillion.control.changes import Changes
from pillion.sdk import Pillion
from pillion.sdk.errors import PillionAPIError
from pillion.store.database import Database

from .site import Site, ask, running, until

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "recompute_invoices.py"
BILLED = {
    "PILLION_BILLING_ENABLED": "true",
    "PILLION_POOLS": '[{"model": "tiny", "replicas": 1}]',
    "PILLION_GPU_TYPES": '[{"name": "cpu", "rate_per_hour": "36"}]',
}


def refused(client: Pillion, model: str) -> str | None:
    """The code of the error; None where it was answered."""
    try:
        ask(client, model)
    except PillionAPIError as error:
        return error.code
    return None


def one(site: Site, part: str) -> psutil.Process:
    return until(lambda: site.processes(part), f"a process {part}")[0]


def account_of(client: Pillion) -> str:
    return client.account.get().id


def spent(client: Pillion, read: int = 100, written: int = 300) -> int:
    """On the pool, at so much for a token."""
    return sum(
        read * (e.prompt_tokens or 0) + written * (e.completion_tokens or 0) for e in client.usage.events()
    )


async def _an_hour_later(url: str) -> None:
    """What a control does that starts then."""
    db = Database.open(url)
    settings = SimpleNamespace(billing=True)
    control = SimpleNamespace(
        db=db,
        settings=settings,
        clock=lambda: time.time() + 3700,
        changes=Changes(),
        counts=SimpleNamespace(),
    )
    await Billing(control, "later").step()  # type: ignore[arg-type]
    await db.close()


def invoices(site: Site) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, site.data / "pillion.db"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_invoices_hold_through_kills_and_nobody_overspends(tmp_path: Path) -> None:
    site = Site(tmp_path, environment=BILLED)
    with running(site), site.client() as admin, site.tenant("a") as a, site.tenant("b") as b:
        until(lambda: refused(a, "tiny") == "model_not_priced", "the pool runs, without a price")
        admin.admin.prices.set_model("tiny", 100_000_000, 300_000_000)  # 100 and 300 for a token
        until(lambda: refused(a, "tiny") == "insufficient_balance", "the price holds")
        with pytest.raises(PillionAPIError, match="a launch holds 24 hours"):
            a.instances.launch("other", regions=["eu-1"])

        admin.admin.credits.give(account_of(a), 5_000 * 10**6, key="first")
        until(lambda: refused(a, "tiny") is None, "a balance")
        instance = site.launch(a, "other")
        sent = 1
        for part in ("gateway", "control", "agent", "gateway"):
            for _ in range(4):
                until(lambda: refused(a, "tiny") is None, "an answer")
                sent += 1
            one(site, part).kill()
            if part == "agent":  # while there are requests before and after, and the instance runs
                admin.admin.prices.set_model("tiny", 90_000_001, 310_000_007)
                admin.admin.prices.set_gpu("cpu", 41_000_003)
                changed = time.time() + 2.5
        until(lambda: time.time() > changed, "the new prices hold")
        until(lambda: refused(a, "tiny") is None, "an answer")
        sent += 1
        until(lambda: len(list(a.usage.events())) >= sent, "all events")

        # Of many at once as many are served as the balance is for, and no more is spent.
        funds = 20 * (300 * 100 + 4 * 300)
        admin.admin.credits.give(account_of(b), funds)
        with ThreadPoolExecutor(16) as threads:
            codes = list(threads.map(lambda _: refused(b, "tiny"), range(64)))
        assert codes.count(None) >= 1
        assert set(codes) <= {None, "insufficient_balance"}
        until(lambda: len(list(b.usage.events())) >= codes.count(None), "b's events")
        assert 0 < spent(b, 90, 310) <= funds

        wallet = a.usage.snapshot()["wallet"]
        assert wallet["enabled"] is True
        assert wallet["held"] == 864 * 10**6
        a.instances.stop(instance)
        until(lambda: a.instances.get(instance).state == "stopped", "the instance stopped")
        until(lambda: list(a.billing.transactions(kind="refund")), "the refund")
        assert [t.kind for t in a.billing.transactions()][:2] == ["topup", "hold"]
    assert site.process is not None
    asyncio.run(_an_hour_later(f"sqlite:///{site.data}/pillion.db"))
    assert "open 0" in invoices(site)


def test_a_key_does_not_overspend_over_several_gateways(tmp_path: Path) -> None:
    site = Site(tmp_path, environment=BILLED)
    with running(site, "--workers", "2"), site.client() as admin, site.tenant("a") as a:
        until(lambda: len(site.processes("gateway")) == 2, "two gateways")
        admin.admin.prices.set_model("tiny", 100_000_000, 300_000_000)
        admin.admin.credits.give(account_of(a), 5_000 * 10**6)
        until(lambda: refused(a, "tiny") is None, "the price holds, and the balance")
        until(lambda: len(list(a.usage.events())) == 1, "its event")
        before, limit = (
            spent(a),
            2 * (400 * 100 + 4 * 300),
        )  # some 40,000 is set aside for each, and less used
        key = a.keys.create("capped", scopes=["inference"], spend_limit=limit)
        assert key.key is not None
        with site.client(key.key) as capped, ThreadPoolExecutor(16) as threads:
            codes = list(threads.map(lambda _: refused(capped, "tiny"), range(64)))
        assert codes.count(None) >= 1
        assert set(codes) == {None, "insufficient_quota"}
        until(lambda: len(list(a.usage.events())) >= 1 + codes.count(None), "its events")
        assert 0 < spent(a) - before <= limit
        assert refused(a, "tiny") is None, "other keys of the account go on"
