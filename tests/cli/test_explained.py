"""`pillion adapters explain`: for a person, for a pipe, for a program."""

from __future__ import annotations

import json

import pytest
from fake_api import EXPLAINED, FakeApi, Run


@pytest.mark.usefixtures("terminal")
def test_a_person_reads_sentences(run: Run, api: FakeApi) -> None:
    lines = run("adapters", "explain", "pirate").stdout.splitlines()
    assert lines[0] == "pirate is served by 1 of 2 replicas."
    assert lines[2] == "instance 1 (tiny, degraded): attached, attaching, served by 1 of 2 replicas"
    assert lines[3] == "  next: once it is served here, instance 3 lets it go"
    assert lines[4].startswith("  r1-eu-a in eu: serves version 2, since 2023-11-1")
    assert ", loaded in 45 ms, last used 2023-11-1" in lines[4]
    assert lines[5:7] == [
        "  r1-us-b in us: its engine is [31m loading",
        "    next: it is loaded when the engine is ready",
    ]
    assert lines[8:] == ["instance 3 (tiny, ): not wanted here", "  not yet: nothing asks for it here"]
    assert api.requests == [("GET", "/v1/adapters/pirate/explain", None)]


def test_a_pipe_gets_a_line_for_each_replica(run: Run) -> None:
    rows = [line.split("\t") for line in run("adapters", "explain", "pirate").stdout.splitlines()]
    assert [row[:7] for row in rows] == [
        ["1", "attached", "r1-eu-a", "eu", "loaded", "yes", "2"],
        ["1", "attached", "r1-us-b", "us", "registered", "no", ""],
        ["3", "none", "", "", "", "no", ""],
    ]
    assert rows[1][8].endswith("loading")
    assert (
        rows[1][9] == "once it is served here, instance 3 lets it go; it is loaded when the engine is ready"
    )


def test_json_is_the_servers_own(run: Run) -> None:
    assert json.loads(run("adapters", "explain", "pirate", "--json").stdout) == EXPLAINED
