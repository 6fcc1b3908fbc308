"""An identity provider: real HTTP on a port of its own, real signed tokens, and what may be wrong with them."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey

CLIENT, SECRET = "pillion", "s3cret"


@dataclass
class IdentityProvider:
    """`person` is who logs in next. `claims` and `header` change what the token says; `key` signs it."""

    issuer: str = ""
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "u1", "name": "Uma"})
    claims: Callable[[dict[str, Any]], dict[str, Any]] = lambda claims: claims
    algorithm: str = "RS256"
    key: Any = None
    published: Any = None
    down: bool = False
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.down:
            return web.Response(status=502)
        if request.path == "/.well-known/openid-configuration":
            return web.json_response(
                {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize?prompt=login",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                }
            )
        if request.path == "/keys":
            return web.json_response(KeySet([self.published]).as_dict(private=False))
        return self._authorize(request) if request.path == "/authorize" else await self._token(request)

    def _authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = f"code-{len(self.codes)}"
        self.codes[code] = query
        back = urlencode({"code": code, "state": query["state"]})
        return web.Response(status=302, headers={"location": f"{query['redirect_uri']}?{back}"})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self.codes.pop(str(form["code"]), None)
        given = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {given}":
            return web.json_response({"error": "invalid_client"}, status=401)
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            asked is None
            or challenge != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.person,
        }
        header = {"alg": self.algorithm, "kid": self.key.kid}
        token = jwt.encode(header, self.claims(claims), self.key, algorithms=[self.algorithm])
        return web.json_response({"id_token": token, "access_token": "at", "token_type": "Bearer"})


def new_key(kid: str = "k1") -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid})


def shared_secret() -> OctKey:
    return OctKey.import_key(SECRET * 8, {"kid": "k1"})


@asynccontextmanager
async def identity_provider(key: RSAKey) -> AsyncIterator[IdentityProvider]:
    made = IdentityProvider(key=key, published=key)
    runner = web.ServerRunner(web.Server(made.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.issuer = f"http://{host}:{port}"
    try:
        yield made
    finally:
        await runner.cleanup()
