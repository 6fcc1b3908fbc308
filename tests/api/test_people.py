"""Members, invites, and browsers that are logged in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from pillion.control import invites, keys, logins
from pillion.control.passwords import Passwords
from pillion.core.errors import InsufficientScopeError, NotLoggedInError
from tests.api.people import PASSWORD, Browser, browser, invited, join
from tests.api.site import Site, found, refused

DAY = 86400.0


@pytest.fixture
async def owner(site: Site) -> AsyncIterator[Browser]:
    async with browser(site) as made:
        await join(site, made, site.a, "ann@example.com", "owner")
        yield made


@pytest.fixture
async def member(site: Site) -> AsyncIterator[Browser]:
    async with browser(site) as made:
        await join(site, made, site.a, "Bob@Example.com")
        yield made


@pytest.fixture
async def visitor(site: Site) -> AsyncIterator[Browser]:
    async with browser(site) as made:
        yield made


async def me(browser: Browser) -> dict[str, Any]:
    return found(await browser.get("/v1/auth/session"))


async def accept(browser: Browser, token: str, **changes: str) -> Any:
    return await browser.post(
        "/v1/invites/accept", {"token": token, "name": "Zoe", "password": PASSWORD} | changes
    )


class TestInvites:
    async def test_an_invite_makes_a_member_who_is_logged_in(self, site: Site, visitor: Browser) -> None:
        made = await invited(site.a, " Zoe@Example.com ", "owner")
        assert (made["email"], made["role"], made["member_id"]) == ("zoe@example.com", "owner", None)
        assert made["expires_at"] == made["created_at"] + 14 * DAY
        (listed,) = found(await site.a.get("/v1/invites"))["data"]
        assert listed == made | {"token": None}
        assert (await accept(visitor, made["token"])).status_code == 201
        session = await me(visitor)
        assert session["account_id"] == site.a.who.account
        assert session["member"]["email"] == "zoe@example.com"
        assert (session["role"], session["scopes"]) == ("owner", ["inference", "manage"])
        (seen,) = found(await site.a.get("/v1/members"))["data"]
        assert (seen["name"], seen["has_password"]) == ("Zoe", True)
        assert found(await site.a.get("/v1/invites"))["data"] == []

    async def test_every_token_that_is_not_good_gets_one_answer(self, site: Site, visitor: Browser) -> None:
        used, withdrawn, late = [await invited(site.a, f"{n}@x.org") for n in range(3)]
        found(await accept(visitor, used["token"]))
        found(await site.a.delete(f"/v1/invites/{withdrawn['id']}"))
        site.world.clock.ahead = 14 * DAY
        answers = [
            await accept(visitor, token)
            for token in (used["token"], withdrawn["token"], late["token"], "pii_x", "")
        ]
        assert {(a.status_code, a.content) for a in answers} == {(404, answers[0].content)}
        assert len(found(await site.a.get("/v1/members"))["data"]) == 1

    async def test_it_is_good_until_the_last_second(self, site: Site, visitor: Browser) -> None:
        made = await invited(site.a, "z@x.org")
        site.world.clock.ahead = 14 * DAY - 1
        found(await accept(visitor, made["token"]))

    async def test_tokens_are_kept_as_digests(self, site: Site, owner: Browser) -> None:
        made = await invited(site.a, "z@x.org")
        cookie = owner.client.cookies["pillion_session"]
        for path in sorted(site.world.root.glob("pillion.db*")):
            for secret in (made["token"], cookie, PASSWORD):
                assert secret.encode() not in path.read_bytes()

    @pytest.mark.parametrize(
        "email", ["", "x", "@x", "x@", "a@b@c", "a b@c", "x" * 250 + "@x.org", "a\x00@b"]
    )
    async def test_what_is_no_address(self, site: Site, email: str) -> None:
        refused(await site.a.post("/v1/invites", {"email": email}), 400, "invalid_request")

    @pytest.mark.parametrize("password", ["short", "aaaaaaaaaaaaaa", "zoe@example.com", "Zoe@Example.com"])
    async def test_a_password_that_is_too_easy_leaves_the_invite(
        self, site: Site, visitor: Browser, password: str
    ) -> None:
        made = await invited(site.a, "zoe@example.com")
        answer = await accept(visitor, made["token"], password=password)
        assert refused(answer, 400, "invalid_request")["param"] == "password"
        found(await accept(visitor, made["token"]))

    async def test_two_invites_for_one_address_make_one_member(self, site: Site, visitor: Browser) -> None:
        one, two = await invited(site.a, "z@x.org"), await invited(site.a, "z@x.org")
        found(await accept(visitor, one["token"]))
        refused(await accept(visitor, two["token"]), 409, "name_taken")
        assert len(found(await site.a.get("/v1/members"))["data"]) == 1

    async def test_a_member_who_is_invited_again_sets_a_new_password(
        self, site: Site, member: Browser, visitor: Browser
    ) -> None:
        made = await invited(site.a, "bob@example.com", "owner")
        assert (made["member_id"], made["role"]) == ((await me(member))["member"]["id"], "member")
        session = found(await accept(visitor, made["token"], password="another horse 8"))
        assert session["member"]["name"] == "Bob"
        refused(await member.get("/v1/auth/session"), 401, "not_logged_in")
        refused(await visitor.log_in("bob@example.com"), 401, "invalid_login")
        found(await visitor.log_in("bob@example.com", "another horse 8"))

    async def test_the_operator_invites_the_first_owner(self, site: Site, visitor: Browser) -> None:
        path = f"/v1/admin/accounts/{site.b.who.account}/invites"
        made = found(await site.admin.post(path, json={"email": "boss@b.org", "role": "owner"}))
        assert found(await accept(visitor, made["token"]))["account_id"] == site.b.who.account
        refused(
            await site.admin.post("/v1/admin/accounts/acc_x/invites", json={"email": "a@b.c"}),
            404,
            "not_found",
        )

    async def test_foreign_invites_are_unknown(self, site: Site) -> None:
        made = await invited(site.a, "z@x.org")
        refused(await site.b.delete(f"/v1/invites/{made['id']}"), 404, "not_found")
        assert found(await site.b.get("/v1/invites"))["data"] == []


class TestMembers:
    async def test_a_member_uses_what_there_is_and_leaves_the_team_alone(
        self, site: Site, owner: Browser, member: Browser
    ) -> None:
        found(await member.get("/v1/adapters"))
        assert len(found(await member.get("/v1/members"))["data"]) == 2
        ann, bob = [(await me(b))["member"]["id"] for b in (owner, member)]
        for method, path, body in (
            ("GET", "/v1/invites", None),
            ("POST", "/v1/invites", {"email": "z@x.org", "role": "owner"}),
            ("PATCH", f"/v1/members/{ann}", {"role": "member"}),
            ("PATCH", f"/v1/members/{ann}", {"name": "x"}),
            ("PATCH", f"/v1/members/{bob}", {"role": "owner"}),
            ("PATCH", "/v1/members/me", {"role": "owner"}),
            ("DELETE", f"/v1/members/{ann}", None),
            ("GET", "/v1/admin/accounts", None),
        ):
            refused(await member.ask(method, path, body), 403, "insufficient_scope")
        renamed = found(await member.ask("PATCH", "/v1/members/me", {"name": "Robert"}))
        assert (renamed["name"], renamed["role"]) == ("Robert", "member")

    async def test_what_a_member_makes_may_no_more_than_they_may(
        self, site: Site, owner: Browser, member: Browser
    ) -> None:
        made = found(await member.post("/v1/keys", {"scopes": ["manage"]}))
        assert made["created_by"] == (await me(member))["member"]["id"]
        with_key = {"authorization": f"Bearer {made['key']}"}
        found(await site.nobody.get("/v1/adapters", headers=with_key))
        refused(await site.nobody.get("/v1/invites", headers=with_key), 403, "insufficient_scope")
        more = found(await site.nobody.post("/v1/keys", json={"scopes": ["manage"]}, headers=with_key))
        assert more["created_by"] == made["created_by"]
        refused(await member.post("/v1/keys", {"scopes": ["admin"]}), 403, "insufficient_scope")
        # made owner, they may more at once, by the same key
        found(await owner.ask("PATCH", f"/v1/members/{made['created_by']}", {"role": "owner"}))
        found(await site.nobody.get("/v1/invites", headers=with_key))

    async def test_members_see_their_own_keys_and_owners_all(self, owner: Browser, member: Browser) -> None:
        theirs = found(await owner.post("/v1/keys", {}))
        mine = found(await member.post("/v1/keys", {}))
        assert [k["id"] for k in found(await member.get("/v1/keys"))["data"]] == [mine["id"]]
        assert {mine["id"], theirs["id"]} < {k["id"] for k in found(await owner.get("/v1/keys"))["data"]}
        for method in ("GET", "PATCH", "DELETE"):
            refused(await member.ask(method, f"/v1/keys/{theirs['id']}", {}), 404, "not_found")
        found(await member.ask("DELETE", f"/v1/keys/{mine['id']}"))

    async def test_who_goes_takes_their_keys_and_sessions_along(
        self, site: Site, owner: Browser, member: Browser
    ) -> None:
        bob = (await me(member))["member"]["id"]
        made = found(await member.post("/v1/keys", {"scopes": ["inference"]}))
        site.control.gateways.heard("gw-deaf", 0)
        gone = found(await owner.ask("DELETE", f"/v1/members/{bob}"))
        assert (gone["id"], gone["unacknowledged"]) == (bob, ["gw-deaf"])
        refused(await member.get("/v1/auth/session"), 401, "not_logged_in")
        with_key = {"authorization": f"Bearer {made['key']}"}
        refused(await site.nobody.get("/v1/account", headers=with_key), 401, "invalid_api_key")
        refused(await member.log_in("bob@example.com"), 401, "invalid_login")

    async def test_who_goes_while_they_make_a_key_gets_none(
        self, site: Site, owner: Browser, member: Browser
    ) -> None:
        who = await logins.enter(site.control, member.client.cookies["pillion_session"], "")
        found(await owner.ask("DELETE", f"/v1/members/{who.member}"))
        with pytest.raises(NotLoggedInError):
            await keys.create(site.control, who, "", ["manage"])

    @pytest.mark.parametrize("how", ["removed", "an owner no more"])
    async def test_who_goes_comes_not_back_by_an_invite_of_their_own(
        self, site: Site, owner: Browser, member: Browser, visitor: Browser, how: str
    ) -> None:
        who = await logins.enter(site.control, member.client.cookies["pillion_session"], "")
        path = f"/v1/members/{who.member}"
        found(await owner.ask("PATCH", path, {"role": "owner"}))
        key = found(await member.post("/v1/keys", {"scopes": ["manage"]}))["key"]
        body = {"email": "back@example.com", "role": "owner"}
        made = [
            found(await member.post("/v1/invites", body)),
            found(
                await site.nobody.post("/v1/invites", json=body, headers={"authorization": f"Bearer {key}"})
            ),
        ]
        others = found(await owner.post("/v1/invites", {"email": "zoe@example.com"}))
        found(
            await owner.ask("DELETE", path)
            if how == "removed"
            else await owner.ask("PATCH", path, {"role": "member"})
        )
        for invite in made:
            refused(await accept(visitor, invite["token"]), 404, "not_found")
        with pytest.raises((NotLoggedInError, InsufficientScopeError)):
            await invites.create(site.control, replace(who, role="owner"), "back@example.com", "owner")
        found(await accept(visitor, others["token"]))

    async def test_a_member_may_leave(self, owner: Browser, member: Browser) -> None:
        found(await member.ask("DELETE", "/v1/members/me"))
        assert len(found(await owner.get("/v1/members"))["data"]) == 1

    async def test_the_last_owner_stays(self, site: Site, owner: Browser, member: Browser) -> None:
        refused(await owner.ask("DELETE", "/v1/members/me"), 409, "conflict")
        refused(await owner.ask("PATCH", "/v1/members/me", {"role": "member"}), 409, "conflict")
        bob = (await me(member))["member"]["id"]
        found(await owner.ask("PATCH", f"/v1/members/{bob}", {"role": "owner"}))
        found(await owner.ask("DELETE", "/v1/members/me"))
        refused(await member.ask("DELETE", "/v1/members/me"), 409, "conflict")

    async def test_foreign_members_are_unknown(self, site: Site, member: Browser) -> None:
        bob = (await me(member))["member"]["id"]
        refused(await site.b.patch(f"/v1/members/{bob}", {"role": "owner"}), 404, "not_found")
        refused(await site.b.delete(f"/v1/members/{bob}"), 404, "not_found")
        refused(await site.b.delete("/v1/members/me"), 404, "not_found")
        assert found(await site.b.get("/v1/members"))["data"] == []


class TestSessions:
    async def test_the_cookie_is_out_of_reach_of_scripts(self, site: Site, visitor: Browser) -> None:
        made = await invited(site.a, "z@x.org")
        cookie = (await accept(visitor, made["token"])).headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "path=/" in cookie
        assert "secure" not in cookie
        answer = await visitor.ask(
            "POST",
            "/v1/auth/login",
            {"email": "z@x.org", "password": PASSWORD},
            **{"x-forwarded-proto": "https"},
        )
        assert "secure" in answer.headers["set-cookie"].lower()
        assert answer.headers["cache-control"] == "no-store"

    async def test_changes_need_the_token_of_the_session(self, site: Site, owner: Browser) -> None:
        token, owner.csrf = owner.csrf, None
        found(await owner.get("/v1/keys"))
        for given in (None, "x", "é"):
            headers = {} if given is None else {"x-pillion-csrf": given.encode()}
            answer = await owner.client.post("/v1/keys", json={}, headers=headers)
            refused(answer, 403, "csrf_token_invalid")
        assert (await me(owner))["csrf_token"] == token
        owner.csrf = token
        found(await owner.post("/v1/keys", {}))

    async def test_another_sessions_token_is_no_good(self, owner: Browser, member: Browser) -> None:
        owner.csrf = member.csrf
        refused(await owner.post("/v1/keys", {}), 403, "csrf_token_invalid")

    async def test_a_key_counts_before_a_cookie(self, site: Site, owner: Browser) -> None:
        key = found(await site.b.post("/v1/keys", {"scopes": ["manage"]}))["key"]
        answer = await owner.client.get("/v1/account", headers={"authorization": f"Bearer {key}"})
        assert found(answer)["id"] == site.b.who.account
        answer = await owner.client.get("/v1/account", headers={"authorization": "Bearer x"})
        refused(answer, 401, "invalid_api_key")

    async def test_logging_out_and_in(self, owner: Browser) -> None:
        cookie = owner.client.cookies["pillion_session"]
        assert found(await owner.post("/v1/auth/logout"))["deleted"] is True
        assert "pillion_session" not in owner.client.cookies
        answer = await owner.client.get("/v1/account", headers={"cookie": f"pillion_session={cookie}"})
        refused(answer, 401, "not_logged_in")
        found(await owner.log_in(" ANN@example.com"))
        assert (await me(owner))["member"]["last_login_at"] is not None

    async def test_a_session_ends(self, site: Site, owner: Browser) -> None:
        ends = (await me(owner))["expires_at"]
        site.world.clock.ahead = ends - site.world.clock.began - 1
        found(await owner.get("/v1/account"))
        site.world.clock.ahead += 1.5
        refused(await owner.get("/v1/account"), 401, "not_logged_in")

    async def test_cookies_that_are_none(self, site: Site, visitor: Browser) -> None:
        for cookie in ("", "x", "y" * 5000):
            visitor.client.cookies.set("pillion_session", cookie)
            refused(await visitor.get("/v1/account"), 401, "not_logged_in" if cookie else "invalid_api_key")

    async def test_a_key_can_be_logged_in_with_as_long_as_it_is_good(
        self, site: Site, visitor: Browser
    ) -> None:
        made = found(await site.a.post("/v1/keys", {"scopes": ["manage"], "allow": ["127.0.0.1"]}))
        session = found(await visitor.post("/v1/auth/login", {"api_key": made["key"]}))
        assert (session["scopes"], session["role"], session["member"]) == (["manage"], None, None)
        found(await visitor.post("/v1/keys", {"scopes": ["manage"]}))
        elsewhere = await visitor.ask("GET", "/v1/account", **{"x-forwarded-for": "192.0.2.1"})
        refused(elsewhere, 403, "address_not_allowed")
        found(await site.a.delete(f"/v1/keys/{made['id']}"))
        refused(await visitor.get("/v1/account"), 401, "invalid_api_key")

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"email": "a@b.c"},
            {"password": PASSWORD},
            {"email": "a@b.c", "password": PASSWORD, "api_key": "pil_x"},
            {"email": 5, "password": PASSWORD},
        ],
    )
    async def test_what_is_no_login(self, visitor: Browser, body: object) -> None:
        refused(await visitor.post("/v1/auth/login", body), 400, "invalid_request")

    async def test_wrong_and_unknown_get_one_answer_for_the_same_work(
        self, site: Site, owner: Browser, visitor: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works: list[str] = []
        matches = Passwords._matches

        def counted(self: Passwords, kept: str, text: str) -> bool:
            works.append(kept)
            return matches(self, kept, text)

        monkeypatch.setattr(Passwords, "_matches", counted)
        emails = ("ann@example.com", "nobody@example.com", "")
        answers = [await visitor.log_in(email, "wrong wrong 1") for email in emails]
        answers.append(await visitor.log_in("ann@example.com", "wrong wrong 1", account="b"))
        answers.append(await visitor.log_in("nobody@example.com", "nobody's"))
        assert {(a.status_code, a.content) for a in answers} == {(401, answers[0].content)}
        refused(answers[0], 401, "invalid_login")
        assert len(works) == len(answers)

    async def test_tries_are_limited_also_for_who_does_not_exist(self, site: Site, visitor: Browser) -> None:
        for email in ("nobody@example.com", "ann@example.com"):
            answers = [
                await visitor.ask(
                    "POST",
                    "/v1/auth/login",
                    {"email": email, "password": "x"},
                    **{"x-forwarded-for": f"192.0.2.{number}"},
                )
                for number in range(21)
            ]
            assert [a.status_code for a in answers] == [401] * 20 + [429]
            assert int(answers[-1].headers["retry-after"]) <= 3
        site.world.clock.ahead += 60
        refused(await visitor.log_in("nobody@example.com"), 401, "invalid_login")

    async def test_and_per_client(self, site: Site, visitor: Browser) -> None:
        statuses = [(await visitor.log_in(f"{n}@x.org")).status_code for n in range(21)]
        assert statuses == [401] * 20 + [429]

    async def test_who_names_an_account_gets_in_however_many_they_are_in(
        self, site: Site, visitor: Browser
    ) -> None:
        for number in range(logins.MAX_ACCOUNTS + 1):
            site.world.clock.ahead += 1
            path = "/v1/admin/accounts"
            made = found(await site.admin.post(path, json={"name": f"n{number}"}))
            invite = found(await site.admin.post(f"{path}/{made['id']}/invites", json={"email": "z@x.org"}))
            found(await accept(visitor, invite["token"]))
        session = found(await visitor.log_in("z@x.org", account=made["name"]))
        assert session["account_id"] == made["id"]

    async def test_who_logs_in_without_an_address_is_held_up_by_no_other_client(
        self, site: Site, visitor: Browser
    ) -> None:
        async def log_in(key: str, client: str) -> Any:
            headers = {"x-forwarded-for": client}
            return await visitor.ask("POST", "/v1/auth/login", {"api_key": key}, **headers)

        statuses = [(await log_in("pil_guess", "192.0.2.1")).status_code for _ in range(21)]
        assert statuses == [401] * 20 + [429]
        key = found(await site.a.post("/v1/keys", {}))["key"]
        found(await log_in(key, "192.0.2.2"))

    async def test_one_person_in_two_accounts_says_which(self, site: Site, visitor: Browser) -> None:
        for tenant in (site.a, site.b):
            await join(site, visitor, tenant, "z@x.org")
        assert "a, b" in refused(await visitor.log_in("z@x.org"), 400, "ambiguous_ref")["message"]
        for tenant, name in ((site.a, "a"), (site.b, "b"), (site.b, site.b.who.account)):
            found(await visitor.log_in("z@x.org", account=name))
            assert (await me(visitor))["account_id"] == tenant.who.account

    async def test_changing_ones_password_ends_other_sessions(self, site: Site, owner: Browser) -> None:
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(browser(site))
            found(await other.log_in("ann@example.com"))
            wrong = {"current": "wrong wrong 1", "password": "another horse 8"}
            refused(await owner.ask("PUT", "/v1/auth/password", wrong), 401, "invalid_login")
            right = wrong | {"current": PASSWORD}
            easy = await owner.ask("PUT", "/v1/auth/password", right | {"password": "short"})
            refused(easy, 400, "invalid_request")
            assert (await me(other))["account_id"]
            found(await owner.ask("PUT", "/v1/auth/password", right))
            refused(await other.get("/v1/auth/session"), 401, "not_logged_in")
            found(await owner.get("/v1/auth/session"))
            refused(await other.log_in("ann@example.com"), 401, "invalid_login")
            found(await other.log_in("ann@example.com", "another horse 8"))
        body = {"current": "x", "password": "another horse 8"}
        refused(await site.a.manage.put("/v1/auth/password", json=body), 401, "not_logged_in")

    async def test_a_password_kept_at_another_cost_is_kept_anew(self, site: Site, owner: Browser) -> None:
        async def kept() -> str | None:
            async with site.control.db.read() as tx:
                (row,) = await tx.members.list(site.a.who.account)
            return row.password

        before = await kept()
        found(await owner.log_in("ann@example.com"))
        assert await kept() == before
        site.control.passwords = Passwords(2, 16, 1)
        found(await owner.log_in("ann@example.com"))
        assert "m=16,t=2" in str(await kept())
        found(await owner.log_in("ann@example.com"))

    async def test_whose_key_this_is_in_the_same_words(self, site: Site) -> None:
        session = found(await site.a.get("/v1/auth/session"))
        assert (session["scopes"], session["member"]) == (["inference", "manage"], None)
        assert (session["csrf_token"], session["expires_at"]) == (None, None)
