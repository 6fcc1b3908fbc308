"""Import from a hub: pinned to a commit, streamed, taken up where it broke, with the account's own token
alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pillion.artifacts.hub import ATTEMPTS, Hub
from pillion.artifacts.models import base_config
from pillion.artifacts.receive import Stored, receive
from pillion.artifacts.store import ArtifactStore
from pillion.core.adapters.bases import Base
from pillion.core.adapters.verify import Limits
from pillion.core.errors import (
    AdapterInvalidError,
    AdapterTooLargeError,
    InvalidRequestError,
    UnavailableError,
)
from tests.adapter_files import LLAMA, base, config_bytes, weights
from tests.artifacts.conftest import everything
from tests.artifacts.hub_server import BLOCK, HubServer, hub_server

WIDE = LLAMA | {"hidden_size": 1024, "intermediate_size": 2048}
FILES = {"adapter_model.safetensors": weights(), "adapter_config.json": config_bytes(), "README.md": b"#"}
BIG = {
    "adapter_model.safetensors": weights(of=base(WIDE), rank=8),
    "adapter_config.json": config_bytes(rank=8),
}
LIMITS = Limits()


@pytest.fixture
async def server() -> AsyncIterator[HubServer]:
    async with hub_server() as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token that must never be sent."""
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text("the-operator-s-own")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "the-operator-s-own")
    return home


async def at_once(seconds: float) -> None:
    """A wait between attempts that does not."""


def hub(server: HubServer, token: str | None = None) -> Hub:
    return Hub(server.url, token, sleep=at_once)


async def imported(
    hub: Hub,
    store: ArtifactStore,
    base: Base,
    repo: str,
    revision: str | None = None,
    limits: Limits = LIMITS,
) -> tuple[Stored, list[tuple[int, int | None]]]:
    steps: list[tuple[int, int | None]] = []
    found = await hub.resolve(repo, revision)
    async with store.intake(limits.max_bytes) as intake:
        config = await hub.download(
            found, intake, limits.max_bytes, lambda done, total: steps.append((done, total))
        )
        return await receive(intake, config, base, limits), steps


async def test_a_public_adapter_comes_in(
    server: HubServer, store: ArtifactStore, tiny: Base, home: Path
) -> None:
    server.add("org/ad", FILES)
    stored, steps = await imported(hub(server), store, tiny, "org/ad")
    size = len(FILES["adapter_model.safetensors"])
    assert (steps[0], steps[-1]) == ((0, size), (size, size))
    assert stored.verified.alpha == 8
    assert [path for path in server.requests if "README" in path] == []
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["token"], (
        "the user's cache is left alone"
    )


async def test_a_revision_is_pinned_to_its_commit(
    server: HubServer, store: ArtifactStore, tiny: Base
) -> None:
    first = server.add("org/ad", FILES)
    found = await hub(server).resolve("org/ad", "main")
    assert found.commit == first
    second = server.push("org/ad", FILES | {"adapter_model.safetensors": weights(seed=1)})
    async with store.intake(10**9) as intake:
        await hub(server).download(found, intake, 10**9, lambda done, total: None)
        assert intake.upload.read_bytes() == weights(), "what was pushed since does not come in"
    assert (await hub(server).resolve("org/ad", first)).commit == first
    assert (await hub(server).resolve("org/ad")).commit == second


async def test_a_private_adapter_needs_its_token_which_goes_nowhere_else(
    server: HubServer, store: ArtifactStore, tiny: Base
) -> None:
    server.add("org/secret", FILES, token="hf_good")
    await imported(hub(server, "hf_good"), store, tiny, "org/secret")
    assert server.tokens_at_cdn == [""]
    with pytest.raises(InvalidRequestError, match="needs a token"):
        await hub(server).resolve("org/secret")
    with pytest.raises(InvalidRequestError, match="token does not open"):
        await hub(server, "hf_bad").resolve("org/secret")
    with pytest.raises(InvalidRequestError, match="token does not open"):
        await hub(server, "revoked").resolve("org/secret")


