"""Tenancy as real processes: what control decides, the gateway keeps to at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import PillionAPIError

from .site import Site, until

ROUNDS = 100 if os.environ.get("PILLION_TEST_FULL") else 5
PASSWORD = "correct horse 7"
_numbers = itertools.count(1)


@pytest.fixture
def admin(site: Site) -> Iterator[Pillion]:
    with site.client() as made:
        yield made


def asked(site: Site, key: str, **headers: str) -> httpx.Response:
    """For a completion on a model that runs nowhere: 404 is what comes of a key that is good."""
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
    fields = {"authorization": f"Bearer {key}", **headers}
    return httpx.post(f"{site.url}/v1/completions", json=body, headers=fields)


def code(answer: httpx.Response) -> Any:
    return answer.json()["error"]["code"]


def test_what_is_revoked_or_changed_holds_in_the_gateway_at_once(site: Site, client: Pillion) -> None:
    for _ in range(ROUNDS):
        made = client.keys.create("k")
        assert made.key is not None
        assert made.unacknowledged == []
        assert code(asked(site, made.key)) == "model_not_found"
        assert client.keys.update(made.id, allow=["192.0.2.0/24"]).unacknowledged == []
        assert code(asked(site, made.key)) == "address_not_allowed"
        assert code(asked(site, made.key, **{"x-forwarded-for": "192.0.2.1"})) == "address_not_allowed"
        models = httpx.get(f"{site.url}/v1/models", headers={"authorization": f"Bearer {made.key}"})
        assert code(models) == "address_not_allowed"
        client.keys.update(made.id, allow=["127.0.0.0/8"])
        assert code(asked(site, made.key)) == "model_not_found"
        assert client.keys.revoke(made.id).unacknowledged == []
        assert code(asked(site, made.key)) == "invalid_api_key"


def test_a_suspended_account_is_turned_away_and_its_streams_finish(
    site: Site, admin: Pillion, client: Pillion
) -> None:
    key = client.keys.create("k").key
    assert key is not None
    instance = site.launch(client, "slow")
    account = client.account.get().id
    body = {"model": f"slow:{instance}", "prompt": "hi", "max_tokens": 40, "stream": True}
    with (
        httpx.stream(
            "POST",
            f"{site.url}/v1/completions",
            json=body,
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        ) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        assert admin.admin.accounts.update(account, suspended=True).unacknowledged == []
        refused = asked(site, key)
        assert (refused.status_code, code(refused)) == (403, "account_suspended")
        with pytest.raises(PillionAPIError, match="suspended"):
            client.account.get()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    admin.admin.accounts.update(account, suspended=False)
    assert client.instances.get(instance).state == "running"


def test_a_browser_behind_the_gateway(site: Site, admin: Pillion, client: Pillion) -> None:
    account = client.account.get().id
    email = f"ann{next(_numbers)}@example.com"
    invite = admin.admin.accounts.invite(account, email)
    with httpx.Client(base_url=site.url) as window:
        body = {"token": invite.token, "name": "Ann", "password": PASSWORD}
        joined = window.post("/v1/invites/accept", json=body)
        assert joined.status_code == 201, joined.text
        assert "secure" not in joined.headers["set-cookie"].lower()
        assert window.get("/v1/auth/session").json()["account_id"] == account
        assert code(window.post("/v1/keys", json={})) == "csrf_token_invalid"
        token = {"x-pillion-csrf": joined.json()["csrf_token"]}
        key = window.post("/v1/keys", json={}, headers=token).json()["key"]
        assert code(asked(site, key)) == "model_not_found"
        assert window.post("/v1/auth/logout", headers=token).json()["deleted"] is True
        assert code(window.get("/v1/auth/session")) == "invalid_api_key"
        login = {"email": email, "password": PASSWORD}
        headers = {"x-forwarded-proto": "https"}
        over_tls = window.post("/v1/auth/login", json=login, headers=headers)
        assert "secure" in over_tls.headers["set-cookie"].lower()
        assert code(window.post("/v1/auth/login", json=login | {"password": "x"})) == "invalid_login"
    members = list(client.members.list())
    assert [(m.email, m.role) for m in members] == [(email, "owner")]


def test_one_invite_makes_one_member_however_many_try(site: Site, tenant: Callable[[], Pillion]) -> None:
    client = tenant()
    invite = client.invites.create("race@example.com")

    def accept(number: int) -> int:
        body = {"token": invite.token, "name": f"n{number}", "password": PASSWORD}
        return httpx.post(f"{site.url}/v1/invites/accept", json=body, timeout=60).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(accept, range(8)))
    assert statuses == [201] + [404] * 7
    assert len(list(client.members.list())) == 1


def test_an_account_that_is_deleted_is_gone_from_the_gateway(site: Site, admin: Pillion) -> None:
    made = admin.admin.accounts.create(f"short-lived-{next(_numbers)}")
    key = admin.admin.accounts.create_key(made.id, "k", scopes=["inference", "manage"]).key
    assert key is not None
    with site.client(key) as client:
        instance = site.launch(client)
        with pytest.raises(PillionAPIError, match=f"instances {instance}"):
            admin.admin.accounts.delete(made.id)
        client.instances.stop(instance)

    def delete() -> bool:
        admin.admin.accounts.delete(made.id)
        return True

    until(delete, "the instance to be gone, and the account with it")
    assert code(asked(site, key)) == "invalid_api_key"
    assert made.id not in {account.id for account in admin.admin.accounts.list()}
