"""From wishes and facts to what should change, by tables."""

import itertools

import pytest

from pillion.control import plan
from pillion.core.names import engine_name
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


class TestGroups:
    def test_one_per_instance_that_is_wanted_and_region(self) -> None:
        wanted = plan.groups(
            [
                instance(1, spec=spec({"a": 2, "b": 1}), generation=3),
                instance(2),
                instance(3, wanted="stopped", state="stopping"),
            ]
        )
        assert set(wanted) == {(1, "a"), (1, "b"), (2, "a")}
        assert (wanted[1, "a"].replicas, wanted[1, "a"].generation, wanted[1, "a"].model.name) == (
            2,
            3,
            "qwen",
        )

    def test_one_that_failed_is_still_wanted(self) -> None:
        assert (1, "a") in plan.groups([instance(state="failed")])

    def test_nothing_wanted(self) -> None:
        assert plan.groups([]) == {}


class TestEntries:
    def test_an_attached_adapter(self) -> None:
        (entry,) = plan.entries("a", [attachment()], {1: adapter()})
        assert entry.engine_name == engine_name("adp_1", DIGEST)
        assert (entry.adapter_id, entry.digest, entry.rank, entry.size_bytes) == ("adp_1", DIGEST, 8, 100)
        assert (entry.hold, entry.pinned, entry.expires_at) == ("attached", False, None)

    def test_a_load_with_pin_and_end(self) -> None:
        (entry,) = plan.entries("a", [attachment(hold="loaded", pinned=True, expires_at=NOW)], {1: adapter()})
        assert (entry.hold, entry.pinned, entry.expires_at) == ("loaded", True, NOW)

    @pytest.mark.parametrize("state", ["attaching", "ready", "failed"])
    def test_what_is_wanted_stays_granted_in_every_state(self, state: str) -> None:
        assert plan.entries("a", [attachment(state=state)], {1: adapter()})

    @pytest.mark.parametrize(
        ("there", "adapters"),
        [
            (attachment(state="detaching"), {1: adapter()}),
            (attachment(), {1: adapter(live=False)}),
            (attachment(), {}),
            (attachment(), {1: adapter(region="b")}),
        ],
        ids=["detaching", "no version", "unknown", "other region"],
    )
    def test_what_is_not_granted(self, there, adapters) -> None:
        assert plan.entries("a", [there], adapters) == ()

    def test_an_adapter_of_the_region_is_granted_there(self) -> None:
        assert plan.entries("b", [attachment()], {1: adapter(region="b")})

    def test_the_order_does_not_depend_on_the_order_of_rows(self) -> None:
        rows = [attachment(n, adapter=n) for n in (1, 2, 3)]
        adapters = {n: adapter(n) for n in (1, 2, 3)}
        orders = {plan.entries("a", order, adapters) for order in itertools.permutations(rows)}
        assert len(orders) == 1


R1, R2 = replica("r1"), replica("r2")
UP, UP2 = status("r1"), status("r2")
DOWN, DOWN2 = status("r1", ready=False), status("r2", ready=False)
FAILED, FAILED2 = status("r1", ready=False, stage="failed"), status("r2", ready=False, stage="failed")


class TestInstanceState:
    """An instance of two replicas."""

    @pytest.mark.parametrize(
        ("before", "replicas", "facts", "after"),
        [
            ("pending", [], [], "pending"),
            ("pending", [R1], [], "starting"),
            ("pending", [R1, R2], [DOWN, DOWN2], "starting"),
            ("starting", [R1, R2], [UP, DOWN2], "starting"),
            ("starting", [R1, R2], [UP], "starting"),
            ("starting", [R1, R2], [UP, UP2], "running"),
            ("running", [R1, R2], [UP, UP2], "running"),
            ("running", [R1, R2], [UP, DOWN2], "degraded"),
            ("running", [R1, R2], [UP], "degraded"),
            ("running", [R1], [UP], "degraded"),
            ("running", [R1, R2], [DOWN, DOWN2], "degraded"),
            ("running", [R1, R2], [], "degraded"),
            ("running", [], [], "degraded"),
            ("degraded", [R1, R2], [UP, UP2], "running"),
            ("degraded", [R1, R2], [UP, DOWN2], "degraded"),
            ("degraded", [], [], "degraded"),
            ("starting", [R1, R2], [FAILED, FAILED2], "failed"),
            ("running", [R1, R2], [FAILED, FAILED2], "failed"),
            ("starting", [R1, R2], [FAILED, DOWN2], "starting"),
            ("starting", [R1, R2], [FAILED], "starting"),
            ("running", [R1, R2], [FAILED, UP2], "degraded"),
            ("failed", [R1, R2], [FAILED, FAILED2], "failed"),
            ("failed", [R1, R2], [DOWN, DOWN2], "starting"),
            ("failed", [R1, R2], [UP, UP2], "running"),
        ],
    )
    def test_one_that_is_wanted(self, before, replicas, facts, after) -> None:
        row = instance(spec=spec({"a": 2}), state=before)
        assert plan.instance_state(row, replicas, {s.replica: s for s in facts}) == after

    @pytest.mark.parametrize("before", ["pending", "starting", "running", "degraded", "stopping"])
    def test_one_that_is_to_stop(self, before: str) -> None:
        row = instance(spec=spec({"a": 2}), state=before, wanted="stopped")
        assert plan.instance_state(row, [R1], {"r1": UP}) == "stopping"
        assert plan.instance_state(row, [replica(alive=False)], {}) == "stopping"
        assert plan.instance_state(row, [], {}) == "stopped"


