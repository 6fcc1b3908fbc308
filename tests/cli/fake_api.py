"""A small control server that remembers what it was asked. It runs on a thread of its own, on a free port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

KEY = "pil_test"
MEMBER = {"id": "mem_1", "email": "ann@x.org", "name": "Ann", "role": "member", "created_at": 1_700_000_000.0}
GATEWAY = {
    "id": "gwy_1",
    "name": "eu-1",
    "created_at": 1.0,
    "expires_at": 86401.0,
    "joined_at": None,
    "revoked_at": None,
    "token": "pgj_shown_once",
}
INVITE = {
    "id": "inv_1",
    "email": "bob@x.org",
    "role": "member",
    "created_by": "key_1",
    "expires_at": 1_700_000_000.0,
    "token": "pii_shown_once",
}
Run = Callable[..., Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error(status: int, code: str, message: str, **more: Any) -> web.Response:
    body = {"error": {"message": message, "type": "t", "param": None, "code": code, **more}}
    return web.json_response(body, status=status, headers={"x-request-id": "req-7"})


def listing(data: list[Any], following: str | None = None) -> web.Response:
    return web.json_response(
        {"object": "list", "data": data, "has_more": following is not None, "next": following}
    )


def adapter(row_id: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "object": "adapter",
        "id": f"adp_{row_id:020d}",
        "row_id": row_id,
        "name": name,
        "label": name,
        "aliases": [f"{name}:{row_id}"],
        "base_model": "tiny",
        "region": None,
        "state": "registered",
        "version": 1,
        "digest": "ab" * 32,
        "rank": 8,
        "alpha": 16.0,
        "target_modules": ["q_proj", "v_proj"],
        "size_bytes": 1_234_567,
        "attachments": [],
        "warnings": [],
        "created_at": 1_700_000_000.0,
        "from_the_future": {"x": 1},
        **more,
    }


def attachment(instance: int, state: str, ready: int, **more: Any) -> dict[str, Any]:
    return {
        "adapter_id": "adp_1",
        "adapter_row_id": 1,
        "adapter": "pirate",
        "instance_id": instance,
        "attached": True,
        "pinned": False,
        "state": state,
        "ready": ready,
        "wanted": 2,
        "created_at": 1_700_000_000.0,
        "error": None,
        "aliases": ["pirate:1", "tiny:pirate"],
        **more,
    }


def instance(number: int, state: str, ready: int = 0, **more: Any) -> dict[str, Any]:
    replicas = [
        {
            "id": f"r{number}-local-{i}",
            "region": "local",
            "state": "ready" if i < ready else "loading",
            "ready": i < ready,
            "detail": "" if i < ready else "reading weights",
            "since": None,
            "restarts": 0,
            "adapters": [],
            "engine": {},
            "error": None,
        }
        for i in range(2)
    ]
    return {
        "id": number,
        "model": "tiny",
        "model_string": f"tiny:{number}",
        "state": state,
        "shared": False,
        "replicas": replicas,
        "lora": {"enabled": True, "max_adapters": 16, "max_rank": 64, "max_active": 17, "on_demand": False},
        "gpu_type": "cpu",
        "gpu_count": 1,
        "engine": "sim",
        "regions": {"local": 2},
        "attachments": [],
        "termination_reason": None,
        "created_at": 1_700_000_000.0,
        **more,
    }


def job(state: str, progress: float, message: str, **more: Any) -> dict[str, Any]:
    return {
        "object": "job",
        "id": "job_1",
        "kind": "import",
        "state": state,
        "progress": progress,
        "message": message,
        "subject": {"adapter": "adp_1"},
        "error": None,
        "created_at": 1_700_000_000.0,
        "updated_at": 1_700_000_000.0,
        "log": ["one", "two"],
        **more,
    }


IMPORT_FAILED = {"code": "adapter_invalid", "message": "rank 128 is over the limit 64"}
SECRET = {
    "id": "key_1",
    "name": "ci",
    "scopes": ["inference"],
    "created_at": 1.7e9,
    "revoked_at": None,
    "key": "pil_shown_once",
}


EXPLAINED = {
    "adapter_id": "adp_1",
    "name": "pirate",
    "version": 2,
    "served": True,
    "summary": "pirate is served by 1 of 2 replicas.",
    "places": [
        {
            "instance_id": 1,
            "model": "tiny",
            "instance_state": "degraded",
            "wish": "attached",
            "state": "attaching",
            "serving": 1,
            "wanted": 2,
            "since": 1.7e9,
            "replicas": [
                {
                    "replica": "r1-eu-a",
                    "region": "eu",
                    "state": "loaded",
                    "serving": True,
                    "version": 2,
                    "since": 1.7e9,
                    "load_ms": 45.4,
                    "last_used": 1.7e9,
                },
                {
                    "replica": "r1-us-b",
                    "region": "us",
                    "state": "registered",
                    "why_not": "its engine is\x1b[31m loading",
                    "next": "it is loaded when the engine is ready",
                },
            ],
            "why_not": [],
            "next": ["once it is served here, instance 3 lets it go"],
        },
        {"instance_id": 3, "model": "tiny", "wish": "none", "why_not": ["nothing asks for it here"]},
    ],
}


WALLET = {"enabled": True, "available": 2_490_000, "held": 0, "free": 2_000_000, "leased": 490_000, "owed": 0}
USED = {
    "id": 7,
    "at": 1_700_000_000.0,
    "request_id": "req-7",
    "status": "200",
    "key_id": "key_1",
    "model": "pirate:1",
    "base_model": "tiny",
    "adapter_id": "adp_1",
    "adapter_version": 1,
    "instance_id": 1,
    "replica": "r",
    "region": "local",
    "prompt_tokens": 3,
    "cached_tokens": 0,
    "completion_tokens": 4,
    "ttft_ms": 1.5,
    "duration_ms": 2.5,
    "cold": False,
}
TRANSACTION = {
    "object": "transaction",
    "id": 1,
    "at": 1_700_000_000.0,
    "kind": "topup",
    "amount": 2_490_000,
    "available_change": 2_490_000,
    "held_change": 0,
    "balance_after": 2_490_000,
    "held_after": 0,
    "subject": "account",
    "model": None,
    "note": "thanks",
}
PRICE = {
    "object": "price",
    "id": 1,
    "kind": "gpu_hour",
    "item": "H100",
    "region": "eu-1",
    "hourly": 2_490_000,
    "input": None,
    "output": None,
    "effective_at": 1_700_000_000.0,
    "source": "config",
    "created_at": 1_700_000_000.0,
}


class FakeApi:
    """`requests` are (method, path with query, body). The states of `attaching` and `starting` are told one by one."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, Any]] = []
        self.uploaded: dict[str, Any] = {}
        self.attaching: list[list[dict[str, Any]]] = []
        self.starting: list[dict[str, Any]] = []
        self.job: list[dict[str, Any]] = [job("running", 0.5, "downloading"), job("succeeded", 1.0, "done")]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> FakeApi:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application(middlewares=[self._noting], client_max_size=1 << 40)
        for method, path, handler in self._routes():
            app.router.add_route(method, path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    @web.middleware
    async def _noting(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return error(401, "invalid_api_key", "The API key is missing or wrong.")
        body = (
            await request.json()
            if request.content_type == "application/json" and request.can_read_body
            else None
        )
        self.requests.append((request.method, request.path_qs, body))
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return error(404, "not_found", f"there is nothing at {request.path}")

    def _add_version(self, made: dict[str, Any]) -> Handler:
        async def handler(request: web.Request) -> web.Response:
            if request.content_type == "application/json":
                body = {"adapter": adapter(1, "pirate"), "job": job("queued", 0.0, "")}
                return web.json_response(body, status=202)
            return web.json_response(made, status=201)

        return handler

    def _routes(self) -> list[tuple[str, str, Handler]]:
        def always(make: Callable[[], Any], status: int = 200) -> Handler:
            async def handler(_: web.Request) -> web.Response:
                return web.json_response(make(), status=status)

            return handler

        def pages(*data: Any) -> Handler:
            async def handler(_: web.Request) -> web.Response:
                return listing(list(data))

            return handler

        event = {
            "id": 1,
            "at": 1.7e9,
            "kind": "attached",
            "subject": "adapter:adp_1",
            "detail": {"by": "key_1"},
        }
        audited = {
            "id": 4,
            "at": 1.7e9,
            "account": "acc_1",
            "by": "key_1",
            "action": "attach_adapter",
            "subject": "/v1/instances/1/adapters",
            "made": "adp_1",
            "status": 409,
            "error": "already_attached",
            "request_id": "req_1",
        }
        account = {"id": "acc_1", "name": "default", "tier": "shared", "created_at": 1.7e9}
        model = {
            "name": "tiny",
            "kind": "chat",
            "source": "path:/m",
            "lora": True,
            "engine": "sim",
            "registered": False,
        }
        own = {**model, "name": "mine", "registered": True, "region": "local"}
        deleted = {"id": "x", "deleted": True, "unacknowledged": []}
        loaded = attachment(1, "attaching", 0, attached=False, pinned=True)
        eligible = {
            "instance_id": 1,
            "model": "tiny",
            "eligible": True,
            "reasons": [],
            "slots": 16,
            "used": 1,
            "free": 15,
        }
        full = {**eligible, "instance_id": 2, "eligible": False, "reasons": ["full", "other base"], "free": 0}
        version = {
            "version": 1,
            "digest": "ab" * 32,
            "live": True,
            "rank": 8,
            "alpha": 16.0,
            "size_bytes": 9,
            "state": "live",
        }
        on_its_way = {**version, "live": False, "state": "going_live", "ready": 1, "wanted": 2}
        why = {"code": "adapter_ineffective", "message": "it changes nothing"}
        bad = {**version, "version": 2, "live": False, "state": "failed", "error": why}
        tried = {**on_its_way, "version": 3, "state": "canary", "share": 0.25}
        return [
            ("GET", "/v1/adapters", self._list_adapters),
            ("POST", "/v1/adapters", self._import),
            ("POST", "/v1/adapters/upload", self._upload),
            ("GET", "/v1/adapters/status", pages(BACKEND, EMPTY_BACKEND)),
            ("POST", "/v1/adapters/warmup", pages(loaded)),
            ("GET", "/v1/adapters/{ref}", self._get_adapter),
            ("PATCH", "/v1/adapters/{ref}", always(lambda: adapter(1, "pirate", label="captain"))),
            ("DELETE", "/v1/adapters/{ref}", self._delete_adapter),
            ("POST", "/v1/adapters/{ref}/deploy", self._deploy),
            ("POST", "/v1/adapters/{ref}/move", always(lambda: attachment(2, "attaching", 0), 202)),
            ("POST", "/v1/adapters/{ref}/load", pages(loaded)),
            ("POST", "/v1/adapters/{ref}/unload", pages({**loaded, "state": "detaching"})),
            ("GET", "/v1/adapters/{ref}/eligible-instances", pages(eligible, full)),
            ("GET", "/v1/adapters/{ref}/explain", always(lambda: EXPLAINED)),
            ("GET", "/v1/adapters/{ref}/versions", pages(version, bad, tried)),
            ("POST", "/v1/adapters/{ref}/versions", self._add_version(on_its_way)),
            ("POST", "/v1/adapters/{ref}/versions/{version}/live", always(lambda: bad, 202)),
            ("POST", "/v1/adapters/{ref}/rollback", always(lambda: version)),
            ("PUT", "/v1/adapters/{ref}/canary", always(lambda: tried, 202)),
            ("DELETE", "/v1/adapters/{ref}/canary", always(lambda: {**bad, "unacknowledged": ["gw_1"]})),
            ("GET", "/v1/adapters/{ref}/events", pages(event)),
            ("GET", "/v1/adapters/{ref}/download", self._download),
            ("GET", "/v1/events", self._events),
            ("GET", "/v1/admin/events", pages({**event, "account": "acc_2"})),
            ("GET", "/v1/account/audit", pages(audited)),
            ("GET", "/v1/admin/audit", pages({**audited, "status": None, "error": None})),
            ("GET", "/v1/instances", pages(instance(1, "running", 2), instance(2, "starting"))),
            ("POST", "/v1/instances", always(lambda: instance(3, "pending"), 202)),
            ("GET", "/v1/instances/{id}", self._get_instance),
            ("DELETE", "/v1/instances/{id}", always(lambda: instance(3, "stopping"), 202)),
            ("GET", "/v1/instances/{id}/logs", self._logs),
            ("GET", "/v1/instances/{id}/events", pages(event)),
            ("GET", "/v1/instances/{id}/adapters", pages(attachment(1, "ready", 2))),
            ("POST", "/v1/instances/{id}/adapters", self._attach),
            (
                "DELETE",
                "/v1/instances/{id}/adapters/{ref}",
                always(lambda: attachment(1, "detaching", 1), 202),
            ),
            ("GET", "/v1/catalog", pages(model)),
            ("GET", "/v1/registered-models", pages(own)),
            ("POST", "/v1/registered-models", always(lambda: own, 201)),
            ("GET", "/v1/registered-models/{name}", always(lambda: own)),
            ("DELETE", "/v1/registered-models/{name}", always(lambda: deleted)),
            ("GET", "/v1/regions", pages({"name": "local", "gpus": {"cpu": 4}})),
            ("GET", "/v1/gpu-types", pages({"name": "H100", "memory_gib": 80.0, "rate_per_hour": "2.49"})),
            ("GET", "/v1/jobs", pages(job("running", 0.5, "downloading"))),
            ("GET", "/v1/jobs/{id}", self._get_job),
            ("POST", "/v1/jobs/{id}/cancel", always(lambda: job("cancelled", 0.5, "cancelled"))),
            ("GET", "/v1/keys", pages({**SECRET, "key": None})),
            ("POST", "/v1/keys", always(lambda: SECRET, 201)),
            ("GET", "/v1/keys/{id}", always(lambda: {**SECRET, "key": None})),
            ("PATCH", "/v1/keys/{id}", always(lambda: {**SECRET, "key": None})),
            ("GET", "/v1/members", pages(MEMBER)),
            ("PATCH", "/v1/members/{id}", always(lambda: {**MEMBER, "role": "owner"})),
            ("DELETE", "/v1/members/{id}", always(lambda: {**MEMBER, "unacknowledged": ["gw-1"]})),
            ("GET", "/v1/invites", pages({**INVITE, "token": None})),
            ("POST", "/v1/invites", always(lambda: INVITE, 201)),
            ("DELETE", "/v1/invites/{id}", always(lambda: deleted)),
            ("GET", "/v1/admin/gateways", pages({**GATEWAY, "token": None})),
            ("POST", "/v1/admin/gateways", always(lambda: GATEWAY, 201)),
            ("DELETE", "/v1/admin/gateways/{id}", always(lambda: deleted)),
            ("GET", "/v1/admin/accounts/{id}", always(lambda: account)),
            ("PATCH", "/v1/admin/accounts/{id}", always(lambda: {**account, "unacknowledged": ["gw-1"]})),
            ("DELETE", "/v1/admin/accounts/{id}", always(lambda: deleted)),
            ("POST", "/v1/admin/accounts/{id}/invites", always(lambda: INVITE, 201)),
            ("DELETE", "/v1/keys/{id}", always(lambda: {**SECRET, "key": None, "unacknowledged": ["gw-1"]})),
            ("GET", "/v1/account", always(lambda: account)),
            ("PUT", "/v1/account/hf-token", always(lambda: deleted)),
            ("DELETE", "/v1/account/hf-token", always(lambda: deleted)),
            ("GET", "/v1/admin/accounts", pages(account)),
            ("POST", "/v1/admin/accounts", always(lambda: account, 201)),
            ("POST", "/v1/admin/accounts/{id}/keys", always(lambda: SECRET, 201)),
            ("GET", "/v1/usage/summary", pages({"adapter": "pirate", "requests": 3, "tokens": 42})),
            ("GET", "/v1/usage/events", self._used),
            ("GET", "/v1/billing/snapshot", always(lambda: {"wallet": WALLET, "paid": 1_500_000})),
            ("GET", "/v1/billing/transactions", pages(TRANSACTION)),
            ("GET", "/v1/admin/credits", pages(TRANSACTION)),
            ("POST", "/v1/admin/credits", always(lambda: TRANSACTION, 201)),
            ("GET", "/v1/admin/prices", pages(PRICE)),
            ("POST", "/v1/admin/prices", always(lambda: PRICE, 201)),
            ("POST", "/v1/chat/completions", self._chat),
        ]

    async def _list_adapters(self, request: web.Request) -> web.Response:
        """Two pages of one."""
        if request.query.get("after") == "c1":
            return listing([adapter(2, "poet")])
        return listing([adapter(1, "pirate", attachments=[attachment(1, "ready", 2)])], "c1")

    async def _used(self, request: web.Request) -> web.Response:
        if request.query.get("format") == "csv":
            return web.Response(text="id,model\r\n7,pirate:1\r\n", content_type="text/csv")
        return listing([USED])

    async def _import(self, request: web.Request) -> web.Response:
        body = {"adapter": adapter(1, "pirate", state="importing"), "job": job("queued", 0.0, "queued")}
        return web.json_response(body, status=202)

    async def _upload(self, request: web.Request) -> web.Response:
        async for part in await request.multipart():
            digest, length = hashlib.sha256(), 0
            data = b""
            while chunk := await part.read_chunk(65536):
                digest.update(chunk)
                length += len(chunk)
                data = chunk if length <= 65536 else b""
            self.uploaded[part.name] = (part.filename, length, digest.hexdigest(), data)
        if self.uploaded["name"][3] == b"bad":
            reasons = ["q_proj: A without B", "rank 128 is over 64"]
            return error(422, "adapter_invalid", "the adapter cannot be accepted", reasons=reasons)
        warned = adapter(1, "pirate", warnings=["lora_alpha is unknown: taken as the rank, 8"])
        return web.json_response(warned, status=201)

    async def _get_adapter(self, request: web.Request) -> web.Response:
        if request.match_info["ref"] == "nobody":
            return error(404, "not_found", "there is no adapter 'nobody'; GET /v1/adapters lists yours.")
        attachments = self.attaching.pop(0) if len(self.attaching) > 1 else (self.attaching or [[]])[0]
        return web.json_response(adapter(1, "pirate", attachments=attachments))

    async def _delete_adapter(self, request: web.Request) -> web.Response:
        if request.query.get("force") != "true":
            return error(409, "adapter_in_use", "pirate is attached to instance 1; detach it or use force.")
        return web.json_response({"id": "adp_1", "deleted": True, "unacknowledged": []})

    async def _deploy(self, request: web.Request) -> web.Response:
        target = (await request.json()).get("attach", {}).get("instance_id", 3)
        return web.json_response(attachment(target, "attaching", 0), status=202)

    async def _download(self, request: web.Request) -> web.Response:
        headers = {"content-disposition": 'attachment; filename="../../evil.safetensors"'}
        return web.Response(body=b"weights", content_type="application/octet-stream", headers=headers)

    async def _get_instance(self, request: web.Request) -> web.Response:
        if not self.starting:
            return web.json_response(instance(int(request.match_info["id"]), "running", 2))
        return web.json_response(self.starting.pop(0) if len(self.starting) > 1 else self.starting[0])

    async def _attach(self, request: web.Request) -> web.Response:
        if request.match_info["id"] == "9":
            return error(409, "instance_at_capacity", "model instance at capacity")
        return web.json_response(attachment(int(request.match_info["id"]), "attaching", 0), status=202)

    async def _stream(self, request: web.Request, kind: str, parts: list[str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": kind})
        await response.prepare(request)
        for part in parts:
            await response.write(part.encode())
        return response

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        lines = ["starting\n", "ready\n", *(["more\n"] if request.query.get("follow") else [])]
        response = await self._stream(request, "text/plain; charset=utf-8", lines)
        if request.match_info["id"] == "7":
            await asyncio.Event().wait()
        return response

    async def _events(self, request: web.Request) -> web.StreamResponse:
        event = {"at": 1.7e9, "subject": "adapter:adp_1"}
        if not request.query.get("follow"):
            return listing([{**event, "id": n, "kind": f"k{n}", "detail": {"by": "key_1"}} for n in (3, 2)])
        later = json.dumps({**event, "id": 4, "kind": "k4", "detail": {}})
        return await self._stream(request, "application/x-ndjson", ["\n", later + "\n"])

    async def _get_job(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("follow"):
            lines = [json.dumps(state) + "\n" for state in self.job]
            return await self._stream(request, "application/x-ndjson", lines)
        return web.json_response(self.job[-1])

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        words = ["Ahoy", ", ", "matey"]
        if body["model"] == "unknown":
            return error(404, "model_not_found", "The model 'unknown' does not exist")
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            return web.json_response({"id": "c", "model": body["model"], "choices": [{"message": message}]})
        events = [f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n" for word in words]
        if body["model"] == "failing":
            events.append('data: {"error": {"message": "the engine died", "code": "no_healthy_replica"}}\n\n')
        elif body["model"] != "cut":
            events.append("data: [DONE]\n\n")
        return await self._stream(request, "text/event-stream", events)


BACKEND = {
    "instance_id": 1,
    "model": "tiny",
    "slots": 17,
    "used": 1,
    "free": 16,
    "adapters": [
        {
            "adapter_id": "adp_1",
            "name": "pirate",
            "state": "loaded",
            "pinned": True,
            "last_used": 1.7e9,
            "expires_at": None,
            "error": None,
        }
    ],
}
EMPTY_BACKEND = {**BACKEND, "instance_id": 2, "used": 0, "free": 17, "adapters": []}
