"""Every request is counted once, through crashes of everything that counts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx

from pillion.sdk import Pillion
from pillion.sdk.types import UsageEvent

from .site import Site, adapter_file, ask, until


def stream(site: Site, model: str, tokens: int, seen: threading.Event) -> None:
    """Takes a stream until it breaks."""
    body = {"model": model, "prompt": "hi", "max_tokens": tokens, "stream": True}
    headers = {"authorization": f"Bearer {site.admin}"}
    try:
        with httpx.stream(
            "POST", f"{site.url}/v1/completions", json=body, headers=headers, timeout=60
        ) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    seen.set()
    except httpx.HTTPError:
        pass


def events(client: Pillion, count: int) -> list[UsageEvent]:
    def enough() -> list[UsageEvent]:
        found = list(client.usage.events())
        return found if len(found) >= count else []

    return until(enough, f"{count} usage events")


def one(site: Site, part: str) -> Any:
    return until(lambda: site.processes(part), f"a process {part}")[0]


def test_what_was_used_is_told_by_adapter_and_base(own_site: Site, tmp_path: Path) -> None:
    with own_site.client() as client:
        instance = own_site.launch(client)
        made = client.adapters.upload("captain", "tiny", adapter_file(tmp_path, 1))
        client.adapters.attach("captain", instance)
        client.adapters.wait_ready("captain", instance)
        for model in (made.aliases[0], made.aliases[0], "tiny"):
            ask(client, model)
        first, second, base = events(client, 3)
        assert first.adapter_id == second.adapter_id == made.id
        assert (base.adapter_id, base.status, base.completion_tokens) == (None, "200", 4)
        assert first.model == made.aliases[0]
        assert first.ttft_ms is not None
        summary = client.usage.summary(window="24h", group_by="adapter")
        by_group = {one["group"]: one["requests"] for one in summary["data"]}
        assert by_group == {made.id: 2, "": 1}
        assert client.usage.snapshot()["adapter_coverage"]["requests"] == 2 / 3


def test_kills_of_gateway_control_and_both_lose_and_double_nothing(own_site: Site, tmp_path: Path) -> None:
    site = own_site
    with site.client() as client:
        site.launch(client, "slow")
        sent = 0
        for part in ("gateway", "control", "gateway"):
            for _ in range(5):
                until(lambda: ask(client, "slow"), "an answer")
                sent += 1
            seen = threading.Event()
            endless = threading.Thread(target=stream, args=(site, "slow", 30_000, seen))
            endless.start()
            assert seen.wait(20)
            killed = one(site, part)
            killed.kill()
            if part == "control":
                for _ in range(3):
                    ask(client, "slow")
                    sent += 1
                one(site, "gateway").kill()  # with what control has not heard of
            endless.join(60)
            sent += 1
            until(lambda: client.instances.list(), "the API again")
        found = events(client, sent)
        until(lambda: ask(client, "slow"), "an answer at the end")
        found = events(client, sent + 1)
        assert len(found) == sent + 1
        assert len({event.request_id for event in found}) == sent + 1
        statuses = sorted(event.status for event in found)
        assert statuses == ["200"] * (sent - 2) + ["lost"] * 3
