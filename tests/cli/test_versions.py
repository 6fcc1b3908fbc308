"""Versions on the command line: what is asked, what is waited for, what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_api import FakeApi, Run


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "new.safetensors"
    path.write_bytes(b"x" * 100)
    return path


def test_the_list_says_what_becomes_of_each(run: Run) -> None:
    rows = [line.split("\t")[:3] for line in run("adapters", "versions", "pirate").stdout.splitlines()]
    assert rows == [
        ["1", "yes", "live"],
        ["2", "no", "failed: it changes nothing (adapter_ineffective)"],
        ["3", "no", "canary 25% 1/2"],
    ]


def test_an_upload_is_waited_for_until_it_is_live(run: Run, api: FakeApi, weights: Path) -> None:
    result = run("adapters", "add-version", "pirate", weights)
    assert result.exit_code == 0, result.output
    assert [(method, path) for method, path, _ in api.requests] == [
        ("POST", "/v1/adapters/pirate/versions"),
        ("GET", "/v1/adapters/pirate/versions"),
    ]
    assert "state\tlive" in result.stdout


def test_or_kept_back_or_not_waited_for(run: Run, api: FakeApi, weights: Path) -> None:
    result = run("adapters", "add-version", "pirate", weights, "--keep-back", "--no-wait", "--json")
    assert json.loads(result.stdout)["state"] == "going_live"
    assert [path for _, path, _ in api.requests] == ["/v1/adapters/pirate/versions?live=false"]


def test_an_import_is_a_job(run: Run, api: FakeApi) -> None:
    result = run("adapters", "add-version", "pirate", "--repo", "me/x", "--revision", "v2", "--no-wait")
    assert result.exit_code == 0, result.output
    assert api.requests[0] == (
        "POST",
        "/v1/adapters/pirate/versions",
        {"repo": "me/x", "revision": "v2"},
    )
    assert "pillion jobs follow" in result.stderr


@pytest.mark.parametrize("more", [[], ["here", "--repo", "me/x"]])
def test_either_a_file_or_a_repo(run: Run, api: FakeApi, more: list[str]) -> None:
    assert run("adapters", "add-version", "pirate", *more).exit_code == 2
    assert api.requests == []


def test_one_that_does_not_go_live_is_an_error_with_its_reason(run: Run, api: FakeApi) -> None:
    result = run("adapters", "live", "pirate", "2")
    assert result.exit_code == 1
    assert "it changes nothing (adapter_ineffective)" in result.stderr
    assert api.requests[0][:2] == ("POST", "/v1/adapters/pirate/versions/2/live")


def test_rollback_and_canary(run: Run, api: FakeApi) -> None:
    assert "state\tlive" in run("adapters", "rollback", "pirate").stdout
    assert api.requests[-1][:2] == ("POST", "/v1/adapters/pirate/rollback")
    assert "canary 25% 1/2" in run("adapters", "canary", "pirate", "3", "--share", "0.25").stdout
    assert api.requests[-1] == ("PUT", "/v1/adapters/pirate/canary", {"version": 3, "share": 0.25})
    assert run("adapters", "canary", "pirate", "3", "--share", "25").exit_code == 2
    assert "not yet heard by: gw_1" in run("adapters", "end-canary", "pirate").stderr
    assert api.requests[-1][:2] == ("DELETE", "/v1/adapters/pirate/canary")
