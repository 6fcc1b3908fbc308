"""`pillion events` and `pillion audit`."""

from __future__ import annotations

import json

from fake_api import FakeApi, Run


def test_the_last_events_in_their_order(run: Run, api: FakeApi) -> None:
    shown = run("events", "--kind", "k2", "--kind", "k3", "--subject", "adapter:adp_1", "--limit", 2).stdout
    assert [line.split("\t") for line in shown.splitlines()] == [
        ["2023-11-14T22:13:20Z", kind, "adapter:adp_1", "by=key_1"] for kind in ("k2", "k3")
    ]
    (asked,) = api.requests
    assert asked[1] == "/v1/events?kind=k2&kind=k3&subject=adapter%3Aadp_1&newest=true&limit=2"


def test_following_goes_on_after_the_last(run: Run, api: FakeApi) -> None:
    told = run("events", "--follow").stdout.splitlines()
    assert told == [
        "2023-11-14T22:13:20Z  k2  adapter:adp_1  by=key_1",
        "2023-11-14T22:13:20Z  k3  adapter:adp_1  by=key_1",
        "2023-11-14T22:13:20Z  k4  adapter:adp_1",
    ]
    assert api.requests[-1][1] == "/v1/events?after=3&follow=true"
    lines = run("events", "-f", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [2, 3, 4]


def test_everyones(run: Run, api: FakeApi) -> None:
    (event,) = json.loads(run("events", "--everyone", "--json").stdout)["data"]
    assert event["account"] == "acc_2"
    assert run("audit", "--everyone").stdout.split("\t")[5] == ""
    assert [path.partition("?")[0] for _, path, _ in api.requests] == ["/v1/admin/events", "/v1/admin/audit"]


def test_who_did_what(run: Run, api: FakeApi) -> None:
    shown = run("audit", "--action", "attach_adapter").stdout.strip().split("\t")
    assert shown == [
        "2023-11-14T22:13:20Z", "key_1", "attach_adapter", "/v1/instances/1/adapters", "adp_1",
        "409 already_attached", "req_1",
    ]  # fmt: skip
    assert api.requests[0][1] == "/v1/account/audit?action=attach_adapter&limit=50"


def test_what_happens_to_an_adapter_can_be_followed(run: Run) -> None:
    assert json.loads(run("adapters", "events", "pirate", "-f", "--json").stdout)["kind"] == "attached"
