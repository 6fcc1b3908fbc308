"""A small server that speaks enough of the Hugging Face hub: repositories at commits, private ones, large
files that redirect to another host, downloads that stall or break.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import web

BLOCK = 65536


@dataclass
class Repo:
    """Files by commit; `refs` names commits. `token` opens a private one, `gated` closes it even so."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    gated: bool = False


@dataclass
class HubServer:
    """`break_after`: how many bytes each of the next downloads sends before its connection breaks. `stall`:
    a download sends one block and waits for ever, telling `stalled`; `left` is told when its client has
    gone.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    url: str = ""
    cdn: str = ""
    requests: list[str] = field(default_factory=list)
    tokens_at_cdn: list[str] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)
    ranges: bool = True
    damage: bool = False
    stall: bool = False
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, name: str, files: dict[str, bytes], **options: object) -> str:
        """A repository whose `main` has these files; returns its commit."""
        commit = hashlib.sha1(repr((name, files)).encode()).hexdigest()
        self.repos[name] = Repo({commit: files}, {"main": commit}, **options)  # type: ignore[arg-type]
        return commit

    def push(self, name: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr((name, files, "more")).encode()).hexdigest()
        self.repos[name].commits[commit] = files
        self.repos[name].refs["main"] = commit
        return commit

    async def info(self, request: web.Request) -> web.Response:
        match = re.fullmatch(
            r"(?P<repo>[^/]+(/[^/]+)?)(/revision/(?P<revision>.+))?", request.match_info["rest"]
        )
        assert match is not None
        repo = self._open(match["repo"], request)
        commit = self._commit(repo, unquote(match["revision"] or "main"))
        siblings = []
        for name, data in repo.commits[commit].items():
            sibling: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
            siblings.append(sibling)
        return web.json_response(
            {"id": match["repo"], "modelId": match["repo"], "sha": commit, "siblings": siblings, "tags": []}
        )

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        repo = self._open(request.match_info["repo"], request)
        commit = self._commit(repo, request.match_info["revision"])
        name = request.match_info["name"]
        files = repo.commits[commit]
        if name not in files:
            raise web.HTTPNotFound(headers={"x-error-code": "EntryNotFound"})
        etag = hashlib.sha256(files[name]).hexdigest()
        if name.endswith(".safetensors"):
            location = f"{self.cdn}/blob/{request.match_info['repo']}/{commit}/{name}"
            headers = {"location": location, "x-repo-commit": commit, "x-linked-etag": f'"{etag}"'}
            return web.Response(status=302, headers=headers | {"x-linked-size": str(len(files[name]))})
        return web.Response(body=files[name], headers={"x-repo-commit": commit, "etag": f'"{etag}"'})

    async def blob(self, request: web.Request) -> web.StreamResponse:
        self.tokens_at_cdn.append(request.headers.get("authorization", ""))
        repo, commit, name = (request.match_info[key] for key in ("repo", "commit", "name"))
        data = self.repos[repo].commits[commit][name]
        if self.damage:
            data = bytes(byte ^ 1 for byte in data)
        start = 0
        if self.ranges and "range" in request.headers:
            start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        await response.prepare(request)
        end = start + self.break_after.pop(0) if self.break_after else len(data)
        for position in range(start, min(end, len(data)), BLOCK):
            await response.write(data[position : min(position + BLOCK, end)])
            if self.stall:
                await self._stall()
        if end < len(data):
            assert request.transport is not None
            request.transport.close()
        return response

    async def _stall(self) -> None:
        self.stalled.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()

    def _open(self, name: str, request: web.Request) -> Repo:
        """As the hub does: what is private is not told from what does not exist."""
        repo = self.repos.get(name)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if given == "revoked":
            raise web.HTTPUnauthorized(
                headers={"x-error-message": "Invalid credentials in Authorization header"}
            )
        if repo is None or (repo.token is not None and repo.token != given):
            raise web.HTTPUnauthorized(headers={"x-error-code": "RepoNotFound"})
        if repo.gated:
            raise web.HTTPForbidden(headers={"x-error-code": "GatedRepo"})
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise web.HTTPNotFound(headers={"x-error-code": "RevisionNotFound"})
        return commit


@asynccontextmanager
async def hub_server() -> AsyncIterator[HubServer]:
    """The hub at 127.0.0.1, its large files at localhost: another host, to which no token may go."""
    server = HubServer()

    @web.middleware
    async def note(request: web.Request, handler):  # type: ignore[no-untyped-def]
        server.requests.append(request.path)
        return await handler(request)

    app = web.Application(middlewares=[note])
    app.router.add_get("/api/models/{rest:.+}", server.info)
    app.router.add_get("/blob/{repo:.+}/{commit:[0-9a-f]{40}}/{name:.+}", server.blob)
    app.router.add_get("/{repo:.+}/resolve/{revision}/{name:.+}", server.resolve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    server.url, server.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
