"""What one would write in an afternoon: an ASGI proxy on uvicorn with aiohttp as its client, and nothing but forwarding.

python bench/gateway/asgi_proxy.py --port 9104 --upstream http://127.0.0.1:9101
"""

from __future__ import annotations

import argparse
from typing import Any

import aiohttp
import uvicorn

NOT_PASSED_ON = frozenset([b"host", b"connection", b"content-length", b"transfer-encoding", b"keep-alive"])


class Proxy:
    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self.session is None:
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=None)
            self.session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        fields = [(k.decode(), v.decode("latin-1")) for k, v in scope["headers"] if k not in NOT_PASSED_ON]
        url = self.upstream + scope["path"]
        async with self.session.request(scope["method"], url, data=body, headers=fields) as answer:
            passed = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in NOT_PASSED_ON]
            if answer.content_length is not None:
                passed.append((b"content-length", str(answer.content_length).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": passed})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    uvicorn.run(
        Proxy(options.upstream),
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        backlog=4096,
    )


if __name__ == "__main__":
    main()
