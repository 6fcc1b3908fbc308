"""Publishing snapshots, and knowing which gateways have applied them."""

import asyncio

import pytest

from pillion.control.snapshots import GATEWAY_FORGOTTEN_S, KEPT_DELTAS, Gateways, Publisher
from pillion.core import snapshot as wire


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def content(name: str = "qwen") -> wire.Content:
    return wire.Content({}, (wire.Model(name, None, "chat", True),))


class TestPublisher:
    def test_equal_content_keeps_its_version_and_new_content_gets_a_higher_one(self) -> None:
        publisher = Publisher(b"pepper", Clock())
        first = publisher.publish(content())
        assert publisher.publish(content()) == first == publisher.version
        second = publisher.publish(content("other"))
        assert second > first
        assert publisher.publish(content()) > second

    def test_versions_grow_in_one_millisecond_and_when_the_clock_goes_back(self) -> None:
        clock = Clock()
        publisher = Publisher(b"pepper", clock)
        versions = [publisher.publish(content(str(number))) for number in range(5)]
        clock.now = 1.0
        versions.append(publisher.publish(content("back")))
        assert versions == sorted(set(versions))

    def test_versions_grow_over_restarts(self) -> None:
        clock = Clock()
        before = Publisher(b"pepper", clock).publish(content())
        clock.now += 1
        assert Publisher(b"pepper", clock).publish(content()) > before

    async def test_a_gateway_that_has_the_newest_waits_for_the_next(self) -> None:
        publisher = Publisher(b"pepper", Clock())
        version = publisher.publish(content())
        assert await publisher.after(version, 0.01) is None
        waiting = asyncio.create_task(publisher.after(version, 60))
        await asyncio.sleep(0)
        newer = publisher.publish(content("other"))
        async with asyncio.timeout(5):
            data = await waiting
        assert data is not None
        assert wire.decode(data).version == newer

    async def test_a_gateway_of_this_control_gets_what_changed_and_any_other_all_of_it(self) -> None:
        publisher = Publisher(b"pepper", Clock(), "mine")
        first = publisher.publish(content())
        second = publisher.publish(content("other"))
        third = publisher.publish(content("third"))
        for version, following in ((first, second), (second, third)):
            data = await publisher.after(version, 0, "mine")
            assert data is not None
            delta = wire.decode_news(data)
            assert isinstance(delta, wire.Delta)
            assert (delta.since, delta.version) == (version, following)
        for version, epoch in ((first, "another's"), (first, None), (first - 1, "mine"), (0, "")):
            data = await publisher.after(version, 0, epoch)
            assert data is not None
            assert wire.decode(data).version == third

    async def test_old_deltas_are_dropped(self) -> None:
        publisher = Publisher(b"pepper", Clock(), "mine")
        first = publisher.publish(content())
        for number in range(KEPT_DELTAS + 1):
            publisher.publish(content(str(number)))
        data = await publisher.after(first, 0, "mine")
        assert data is not None
        assert wire.decode(data).version == publisher.version

    async def test_before_the_first_there_is_none(self) -> None:
        assert await Publisher(b"pepper", Clock()).after(0, 0.01) is None

    async def test_a_gateway_from_a_control_whose_clock_was_ahead_is_brought_up_to_date(self) -> None:
        publisher = Publisher(b"pepper", Clock())
        publisher.publish(content())
        ahead = publisher.version + 10_000
        data = await publisher.after(ahead, 0.01)
        assert data is not None
        assert wire.decode(data).version > ahead
        assert publisher.publish(content()) == wire.decode(data).version

    async def test_the_same_version_of_another_control_is_no_news_of_this_one(self) -> None:
        publisher = Publisher(b"pepper", Clock(), "mine")
        version = publisher.publish(content())
        assert await publisher.after(version, 0.01, "mine") is None
        assert await publisher.after(version, 0.01, "") is None
        data = await publisher.after(version, 0.01, "another's")
        assert data is not None
        assert (wire.decode(data).version, wire.decode(data).epoch) == (version + 1, "mine")

    async def test_the_snapshot_has_what_was_published(self) -> None:
        publisher = Publisher(b"pepper", Clock(7.0))
        publisher.publish(content())
        data = await publisher.after(0, 0)
        assert data is not None
        found = wire.decode(data)
        assert (found.pepper, found.made_at, found.models[0].name) == (b"pepper", 7.0, "qwen")


class TestGateways:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def gateways(self, clock: Clock) -> Gateways:
        return Gateways(clock)

    async def test_without_gateways_nobody_is_waited_for(self, gateways: Gateways) -> None:
        assert await gateways.acknowledged(5, timeout=60) == []

    async def test_it_waits_until_all_have_applied_it(self, gateways: Gateways) -> None:
        gateways.heard("a", 5)
        gateways.heard("b", 4)
        waiting = asyncio.create_task(gateways.acknowledged(5, timeout=60))
        await asyncio.sleep(0)
        assert not waiting.done()
        gateways.heard("b", 5)
        async with asyncio.timeout(5):
            assert await waiting == []

    async def test_those_that_did_not_in_time_are_named(self, gateways: Gateways) -> None:
        for name, version in {"b": 4, "a": 5, "c": 1}.items():
            gateways.heard(name, version)
        assert await gateways.acknowledged(5, timeout=0.01) == ["b", "c"]

    async def test_a_gateway_that_leaves_is_not_waited_for(self, gateways: Gateways) -> None:
        gateways.heard("a", 1)
        waiting = asyncio.create_task(gateways.acknowledged(5, timeout=60))
        await asyncio.sleep(0)
        gateways.left("a")
        async with asyncio.timeout(5):
            assert await waiting == []

    async def test_one_that_was_not_heard_for_long_is_forgotten(
        self, gateways: Gateways, clock: Clock
    ) -> None:
        gateways.heard("dead", 1)
        clock.now += GATEWAY_FORGOTTEN_S - 1
        gateways.heard("alive", 5)
        assert gateways.behind(5) == ["dead"]
        clock.now += 2
        assert gateways.behind(5) == []

    async def test_a_gateway_in_a_long_poll_is_not_forgotten(self, gateways: Gateways, clock: Clock) -> None:
        from pillion.api.internal import MAX_WAIT_S

        gateways.heard("a", 1)
        clock.now += MAX_WAIT_S + 5
        assert gateways.behind(5) == ["a"]
