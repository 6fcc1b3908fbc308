"""Plugs pulled one after the other on one site: what ran goes on or comes back, with the same engine where it lives."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from pillion.sdk import Pillion, PillionError

from .site import Site, adapter_file, ask, tag, until


@pytest.fixture
def served(own_site: Site, tmp_path: Path) -> tuple[Site, str, str]:
    """A site with one attached adapter: its alias, and what it answers."""
    with own_site.client() as client:
        instance = own_site.launch(client)
        made = client.adapters.upload("captain", "tiny", adapter_file(tmp_path, 1))
        client.adapters.attach("captain", instance)
        client.adapters.wait_ready("captain", instance)
    return own_site, made.aliases[0], tag(made.digest)


def one(site: Site, part: str) -> psutil.Process:
    return until(lambda: site.processes(part), f"a process {part}")[0]


def answers(site: Site, alias: str) -> str:
    with site.client() as client:
        return ask(client, alias)


@pytest.mark.parametrize("parts", [("engines.sim",), ("agent", "engines.sim")])
def test_a_killed_engine_comes_back_with_its_adapters(
    served: tuple[Site, str, str], parts: tuple[str, ...]
) -> None:
    site, alias, expected = served
    before = [one(site, part) for part in parts]
    for process in before:
        process.kill()
    assert until(lambda: answers(site, alias), "the adapter again") == expected
    assert one(site, "engines.sim").pid not in {process.pid for process in before}


@pytest.mark.parametrize("part", ["agent", "control", "gateway"])
def test_a_killed_part_comes_back_and_the_engine_stays(served: tuple[Site, str, str], part: str) -> None:
    site, alias, expected = served
    engine, killed = one(site, "engines.sim"), one(site, part)
    killed.kill()
    until(lambda: [p for p in site.processes(part) if p.pid != killed.pid], f"another {part}")
    assert until(lambda: answers(site, alias), "the adapter again") == expected
    with site.client() as client:
        until(lambda: [i for i in client.instances.list() if i.state == "running"], "the control API again")
    assert one(site, "engines.sim").pid == engine.pid


def test_no_request_notices_that_an_agent_was_killed(served: tuple[Site, str, str]) -> None:
    site, alias, expected = served
    killed = one(site, "agent")
    with site.client() as client:
        seen: list[str] = []

        def state_after_an_answer() -> list[str]:
            try:
                seen.append(ask(client, alias))
            except PillionError as error:
                seen.append(repr(error))
            return [instance.state for instance in client.instances.list()]

        killed.kill()
        until(lambda: state_after_an_answer() == ["degraded"], "its absence is noticed")
        until(lambda: state_after_an_answer() == ["running"], "another agent is heard")
    assert set(seen) == {expected}


def test_inference_goes_on_while_control_is_away(served: tuple[Site, str, str]) -> None:
    site, alias, expected = served
    with site.client() as client:
        one(site, "control").suspend()
        try:
            assert [ask(client, alias) for _ in range(20)] == [expected] * 20
        finally:
            one(site, "control").resume()


def test_sigterm_ends_everything(served: tuple[Site, str, str]) -> None:
    site, _, _ = served
    assert site.stop() == 0
    assert site.processes() == []


def test_kept_engines_are_found_again(served: tuple[Site, str, str]) -> None:
    site, alias, expected = served
    assert site.stop() == 0
    site.start("--keep-engines")
    assert until(lambda: answers(site, alias), "the adapter at the second start") == expected
    engine = one(site, "engines.sim")
    assert site.stop() == 0
    assert [p.pid for p in site.processes("engines.sim")] == [engine.pid]
    site.start()
    assert until(lambda: answers(site, alias), "the adapter at the third start") == expected
    assert one(site, "engines.sim").pid == engine.pid


def test_a_killed_server_leaves_its_engines_to_the_next(served: tuple[Site, str, str]) -> None:
    site, alias, expected = served
    engine = one(site, "engines.sim")
    site.kill()
    until(lambda: not site.processes("control") and not site.processes("gateway"), "the parts end with it")
    site.start()
    assert until(lambda: answers(site, alias), "the adapter again") == expected
    assert one(site, "engines.sim").pid == engine.pid


def test_two_replicas_lose_no_request_when_one_dies(own_site: Site, tmp_path: Path) -> None:
    with own_site.client() as client:
        instance = own_site.launch(client, regions=["eu-1", "us-1"], replicas=2)
        made = client.adapters.upload("captain", "tiny", adapter_file(tmp_path, 1))
        client.adapters.attach("captain", instance)
        attachment = client.adapters.wait_ready("captain", instance)
        assert (attachment.ready, attachment.wanted) == (2, 2)
        found = [ask(client, made.aliases[0]) for _ in range(10)]
        own_site.processes("engines.sim")[0].kill()
        found += [ask(client, made.aliases[0]) for _ in range(100)]
        assert found == [tag(made.digest)] * 110
        back = until(lambda: _whole(client, instance), "both replicas again")
        assert back


def _whole(client: Pillion, instance: int) -> bool:
    attached = client.adapters.attachment("captain", instance)
    return (attached.ready, attached.wanted) == (2, 2)