class TestAttachmentFacts:
    def facts(self, *statuses, there=None, of=None, replicas=(R1, R2), expected=2) -> plan.AttachmentFacts:
        return plan.attachment_facts(
            there or attachment(), of or adapter(), replicas, {s.replica: s for s in statuses}, expected
        )

    def test_before_any_engine_runs_as_many_are_wanted_as_there_ought_to_be(self) -> None:
        assert self.facts(replicas=()) == plan.AttachmentFacts("attaching", 0, 2, None, True)
        assert self.facts(DOWN, DOWN2).wanted == 2

    def test_k_of_n(self) -> None:
        one = self.facts(status("r1", resident(adapter())), UP2)
        assert (one.state, one.ready, one.wanted) == ("attaching", 1, 2)
        two = self.facts(status("r1", resident(adapter())), status("r2", resident(adapter())))
        assert (two.state, two.ready, two.wanted) == ("ready", 2, 2)

    def test_only_replicas_that_run_must_have_it(self) -> None:
        found = self.facts(status("r1", resident(adapter())), DOWN2)
        assert (found.state, found.ready, found.wanted) == ("ready", 1, 1)

    def test_a_replica_that_does_not_run_makes_up_for_none_that_does(self) -> None:
        found = self.facts(status("r1", resident(adapter()), ready=False), UP2)
        assert (found.state, found.ready, found.wanted) == ("attaching", 0, 1)

    @pytest.mark.parametrize("state", ["registered", "loading", "evicting"])
    def test_only_loaded_counts(self, state: str) -> None:
        assert self.facts(status("r1", resident(adapter(), state)), replicas=[R1]).ready == 0

    def test_another_version_is_not_it(self) -> None:
        old = resident(adapter(), digest="e" * 64)
        assert self.facts(status("r1", old), replicas=[R1]).state == "attaching"

    def test_another_adapter_whose_id_begins_alike_is_not_it(self) -> None:
        other = resident(adapter(11))
        assert self.facts(status("r1", other), replicas=[R1], there=attachment(state="detaching")).gone

    def test_one_failure_fails_it_and_says_why(self) -> None:
        found = self.facts(status("r1", resident(adapter())), status("r2", resident(adapter(), "failed")))
        assert (found.state, found.ready, found.failure) == ("failed", 1, FAILURE)

    def test_a_failure_of_a_former_version_is_no_matter(self) -> None:
        found = self.facts(status("r1", resident(adapter(), "failed", digest="e" * 64)), replicas=[R1])
        assert (found.state, found.failure) == ("attaching", None)

    def test_without_a_live_version_nothing_is_ready(self) -> None:
        assert self.facts(status("r1"), of=adapter(live=False), replicas=[R1]).state == "attaching"

    @pytest.mark.parametrize(
        ("statuses", "gone"),
        [
            ([UP, UP2], True),
            ([status("r1", resident(adapter(), "registered")), UP2], True),
            ([status("r1", resident(adapter(), "failed")), UP2], True),
            ([status("r1", resident(adapter(), "loading")), UP2], False),
            ([status("r1", resident(adapter(), "loaded")), UP2], False),
            ([status("r1", resident(adapter(), "evicting")), UP2], False),
            ([status("r1", resident(adapter(), "loaded", digest="e" * 64)), UP2], False),
            ([status("r1", resident(adapter(), "loaded"), ready=False), UP2], False),
            ([UP], False),
            ([], False),
        ],
    )
    def test_detached_is_it_when_all_were_heard_and_none_holds_any_version(
        self, statuses, gone: bool
    ) -> None:
        found = self.facts(*statuses, there=attachment(state="detaching"))
        assert (found.state, found.gone, found.failure) == ("detaching", gone, None)

    def test_without_replicas_nobody_holds_it(self) -> None:
        assert self.facts(replicas=(), there=attachment(state="detaching")).gone


def test_the_region_says_how_many_and_which() -> None:
    placed = spec({"a": 2, "b": 1})
    assert [plan.expected_in(placed, region) for region in (None, "a", "b", "c")] == [3, 2, 1, 0]
    there = [replica("r1"), replica("r2", region="b")]
    assert plan.in_region(there, None) == there
    assert [r.id for r in plan.in_region(there, "b")] == ["r2"]