async def test_what_is_not_there_is_told(server: HubServer) -> None:
    server.add("org/ad", FILES)
    server.add("org/gated", FILES, gated=True)
    with pytest.raises(InvalidRequestError, match="org/none does not exist"):
        await hub(server).resolve("org/none")
    with pytest.raises(InvalidRequestError, match="no revision 'v9'"):
        await hub(server).resolve("org/ad", "v9")
    with pytest.raises(InvalidRequestError, match="gated"):
        await hub(server, "hf_x").resolve("org/gated")
    for repo in ("../etc", "a/b/c", "", "a b"):
        with pytest.raises(InvalidRequestError, match="no repository's name"):
            await hub(server).resolve(repo)


async def test_repositories_without_a_safetensors_adapter(
    server: HubServer, store: ArtifactStore, tiny: Base
) -> None:
    server.add("org/pickle", {"adapter_model.bin": b"\x80\x02.", "adapter_config.json": b"{}"})
    server.add("org/empty", {"README.md": b""})
    for repo, word in (
        ("org/pickle", "adapter_model.bin"),
        ("org/empty", "has no adapter_model.safetensors"),
    ):
        with pytest.raises(AdapterInvalidError, match=word):
            await imported(hub(server), store, tiny, repo)
    assert everything(store) == []


async def test_too_large_is_refused_before_a_byte_comes(
    server: HubServer, store: ArtifactStore, tiny: Base
) -> None:
    server.add("org/ad", BIG)
    with pytest.raises(AdapterTooLargeError):
        await imported(hub(server), store, tiny, "org/ad", limits=Limits(max_bytes=1000))
    assert not any("resolve" in path or "blob" in path for path in server.requests)


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_broken_download_is_taken_up(server: HubServer, store: ArtifactStore, ranges: bool) -> None:
    server.add("org/big", BIG)
    server.break_after = [BLOCK + 7, 1] if ranges else [BLOCK + 7, 3 * BLOCK]
    server.ranges = ranges
    stored, _ = await imported(hub(server), store, base(WIDE), "org/big")
    folder = store.find(stored.digest)
    assert (folder / "adapter_model.safetensors").read_bytes() == BIG["adapter_model.safetensors"]
    assert sum("blob" in path for path in server.requests) == 3


async def test_a_download_that_keeps_breaking_is_given_up(
    server: HubServer, store: ArtifactStore, tiny: Base
) -> None:
    server.add("org/ad", FILES)
    server.break_after = [0] * 99
    with pytest.raises(UnavailableError, match="broke off") as caught:
        await imported(hub(server), store, tiny, "org/ad")
    assert caught.value.code == "hub_unavailable"
    assert sum("blob" in path for path in server.requests) == ATTEMPTS
    assert everything(store) == []


async def test_damage_on_the_way_is_noticed(server: HubServer, store: ArtifactStore, tiny: Base) -> None:
    server.add("org/ad", FILES)
    server.damage = True
    with pytest.raises(UnavailableError, match="damaged"):
        await imported(hub(server), store, tiny, "org/ad")
    assert everything(store) == []


async def test_a_cancelled_import_stops_the_download_and_leaves_nothing(
    server: HubServer, store: ArtifactStore
) -> None:
    server.add("org/big", BIG)
    server.stall = True
    task = asyncio.create_task(imported(hub(server), store, base(WIDE), "org/big"))
    await asyncio.wait_for(server.stalled.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.left.wait(), 20)
    assert everything(store) == []


async def test_a_hub_that_is_away(unused_tcp_port: int) -> None:
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await Hub(f"http://127.0.0.1:{unused_tcp_port}").resolve("org/ad")


async def test_a_base_s_config_is_fetched_once(server: HubServer, tmp_path: Path) -> None:
    server.add("org/base", {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": b"x"})
    for _ in range(2):
        assert await base_config("hf:org/base", tmp_path / "configs", hub(server)) == LLAMA
    assert sum("resolve" in path for path in server.requests) == 1
    assert not any("model.safetensors" in path for path in server.requests)
    server.add("org/none", {})
    with pytest.raises(InvalidRequestError, match=r"config\.json"):
        await base_config("hf:org/none", tmp_path / "configs", hub(server))


def test_the_endpoint_is_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
    assert Hub()._endpoint == "http://127.0.0.1:1"
