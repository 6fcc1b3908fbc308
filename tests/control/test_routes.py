"""From rows and facts to the content of a routing snapshot."""

import random
from typing import Any

import msgspec
import pytest

from pillion.control.mirror import Touched
from pillion.control.on_demand import Permits
from pillion.control.routes import Routed
from pillion.control.snapshots import Publisher
from pillion.core import snapshot as wire
from pillion.core.catalogue import Catalogue, CatalogueModel, Region
from pillion.core.names import engine_name
from pillion.core.permits import opened
from pillion.core.replica import LoraSpec
from pillion.store.rows import ApiKey, RegisteredModel, SnapshotRows
from tests.control.things import DIGEST, NOW, adapter, attachment, instance, replica, resident, spec, status

CATALOGUE = Catalogue((Region("a"),), (CatalogueModel("qwen", "hf:q/q"),))


def rows_of(**rows: Any) -> SnapshotRows:
    empty: dict[str, Any] = {"keys": [], "models": [], "adapters": [], "attachments": [], "instances": []}
    return SnapshotRows(**(empty | rows))


def content(known: Routed, parts: Any, replicas: Any = (), statuses: Any = ()) -> wire.Content:
    return known.content(parts, replicas, {s.replica: s for s in statuses}, CATALOGUE, Permits(b"key"))


def routed(replicas: Any = (), statuses: Any = (), **rows: Any) -> Any:
    found = wire.whole(
        content(Routed(), {"acc_a": rows_of(**rows)}, replicas, statuses), 1, NOW, b"", "epoch"
    )
    return found.keys, found.models, found.adapters, found.instances


def test_keys_are_found_by_their_lookup_id() -> None:
    row = ApiKey("key_1", "acc_a", "look", "digest", "name", ["inference", "manage"], NOW, None)
    keys, _, _, _ = routed(keys=[row])
    assert keys["look"].account == "acc_a"
    assert keys["look"].scopes == ("inference", "manage")


def test_keys_carry_their_accounts_tier() -> None:
    row = ApiKey("key_1", "acc_a", "look", "digest", "name", ["inference"], NOW, None)
    keys, _, _, _ = routed(keys=[row])
    assert keys["look"].tier == "shared"
    keys, _, _, _ = routed(keys=[row], tiers={"acc_a": "reserved"})
    assert keys["look"].tier == "reserved"


def test_models_are_the_catalogues_and_each_accounts_own() -> None:
    own = RegisteredModel(1, "acc_a", "mine", "hf:m/m", None, "chat", True, None, None, NOW)
    _, models, _, _ = routed(models=[own])
    assert {(m.name, m.account) for m in models} == {("qwen", None), ("mine", "acc_a")}


def test_an_adapter_with_all_that_a_request_may_call_it() -> None:
    row = adapter()
    row = type(row)(row.adapter, ("new", "old"), row.live)
    _, _, (found,), _ = routed(
        adapters=[row], attachments=[attachment(1, instance=7), attachment(2, instance=3)]
    )
    assert found.engine_name == engine_name("adp_1", DIGEST)
    assert (found.labels, found.version, found.instances) == (("new", "old"), 1, (3, 7))


def test_an_adapter_without_bytes_has_no_engine_name() -> None:
    _, _, (found,), _ = routed(adapters=[adapter(live=False)])
    assert (found.engine_name, found.version, found.instances) == (None, None, ())


@pytest.mark.parametrize(
    ("ends", "end"), [([None], None), ([5.0], 5.0), ([5.0, 9.0], 9.0), ([5.0, None], None), ([], None)]
)
def test_an_adapter_ends_when_its_last_attachment_does(ends, end) -> None:
    rows = [attachment(n, instance=n, expires_at=at) for n, at in enumerate(ends, 1)]
    _, _, (found,), _ = routed(adapters=[adapter()], attachments=rows)
    assert found.expires_at == end


def test_what_failed_everywhere_is_nowhere_and_what_failed_in_part_is_there() -> None:
    rows = [attachment(1, instance=1, state="failed"), attachment(2, instance=2, state="failed", ready=1)]
    _, _, (found,), _ = routed(adapters=[adapter()], attachments=rows)
    assert found.instances == (2,)


@pytest.mark.parametrize("state", ["failed", "registered"])
def test_the_time_of_what_failed_or_was_evicted_ends_too(state: str) -> None:
    """On demand it may be loaded all the same, until then."""
    taker = instance(spec=spec(lora=LoraSpec(True, on_demand=True)))
    _, _, (found,), _ = routed(
        adapters=[adapter()], attachments=[attachment(state=state, expires_at=5.0)], instances=[taker]
    )
    assert found.permit is not None
    assert (found.instances, found.expires_at, opened(found.permit, b"key").expires_at) == ((), 5.0, 5.0)


def test_a_replica_is_known_from_the_moment_its_agent_was_heard() -> None:
    _, _, _, (silent,) = routed([replica()], instances=[instance()])
    assert silent.replicas == ()
    _, _, _, (heard,) = routed([replica()], [status(ready=False)], instances=[instance()])
    assert [(r.id, r.ready) for r in heard.replicas] == [("r1", False)]


