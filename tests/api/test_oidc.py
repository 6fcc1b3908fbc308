"""Logging in through an identity provider on a port of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from joserfc.jwk import RSAKey

from pillion.control.oidc import Provider
from tests.api.people import Browser, browser, invited, join
from tests.api.provider import CLIENT, SECRET, IdentityProvider, identity_provider, new_key, shared_secret
from tests.api.site import Site, found, refused


@pytest.fixture(scope="module")
def key() -> RSAKey:
    return new_key()


@pytest.fixture
async def idp(site: Site, key: RSAKey) -> AsyncIterator[IdentityProvider]:
    async with identity_provider(key) as made:
        site.control.provider = Provider(made.issuer, CLIENT, SECRET)
        site.control.settings = dataclasses.replace(site.control.settings, public_url="http://pillion/")
        yield made


@pytest.fixture
async def visitor(site: Site) -> AsyncIterator[Browser]:
    async with browser(site) as made:
        yield made


async def away(visitor: Browser, **query: str) -> str:
    """Where the provider sends the browser back to."""
    began = await visitor.client.get("/v1/auth/oidc", params=query)
    assert began.status_code == 302, began.text
    async with httpx.AsyncClient() as outside:
        answer = await outside.get(began.headers["location"])
    assert answer.status_code == 302
    return answer.headers["location"]


async def come(visitor: Browser, **query: str) -> httpx.Response:
    return await visitor.client.get(await away(visitor, **query))


async def me(visitor: Browser) -> dict[str, Any]:
    return found(await visitor.get("/v1/auth/session"))


class TestTheWay:
    async def test_an_invite_binds_who_the_provider_says_it_is(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        token = (await invited(site.a, "uma@x.org", "owner"))["token"]
        answer = await come(visitor, invite=token, next="/console?x=1")
        assert (answer.status_code, answer.headers["location"]) == (302, "/console?x=1")
        cookies = answer.headers.get_list("set-cookie")
        assert any("pillion_session=" in c and "HttpOnly" in c and "SameSite=lax" in c for c in cookies)
        session = await me(visitor)
        assert (session["account_id"], session["role"]) == (site.a.who.account, "owner")
        assert (session["member"]["name"], session["member"]["has_password"]) == ("Uma", False)
        async with browser(site) as other:
            assert (await come(other)).headers["location"] == "/"
            assert (await me(other))["member"]["id"] == session["member"]["id"]
        refused(await visitor.log_in("uma@x.org", "anything at all"), 401, "invalid_login")

    async def test_a_member_by_password_can_be_bound(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        before = await join(site, visitor, site.a, "uma@x.org")
        token = (await invited(site.a, "uma@x.org"))["token"]
        assert (await come(visitor, invite=token)).status_code == 302
        assert (await me(visitor))["member"]["id"] == before["member"]["id"]
        assert (await come(visitor)).status_code == 302

    async def test_in_two_accounts_one_says_which(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        for tenant in (site.a, site.b):
            token = (await invited(tenant, "uma@x.org"))["token"]
            assert (await come(visitor, invite=token)).status_code == 302
        assert "a, b" in refused(await come(visitor), 400, "ambiguous_ref")["message"]
        assert (await come(visitor, account="b")).status_code == 302
        assert (await me(visitor))["account_id"] == site.b.who.account
        again = (await invited(site.b, "other@x.org"))["token"]
        refused(await come(visitor, invite=again), 409, "name_taken")

    async def test_newcomers_join_the_account_that_is_set(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        site.control.provider = Provider(idp.issuer, CLIENT, SECRET, account="b")
        idp.person = {"sub": "u9", "email": "Nia@X.org", "email_verified": False}
        refused(await come(visitor), 401, "invalid_login")
        idp.person["email_verified"] = True
        assert (await come(visitor)).status_code == 302
        session = await me(visitor)
        assert (session["account_id"], session["role"]) == (site.b.who.account, "member")
        assert session["member"]["email"] == "nia@x.org"
        idp.person = {"sub": "u10", "email": "nia@x.org", "email_verified": True}
        refused(await come(visitor), 409, "name_taken")

    async def test_who_names_an_account_they_are_not_in_joins_none(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        site.control.provider = Provider(idp.issuer, CLIENT, SECRET, account="b")
        idp.person = {"sub": "u9", "email": "nia@x.org", "email_verified": True}
        refused(await come(visitor, account="a"), 401, "invalid_login")
        assert (await come(visitor, account="b")).status_code == 302
        idp.person["email"] = "nia.new@x.org"  # the same person
        refused(await come(visitor, account="a"), 401, "invalid_login")

    async def test_an_address_alone_binds_nobody(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        await join(site, visitor, site.a, "uma@x.org", "owner")
        idp.person = {"sub": "u2", "email": "uma@x.org", "email_verified": True}
        async with browser(site) as other:
            refused(await come(other), 401, "invalid_login")


class TestWhatIsWrong:
    @pytest.fixture
    async def known(self, site: Site, idp: IdentityProvider, visitor: Browser) -> None:
        token = (await invited(site.a, "uma@x.org"))["token"]
        assert (await come(visitor, invite=token)).status_code == 302
        visitor.client.cookies.clear()

    @pytest.mark.parametrize(
        "change",
        [
            {"nonce": "other"},
            {"nonce": None},
            {"aud": "other"},
            {"aud": [CLIENT, "other"], "azp": "other"},
            {"iss": "http://other"},
            {"exp": 1_000_000_000},
            {"iat": None},
            {"sub": None},
            {"at_hash": "wrong"},
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("known")
    async def test_a_token_that_says_otherwise(
        self, idp: IdentityProvider, visitor: Browser, change: dict[str, Any]
    ) -> None:
        idp.claims = lambda claims: {k: v for k, v in (claims | change).items() if v is not None}
        refused(await come(visitor), 401, "invalid_login")
        refused(await visitor.get("/v1/account"), 401, "invalid_api_key")

    @pytest.mark.usefixtures("known")
    async def test_a_token_signed_by_another(self, idp: IdentityProvider, visitor: Browser) -> None:
        idp.key = new_key()
        refused(await come(visitor), 401, "invalid_login")
        idp.key, idp.algorithm = shared_secret(), "HS256"
        refused(await come(visitor), 401, "invalid_login")

    @pytest.mark.usefixtures("known")
    async def test_a_code_is_good_once_and_in_its_browser(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        back = await away(visitor)
        async with browser(site) as thief:
            refused(await thief.client.get(back), 401, "invalid_login")
            await away(thief)
            refused(await thief.client.get(back), 401, "invalid_login")
        begun = dict(visitor.client.cookies)
        assert (await visitor.client.get(back)).status_code == 302
        for name, value in begun.items():
            visitor.client.cookies.set(name, value)
        refused(await visitor.client.get(back), 401, "invalid_login")

    @pytest.mark.usefixtures("known")
    async def test_a_login_that_took_too_long(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        back = await away(visitor)
        site.world.clock.ahead += 601
        refused(await visitor.client.get(back), 401, "invalid_login")

    @pytest.mark.parametrize("query", ["", "?state=x", "?state=x&code=y", "?error=access_denied&state=x"])
    async def test_nothing_was_begun(
        self, site: Site, idp: IdentityProvider, visitor: Browser, query: str
    ) -> None:
        refused(await visitor.client.get(f"/v1/auth/oidc/callback{query}"), 401, "invalid_login")
        visitor.client.cookies.set("pillion_login", "x")
        refused(await visitor.client.get(f"/v1/auth/oidc/callback{query}"), 401, "invalid_login")

    async def test_strangers(self, idp: IdentityProvider, visitor: Browser) -> None:
        assert "invite" in refused(await come(visitor), 401, "invalid_login")["message"]
        refused(await come(visitor, invite="pii_x"), 404, "not_found")

    @pytest.mark.parametrize("then", ["https://evil.example", "//evil.example", "/\\evil.example", "x"])
    async def test_it_leads_nowhere_else(self, idp: IdentityProvider, visitor: Browser, then: str) -> None:
        answer = await visitor.client.get("/v1/auth/oidc", params={"next": then})
        refused(answer, 400, "invalid_request")

    async def test_a_provider_that_is_down_or_another(
        self, site: Site, idp: IdentityProvider, visitor: Browser
    ) -> None:
        back = await away(visitor)
        idp.down = True
        refused(await visitor.client.get(back), 503, "login_unavailable")
        refused(await visitor.client.get("/v1/auth/oidc"), 503, "login_unavailable")
        idp.down = False
        site.control.provider = Provider(f"{idp.issuer}/", CLIENT, SECRET)
        refused(await visitor.client.get("/v1/auth/oidc"), 503, "login_unavailable")

    async def test_a_wrong_client_secret(self, site: Site, idp: IdentityProvider, visitor: Browser) -> None:
        site.control.provider = Provider(idp.issuer, CLIENT, "wrong")
        refused(await come(visitor), 503, "login_unavailable")

    async def test_without_a_provider(self, visitor: Browser) -> None:
        refused(await visitor.client.get("/v1/auth/oidc"), 404, "not_found")
