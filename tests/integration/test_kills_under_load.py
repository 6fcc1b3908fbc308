"""Gateway, control and database are killed in turn under load: every request and every usage event is accounted for."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from pillion.sdk.types import UsageEvent
from tests.postgres import Cluster, Server, own_postgres

from .site import Site, running, until

__all__ = ["own_postgres"]

ASKING = 4
STREAMING = 3
EACH = 5


@dataclass
class Client(threading.Thread):
    """Asks again and again until told to stop. `answered`: ids of those whose answer came whole.

    `cut`: ids of those that broke after their headers; `broken`: the phases in which others failed.
    """

    site: Site
    stream: bool
    phase: list[str]
    answered: list[str] = field(default_factory=list)
    cut: list[tuple[str, str]] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        headers = {"authorization": f"Bearer {self.site.admin}"}
        with httpx.Client(base_url=self.site.url, headers=headers, timeout=60) as client:
            while not self.over.is_set():
                self._ask(client)

    def _ask(self, client: httpx.Client) -> None:
        body = {
            "model": "slow",
            "prompt": "hi",
            "max_tokens": 20 if self.stream else 3,
            "stream": self.stream,
        }
        began, identity, last = self.phase[0], "", ""
        try:
            with client.stream("POST", "/v1/completions", json=body) as answer:
                identity = answer.headers["x-request-id"]
                for line in answer.iter_lines():
                    last = line or last
            whole = answer.status_code == 200 and (not self.stream or last == "data: [DONE]")
            why = f"{answer.status_code}: {last}"
        except httpx.HTTPError as error:
            whole, why = False, repr(error)
        if whole:
            self.answered.append(identity)
        elif identity:
            self.cut.append((began, identity))
        else:
            self.broken.append((began, why))


def test_every_request_and_every_event_is_accounted_for(
    own_postgres: tuple[Cluster, Server], tmp_path: Path
) -> None:
    cluster, database = own_postgres
    with running(Site(tmp_path, database=cluster.url(cluster.create())), "--workers", "2") as site:
        with site.client() as client:
            site.launch(client, "slow")
        phase = ["before"]
        clients = [Client(site, number < STREAMING, phase) for number in range(STREAMING + ASKING)]
        for one in clients:
            one.start()
        more(clients)
        for part in ("gateway", "control"):
            phase[0] = part
            one_of(site, part).kill()
            until(
                lambda part=part: len(site.processes(part)) == (2 if part == "gateway" else 1),
                f"{part} again",
            )
            more(clients)
            until(lambda: catalogue(site) == 200, "the API again")
        phase[0] = "database"
        database.kill()
        more(clients)
        one_of(site, "gateway").kill()  # with events that nobody could take
        phase[0] = "gateway and database"
        more(clients)
        database.start()
        until(lambda: catalogue(site) == 200, "the API again")
        phase[0] = "after"
        more(clients)
        for one in clients:
            one.over.set()
        for one in clients:
            one.join(60)
        account(site, clients)


def more(clients: list[Client]) -> None:
    """Until each of them has had so many more answers."""
    wanted = [len(one.answered) + EACH for one in clients]
    until(
        lambda: all(len(one.answered) >= count for one, count in zip(clients, wanted, strict=True)),
        f"answers; failed so far: {[one.broken for one in clients]}",
    )


def account(site: Site, clients: list[Client]) -> None:
    answered = [identity for one in clients for identity in one.answered]
    cut = [pair for one in clients for pair in one.cut]
    broken = [pair for one in clients for pair in one.broken]
    assert {phase for phase, _ in cut + broken} <= KILLED, "only who kills a gateway breaks requests"
    expected = {*answered, *(identity for _, identity in cut)}
    events = until(lambda: told(site, expected), f"{len(expected)} events")
    ids = Counter(event.request_id for event in events)
    assert set(ids.values()) == {1}, "told once"
    status = {event.request_id: event.status for event in events}
    assert {status[identity] for identity in answered} == {"200"}
    # Told before its last byte is written: what was cut may be done all the same.
    assert {status[identity] for _, identity in cut} <= {"lost", "200"}
    # Who was cut before the headers does not know its id: such a request was counted, or had not come in yet.
    others = [status[identity] for identity in ids if identity not in expected]
    assert len(others) <= len(broken)
    assert set(others) <= {"lost", "200"}
    assert any(value == "lost" for value in status.values()), "kills under load lose some"


# A request that began just before a kill is of the phase before.
KILLED = {"before", "gateway", "database", "gateway and database"}


def told(site: Site, expected: set[str]) -> list[UsageEvent]:
    """All events once those that are expected are among them, and no gateway has more to tell."""
    behind = [line for _ in range(20) for line in metric(site) if not line.endswith(" 0.0")]
    with site.client() as client:
        found = list(client.usage.events())
    missing = expected - {event.request_id for event in found}
    assert not missing, f"{len(missing)} not told yet"
    return found if not behind else []


def metric(site: Site) -> list[str]:
    lines = httpx.get(f"{site.url}/metrics").text.splitlines()
    return [line for line in lines if line.startswith("pillion_gateway_usage_behind")]


def catalogue(site: Site) -> int:
    return httpx.get(f"{site.url}/v1/catalog", headers={"authorization": f"Bearer {site.admin}"}).status_code


def one_of(site: Site, part: str):  # type: ignore[no-untyped-def]
    return until(lambda: site.processes(part), f"a process {part}")[0]
