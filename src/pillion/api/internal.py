"""The internal API, on a listener of its own: gateways fetch routing snapshots here."""

from __future__ import annotations

import hmac

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pillion.control.context import Control

MAX_WAIT_S = 30.0


def build(control: Control, token: str) -> Starlette:
    async def snapshot(request: Request) -> Response:
        """`?gateway=<id>&after=<version>&wait=<s>`: the newest snapshot (msgpack), or 204 where there is none newer.

        Asking for what comes after a version says that the gateway has applied it.
        """
        offered = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(offered.encode(), token.encode()):
            return Response(status_code=401)
        try:
            after = int(request.query_params.get("after", "0"))
            wait = min(MAX_WAIT_S, float(request.query_params.get("wait", "0")))
        except ValueError:
            return Response(status_code=400)
        control.gateways.heard(request.query_params.get("gateway", "?")[:80], after)
        data = await control.publisher.after(after, wait)
        if data is None:
            return Response(status_code=204)
        return Response(data, media_type="application/msgpack")

    return Starlette(routes=[Route("/internal/v1/snapshot", snapshot)])
