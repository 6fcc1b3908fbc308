"""Members of the tenants in a test, each with a browser that keeps cookies and sends the token along."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.api.site import Site, Tenant, found

PASSWORD = "correct horse 7"


class Browser:
    """`csrf` is what the last login told."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.csrf: str | None = None

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        token = {"x-pillion-csrf": self.csrf} if self.csrf else {}
        answer = await self.client.request(method, path, json=body, headers={**token, **headers})
        if answer.is_success and answer.cookies:
            self.csrf = answer.json().get("csrf_token")
        return answer

    async def get(self, path: str) -> httpx.Response:
        return await self.ask("GET", path)

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.ask("POST", path, body)

    async def log_in(self, email: str, password: str = PASSWORD, **more: str) -> httpx.Response:
        return await self.post("/v1/auth/login", {"email": email, "password": password, **more})


@asynccontextmanager
async def browser(site: Site) -> AsyncIterator[Browser]:
    transport = httpx.ASGITransport(site.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://pillion", timeout=60) as client:
        yield Browser(client)


async def invited(tenant: Tenant, email: str, role: str = "member") -> dict[str, Any]:
    return found(await tenant.post("/v1/invites", {"email": email, "role": role}))


async def join(
    site: Site, browser: Browser, tenant: Tenant, email: str, role: str = "member"
) -> dict[str, Any]:
    """A new member, who is logged in there; the session."""
    made = await invited(tenant, email, role)
    body = {"token": made["token"], "name": email.partition("@")[0], "password": PASSWORD}
    return found(await browser.post("/v1/invites/accept", body))
