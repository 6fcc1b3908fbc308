"""Explanations, by tables: what is wished and known, and what is said of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pillion.control.explain import Explanation, Known, PlaceExplained, explain
from pillion.control.flips import Spread
from pillion.core.replica import Failure, LoraSpec, Proof, Replica, ReplicaStatus, Residency
from pillion.store.rows import Instance
from tests.control.things import (
    DIGEST,
    FAILURE,
    NOW,
    adapter,
    attachment,
    instance,
    replica,
    resident,
    spec,
    status,
)

LATER = NOW + 60
OLD = "e" * 64


def known(**changes: Any) -> Known:
    """One adapter, attached to the one instance, whose one replica has it. A test says what is otherwise."""
    row = changes.pop("adapter", None) or adapter().adapter
    instances: list[Instance] = changes.pop("instances", [instance(state="running")])
    replicas: list[Replica] = changes.pop("replicas", [replica()])
    facts: list[ReplicaStatus] = changes.pop("facts", [status("r1", resident(adapter()))])
    return Known(
        adapter=row,
        aliases=["l1:1", "qwen:n1"],
        versions={OLD: 1, DIGEST: 2} if row.live_version == 2 else {DIGEST: 1},
        attachments=changes.pop("attachments", [attachment(state="ready", ready=1)]),
        instances={i.id: i for i in instances},
        why_not=changes.pop("why_not", {i.id: [] for i in instances}),
        held=changes.pop("held", {}),
        replicas=replicas,
        facts={s.replica: s for s in facts},
        tries=changes.pop("tries", {}),
        now=changes.pop("now", NOW),
        **changes,
    )


def only(explained: Explanation) -> PlaceExplained:
    (place,) = explained.places
    return place


def words(explained: Explanation) -> str:
    """All that is said, in one line."""
    said = [explained.summary, *explained.why_not, *explained.next]
    for place in explained.places:
        said += [*place.why_not, *place.next]
        said += [text for r in place.replicas for text in (r.why_not, r.next) if text]
    return " | ".join(said)


def test_one_that_is_served() -> None:
    row = msgspec.structs.replace(resident(adapter()), load_ms=45.5, last_used=LATER, proof=Proof(0.5, 0.001))
    explained = explain(known(facts=[status("r1", row)]))
    assert explained.served
    assert explained.summary == "n1 is served by 1 of 1 replicas."
    place = only(explained)
    assert (place.instance_id, place.wish, place.state, place.serving, place.wanted) == (
        1,
        "attached",
        "ready",
        1,
        1,
    )
    assert (place.why_not, place.next, explained.why_not, explained.next) == ([], [], [], [])
    (there,) = place.replicas
    assert (there.replica, there.region, there.state, there.serving, there.version) == (
        "r1",
        "a",
        "loaded",
        True,
        1,
    )
    assert (there.since, there.load_ms, there.last_used, there.difference, there.noise) == (
        NOW,
        45.5,
        LATER,
        0.5,
        0.001,
    )
    assert there.why_not is None


@pytest.mark.parametrize(
    ("fact", "why", "following"),
    [
        (status(ready=False), "its engine is starting", "loaded when the engine is ready"),
        (status(ready=False, stage="loading", detail="weights 3 of 5"), "weights 3 of 5", "loaded when the engine"),
        (
            status(ready=False, stage="restarting", failure=Failure("engine_exited", "killed by signal 9")),
            "went down: killed by signal 9 (engine_exited)",
            "its agent starts it again",
        ),
        (
            status(ready=False, stage="failed", failure=Failure("engine_exited", "no memory")),
            "does not come up: no memory (engine_exited)",
            "goes on trying",
        ),
        (status(), "not loaded yet", "its agent loads it next"),
        (
            status("r1", *(resident(adapter(n)) for n in (2, 3, 4, 5))),
            "no slot is free: 4 of 4 are taken",
            "as soon as one is free",
        ),
        (status("r1", resident(adapter(), "loading")), "being loaded since 2023-11-14 22:13:20Z", "proved"),
        (status("r1", resident(adapter(), "evicting")), "new requests are refused", "up to 30 s"),
        (
            status("r1", resident(adapter(), "failed")),
            f"{FAILURE.message} ({FAILURE.code})",
            "tried anew when it is asked for again",
        ),
        (
            status("r1", msgspec.structs.replace(resident(adapter(), "failed"), retry_at=LATER)),
            "failed to load",
            "tries again at 2023-11-14 22:14:20Z",
        ),
        (status("r1", resident(adapter(), "registered")), "not loaded yet", "loads it next"),
    ],
)  # fmt: skip
def test_why_a_replica_does_not_serve_it(fact: ReplicaStatus, why: str, following: str) -> None:
    explained = explain(known(attachments=[attachment()], facts=[fact]))
    (there,) = only(explained).replicas
    assert not explained.served
    assert not there.serving
    assert why in str(there.why_not)
    assert following in str(there.next)
    assert str(there.why_not) in explained.summary


def test_replicas_that_are_down_or_silent() -> None:
    dead = replica("r1", alive=False, exit_reason="exit status 1")
    two = [instance(state="degraded", spec=spec({"a": 2}))]
    explained = explain(
        known(instances=two, replicas=[dead, replica("r2")], facts=[], tries={(1, "a"): LATER})
    )
    down, silent = only(explained).replicas
    assert "exit status 1" in str(down.why_not)
    assert "started again at 2023-11-14 22:14:20Z" in str(down.next)
    assert "has not been heard" in str(silent.why_not)
    assert (only(explained).serving, only(explained).wanted) == (0, 2)


def test_an_old_version_while_the_new_one_comes() -> None:
    row = msgspec.structs.replace(adapter().adapter, live_version=2)
    explained = explain(known(adapter=row, facts=[status("r1", resident(adapter(), digest=OLD))]))
    (there,) = only(explained).replicas
    assert (there.version, there.serving) == (1, False)
    assert "another version" in str(there.why_not)


def test_the_live_version_counts_where_both_are_there() -> None:
    row = msgspec.structs.replace(adapter().adapter, live_version=2)
    facts = [status("r1", resident(adapter(), digest=OLD), resident(adapter(), digest=DIGEST))]
    (there,) = only(explain(known(adapter=row, facts=facts))).replicas
    assert (there.version, there.serving) == (2, True)


@pytest.mark.parametrize(
    ("changes", "wish", "why", "following"),
    [
        (
            {"attachments": [attachment(state="detaching", drain_deadline_s=5.0)]},
            "attached", "being detached", "up to 5 s",
        ),
        (
            {"attachments": [attachment(hold="loaded", expires_at=NOW - 1, state="ready")]},
            "loaded", "time was over at 2023-11-14 22:13:19Z", "load it anew",
        ),
        (
            {"attachments": [attachment(hold="loaded", pinned=True, expires_at=LATER, state="ready")]},
            "pinned", "", "its time ends at 2023-11-14 22:14:20Z",
        ),
        (
            {"attachments": [attachment(state="failed", error_code="x_y", error_message="no good")]},
            "attached", "no good (x_y)", "",
        ),
        (
            {"attachments": [attachment(replaces=7)]},
            "attached", "", "instance 7 lets it go",
        ),
        (
            {"instances": [instance(wanted="stopped", state="stopping", termination_reason="credit_depleted")]},
            "attached", "instance 1 is stopping (credit_depleted)", "end with it",
        ),
        (
            {"replicas": [], "facts": [], "instances": [instance(state="pending")]},
            "attached", "pending: it has no replica yet", "being started",
        ),
        (
            {"replicas": [], "facts": [], "instances": [instance()], "tries": {(1, "a"): LATER}},
            "attached", "no replica yet", "tried again at 2023-11-14 22:14:20Z",
        ),
        (
            {"adapter": adapter(region="b").adapter},
            "attached", "no replica in b", "",
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_a_place(changes: dict[str, Any], wish: str, why: str, following: str) -> None:
    place = only(explain(known(**changes)))
    assert place.wish == wish
    assert why in " | ".join(place.why_not)
    assert following in " | ".join(place.next)


def test_what_leaves_is_not_served_though_it_is_still_loaded() -> None:
    for row in (attachment(state="detaching"), attachment(hold="loaded", expires_at=NOW)):
        explained = explain(known(attachments=[row]))
        assert not explained.served
        assert (only(explained).serving, only(explained).wanted) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "row", "said"),
    [
        (
            {"coming": Spread(1, 2)},
            {"wanted_version": 3},
            "version 3 goes live once all that must have it do: 1 of 2",
        ),
        ({"coming": Spread(0, 2, FAILURE)}, {"wanted_version": 3}, f"{FAILURE.message} ({FAILURE.code})"),
        ({}, {"canary_version": 3, "canary_share": 0.25}, "version 3 gets 25% of the requests"),
        ({"setback": "version 3 did not go live: why (x)"}, {}, "version 3 did not go live"),
    ],
)
def test_versions_that_are_not_live(changes: dict[str, Any], row: dict[str, Any], said: str) -> None:
    explained = explain(known(adapter=msgspec.structs.replace(adapter().adapter, **row), **changes))
    assert explained.served
    assert said in " | ".join(explained.next)


def test_one_in_quarantine_is_there_and_refused() -> None:
    explained = explain(known(refused_until=NOW + 30))
    assert not explained.served
    assert explained.summary == (
        "n1 is on 1 of 1 replicas, and not served: two replicas died while they had a request for it: "
        "it is refused where that was seen."
    )
    assert "another version is not refused" in words(explained)
    assert only(explained).serving == 1


def test_how_far_a_canary_is_is_told() -> None:
    row = msgspec.structs.replace(adapter().adapter, canary_version=7, canary_share=0.25)
    explained = explain(known(adapter=row, canary=Spread(1, 2, FAILURE)))
    assert "version 7 gets 25% of the requests where it is, on 1 of 2 replicas; it changes nothing" in words(
        explained
    )


def test_an_engine_that_misses_probes_serves_and_may_be_ended() -> None:
    fact = status("r1", resident(adapter()), detail="it missed 1 of 3 health probes in a row")
    (there,) = only(explain(known(facts=[fact]))).replicas
    assert there.serving
    assert there.next is not None
    assert there.next.startswith("it missed 1 of 3 health probes in a row; ")


def test_one_whose_time_is_over_waits_to_be_loaded_anew() -> None:
    row = adapter(ended_at=NOW).adapter
    place = only(explain(known(adapter=row, attachments=[], instances=[on_demand()], facts=[status()])))
    assert place.why_not == ["its time was over at 2023-11-14 22:13:20Z"]
    assert place.next == ["it is served again once it is loaded anew"]


def test_only_its_region_is_looked_at() -> None:
    both = [instance(state="running", spec=spec({"a": 1, "b": 1}))]
    replicas = [replica("r1"), replica("r2", region="b")]
    facts = [status("r1"), status("r2", resident(adapter()), region="b")]
    explained = explain(
        known(adapter=adapter(region="b").adapter, instances=both, replicas=replicas, facts=facts)
    )
    assert [r.replica for r in only(explained).replicas] == ["r2"]
    assert explained.summary == "n1 is served by 1 of 1 replicas."


def on_demand(id: int = 1) -> Instance:
    lora = LoraSpec(enabled=True, max_adapters=4, on_demand=True)
    return instance(id, state="running", spec=spec(lora=lora), account_id=None)


def test_where_a_request_would_load_it() -> None:
    explained = explain(known(attachments=[], instances=[on_demand()], facts=[status()]))
    place = only(explained)
    assert (place.wish, place.state, explained.served) == ("on_demand", None, False)
    assert place.next == ["a request for it loads it where it is not"]
    assert place.replicas[0].why_not == "it is not loaded here"
    full = only(explain(known(attachments=[], instances=[on_demand()], facts=[status()], held={1: 4})))
    assert "all 4 slots are held" in full.why_not[0]


def test_where_a_request_has_loaded_it() -> None:
    explained = explain(known(attachments=[], instances=[on_demand()]))
    assert explained.served
    assert only(explained).serving == 1


def test_what_is_still_there_and_wished_no_more() -> None:
    explained = explain(known(attachments=[]))
    assert (only(explained).wish, explained.served) == ("none", False)
    assert "nothing asks for it here" in words(explained)


@pytest.mark.parametrize(
    ("changes", "why", "following"),
    [
        ({}, "attached to no instance", "an instance that can take it: 1"),
        ({"held": {1: 4}}, "attached to no instance", "instance 1 could take it and is full"),
        (
            {"why_not": {1: ["rank too high: 8"]}},
            "instance 1: rank too high: 8",
            "launch an instance of qwen",
        ),
        ({"instances": []}, "attached to no instance", "launch an instance of qwen"),
        (
            {"adapter": adapter(live=False, state="importing").adapter},
            "its import is under way",
            "/v1/jobs",
        ),
    ],
)
def test_one_that_is_nowhere(changes: dict[str, Any], why: str, following: str) -> None:
    explained = explain(known(**{"attachments": [], "facts": [status()], **changes}))
    assert (explained.places, explained.served) == ([], False)
    assert why in " | ".join(explained.why_not)
    assert following in " | ".join(explained.next)
    assert explained.why_not[0] in explained.summary


def test_others_adapters_are_not_spoken_of() -> None:
    other = Residency(f"adp_2@{DIGEST}", "loaded", NOW)
    explained = explain(known(attachments=[], instances=[on_demand()], facts=[status("r1", other)]))
    assert "adp_2" not in msgspec.json.encode(explained).decode()
    assert not explained.served
