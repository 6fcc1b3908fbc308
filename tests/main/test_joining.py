"""What a gateway shows control, from its first start on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from pillion.core.errors import InvalidRequestError
from pillion.main import joining
from pillion.main.config import Config, load
from tests.gateway.site import listening


class Control:
    """Answers to asks to join, in their order; what it is asked beyond them is a 401."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        assert request.path == "/internal/v1/join"
        self.asked.append((request.headers["authorization"], await request.text()))
        return web.Response(status=self.answers.pop(0) if self.answers else 401)


@pytest.fixture
async def control(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Control]:
    monkeypatch.setattr(joining, "PAUSE_S", 0)
    made = Control()
    async with listening(made.handle) as made.url:
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(None, {"data_dir": str(tmp_path)}, {})


async def test_who_shares_the_directory_shows_what_is_in_it(config: Config, control: Control) -> None:
    shown = await joining.credential(config, control.url)
    assert shown == joining.local_credential(config) == (config.data_dir / "internal-token").read_text()
    assert control.asked == []


async def test_it_waits_for_control_and_asks_no_more_once_it_has_joined(
    config: Config, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(joining.JOIN_TOKEN, "pgj_one")
    control.answers = [503, 500, 204]
    shown = await joining.credential(config, control.url)
    assert control.asked == [("Bearer pgj_one", shown)] * 3
    assert await joining.credential(config, control.url) == shown
    assert len(control.asked) == 3
    kept = config.data_dir / "gateway" / "credential"
    assert (kept.read_text(), os.stat(kept).st_mode & 0o777) == (shown, 0o600)
    monkeypatch.delenv(joining.JOIN_TOKEN)
    assert await joining.credential(config, control.url) == shown

    monkeypatch.setenv(joining.JOIN_TOKEN, "pgj_two")  # it was revoked, and is let in again
    control.answers = [204]
    assert await joining.credential(config, control.url) == shown
    assert control.asked[-1] == ("Bearer pgj_two", shown)


async def test_a_token_that_is_not_good_is_told(
    config: Config, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(joining.JOIN_TOKEN, "pgj_used")
    with pytest.raises(InvalidRequestError, match="PILLION_JOIN_TOKEN"):
        await joining.credential(config, control.url)
    control.answers = [204]  # and asked again at the next start, with the same credential
    await joining.credential(config, control.url)
    assert control.asked[0] == control.asked[1]