@pytest.mark.parametrize("state", ["registered", "loading", "evicting", "failed"])
def test_resident_is_only_what_was_confirmed(state: str) -> None:
    statuses = [status("r1", resident(adapter(1)), resident(adapter(2), state))]
    _, _, _, (found,) = routed([replica()], statuses, instances=[instance()])
    assert found.replicas[0].resident == {engine_name("adp_1", DIGEST)}


def test_an_engine_without_a_url_is_not_ready() -> None:
    _, _, _, (found,) = routed([replica()], [status(engine_url=None)], instances=[instance()])
    assert not found.replicas[0].ready


def test_the_key_of_a_replica_is_the_one_that_can_only_infer() -> None:
    _, _, _, (found,) = routed([replica()], [status()], instances=[instance()])
    assert (found.replicas[0].infer_key, found.replicas[0].url) == ("infer", "http://127.0.0.1:2")


def test_what_an_engine_takes_at_a_time_is_told() -> None:
    for engine, takes in (({"max_requests": 8}, 8), ({}, None)):
        _, _, _, (found,) = routed([replica()], [status(engine=engine)], instances=[instance()])
        assert found.replicas[0].max_requests == takes


def test_replicas_go_to_their_own_instance_in_a_fixed_order() -> None:
    there = [replica("r3", instance=2), replica("r2"), replica("r1")]
    statuses = [status(r.id) for r in there]
    _, _, _, (one, two) = routed(there, statuses, instances=[instance(1), instance(2, account_id=None)])
    assert [r.id for r in one.replicas] == ["r1", "r2"]
    assert ([r.id for r in two.replicas], two.account) == (["r3"], None)


def test_what_the_instance_speaks_is_told() -> None:
    row = instance(spec=spec(openai_compatible=False, custom_api_path="/predict"))
    _, _, _, (found,) = routed(instances=[row])
    assert (found.openai_compatible, found.custom_api_path) == (False, "/predict")


def test_what_did_not_change_is_not_worked_out_again() -> None:
    parts = {
        "acc_a": rows_of(adapters=[adapter()], instances=[instance(1)]),
        "acc_b": rows_of(instances=[instance(2)]),
    }
    replicas = [replica("r1"), replica("r2", instance=2)]
    known, heard = Routed(), [status("r1"), status("r2")]
    first = content(known, parts, replicas, heard)
    again = content(known, parts, [msgspec.structs.replace(one) for one in replicas], heard)
    assert all(again.accounts[account] is owned for account, owned in first.accounts.items())
    assert [now is before for now, before in zip(again.instances, first.instances, strict=True)] == [True] * 2
    changed = parts | {"acc_a": rows_of()}
    other = content(known, changed, replicas, [heard[0], status("r2", ready=False)])
    assert other.accounts["acc_b"] is first.accounts["acc_b"]
    assert other.accounts["acc_a"].adapters == ()
    assert [found.id for found in other.instances] == [2]
    assert [found.ready for found in other.instances[0].replicas] == [False]
    silent = content(known, changed, replicas, heard[:1])
    assert silent.instances[0].replicas == ()


@pytest.mark.parametrize("seed", range(5))
def test_step_by_step_it_is_what_all_at_once_gives(seed: int) -> None:
    """What is published after each of many changes, put together from what gateways are told."""
    draw = random.Random(seed)
    known, publisher, parts = Routed(), Publisher(b"pepper", lambda: NOW), {}
    there: wire.Snapshot | None = None
    for number in range(60):
        before, parts = parts, dict(parts)
        accounts = draw.sample([None, "acc_a", "acc_b", "acc_c"], draw.randint(0, 2))
        for account in accounts:
            if draw.random() < 0.2:
                parts.pop(account, None)
                continue
            spec_of = spec(lora=LoraSpec(enabled=True, max_adapters=2, on_demand=draw.random() < 0.5))
            id = {None: 1, "acc_a": 2, "acc_b": 3, "acc_c": 4}[account]
            parts[account] = rows_of(
                adapters=[] if account is None else [adapter(id, account_id=account, name=f"n{number}")],
                instances=[instance(id, account_id=account, spec=spec_of)] if draw.random() < 0.7 else [],
            )
        replicas = [replica(f"r{id}", instance=id) for id in draw.sample(range(1, 5), 3)]
        heard = {one.id: status(one.id, ready=draw.random() < 0.7) for one in replicas[: draw.randint(0, 3)]}
        last = Touched(before, frozenset(accounts)) if draw.random() < 0.7 else None
        made = known.content(parts, replicas, heard, CATALOGUE, Permits(b"key"), last)
        version = publisher.version
        if publisher.publish(made) != version:
            if there is None:
                there = wire.whole(made, publisher.version, NOW, b"pepper", "")
            else:
                news = wire.decode_news(publisher._deltas[version])
                assert isinstance(news, wire.Delta)
                there = wire.patched(there, news)
        fresh = Routed().content(parts, replicas, heard, CATALOGUE, Permits(b"key"))
        assert there is not None
        expected = wire.whole(fresh, there.version, there.made_at, b"pepper", "")
        assert in_order(there) == in_order(expected)


def in_order(found: wire.Snapshot) -> Any:
    many = (found.models, found.adapters, found.instances)
    return found.keys, *(sorted(rows, key=lambda row: str(getattr(row, "id", row))) for rows in many)
