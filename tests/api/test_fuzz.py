"""The whole API under Schemathesis, asked by one tenant who guesses the other's names. `PILLION_TEST_FULL=1`: for long.

No answer is a 5xx, every answer is as the description says, and nothing of tenant A shows in an answer to B.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
import uvicorn
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pillion.api import app as api_app
from pillion.control import usage
from pillion.core.usage import Report, Used
from tests.api.people import browser, invited, join
from tests.api.site import Site, found
from tests.api.site import site as made_site
from tests.control.fakes import agent_server
from tests.control.world import World, fleets

EXAMPLES = 150 if os.environ.get("PILLION_TEST_FULL") else 6
SECRET = "zq-secret"  # in the name of everything of A's
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

described = schemathesis.openapi.from_dict(api_app.build(SimpleNamespace()).openapi())  # type: ignore[arg-type]


@dataclass
class Running:
    """A server in a thread of its own. `refs` and `ids`: what to put into paths, A's things and B's own."""

    url: str = ""
    key: str = ""
    secrets: set[str] = field(default_factory=set)
    refs: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


async def state(site: Site) -> dict[str, Any]:
    """All that A has."""
    nouns = ("adapters", "instances?all=true", "registered-models", "keys", "account", "members", "invites")
    nouns += ("billing/transactions", "usage/events", "jobs", "events?newest=true", "adapters/status")
    paths = [f"/v1/{noun}" for noun in nouns]
    return {path: found(await site.a.get(path)) for path in paths}


async def spend(site: Site, adapter: str, instance: int) -> None:
    """A used and paid something."""
    who = site.a.who
    used = Used(
        seq=1,
        at=site.control.clock(),
        account=who.account,
        key=who.key,
        adapter=adapter,
        version=1,
        model=f"{SECRET}-adapter:1",
        base="tiny",
        instance=instance,
        replica="r",
        region="local",
        request_id=f"{SECRET}-request",
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=1,
        status="200",
        ttft_ms=1.0,
        duration_ms=2.0,
        cold=False,
    )
    await usage.take(site.control, Report("s", 1, (used,)))
    credit = {"account": who.account, "amount": 7, "note": f"{SECRET}-note"}
    found(await site.admin.post("/v1/admin/credits", json=credit))


async def serve(root: Any, running: Running, ready: threading.Event, stop: threading.Event) -> None:
    async with agent_server() as agents, made_site(World(root, fleets(*agents, "local")), workers=1) as site:
        theirs, own = await site.a.adapter(f"{SECRET}-adapter"), await site.b.adapter("own")
        far, near = await site.running(), await site.running(site.b)
        await site.attached(site.a, far["id"], theirs)
        await site.attached(site.b, near["id"], own)
        found(await site.a.post("/v1/registered-models", {"name": f"{SECRET}-model", "source": "hf:x/y"}))
        invite = await invited(site.a, f"{SECRET}-invite@example.com")
        async with browser(site) as window:
            member = (await join(site, window, site.a, f"{SECRET}@example.com", "owner"))["member"]
        await spend(site, theirs["id"], far["id"])
        foreign = {theirs["id"], site.a.who.account, site.a.who.key, member["id"], invite["id"]}
        running.secrets = {SECRET, *foreign}
        running.refs = [
            theirs["id"],
            theirs["name"],
            str(theirs["row_id"]),
            own["id"],
            "own",
            f"{SECRET}-model",
            *sorted(foreign),
        ]
        running.ids = [far["id"], near["id"]]
        running.key = site.b.manage.headers["authorization"]
        running.before = await state(site)
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        running.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(site.app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve([bound]))
        while not server.started:
            await asyncio.sleep(0.01)
        ready.set()
        await asyncio.to_thread(stop.wait)
        running.after = await state(site)
        server.should_exit = True
        await serving


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made, ready, stop = Running(), threading.Event(), threading.Event()
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        thread = threading.Thread(target=lambda: asyncio.run(serve(root, made, ready, stop)))
        thread.start()
        assert ready.wait(60)
        yield made
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert made.after == made.before, "B changed something of A's"


def aim(case: schemathesis.Case, running: Running) -> None:
    """Put things that exist in half of the paths: generated ones hardly ever hit any."""
    for name, value in case.path_parameters.items():
        chosen: list[Any] = running.ids if name == "id" and "/instances/" in case.path else running.refs
        number = sum(str(value).encode("utf-8", "replace"))
        if number % 2:
            case.path_parameters[name] = chosen[number // 2 % len(chosen)]


@described.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=not os.environ.get("PILLION_TEST_FULL"),
    database=None,
)
def test_any_request(case: schemathesis.Case, running: Running) -> None:
    aim(case, running)
    if case.query:
        case.query.pop("follow", None)  # streams that end when what they follow does
    answer = case.call(base_url=running.url, headers={"authorization": running.key}, timeout=60)
    case.validate_response(answer, checks=CHECKS)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    asked = f"{case.path_parameters} {case.query} {case.body}"
    shown = leaked(running.secrets, answer.content, asked)
    assert not shown, f"{case.method} {case.path} shows {shown} of another tenant: {answer.content!r}"


def leaked(secrets: Iterable[str], content: bytes, asked: str) -> set[str]:
    """What an answer shows of the other tenant that its caller did not say itself."""
    text = _without_own_words(content)
    return {secret for secret in secrets if secret.encode() in text and secret not in asked}


def test_a_leak_is_seen() -> None:
    answer = f'{{"data":[{{"name":"{SECRET}-adapter","subject":"/v1/adapters/adp_x"}}]}}'.encode()
    assert leaked({SECRET, "adp_x"}, answer, "{} {} None") == {SECRET}
    assert leaked({SECRET}, answer, f"{{'ref': '{SECRET}-adapter'}}") == set()


def test_every_path_of_the_api_is_asked() -> None:
    routes = [route for noun in api_app.NOUNS for route in noun.router.routes if isinstance(route, APIRoute)]
    served = {
        (method, route.path.replace(":path}", "}")) for route in routes for method in route.methods or ()
    }
    asked = {(op.ok().method.upper(), op.ok().path) for op in described.get_all_operations()}
    assert asked >= served


def _without_own_words(content: bytes) -> bytes:
    """Who did what tells the paths that the caller asked for before."""
    return re.sub(rb'"subject":"/v1/[^"]*"', b"", content)
