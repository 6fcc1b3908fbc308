"""Each ready moment is put down once, and only what was seen."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pillion.billing.runs import GAP_MS, Begin, Sighting, record
from pillion.core.money import Run

RUN = Run(7, "acc", 1, "r", "eu", "H100", 1, 1000, 5000, 1000, open=True, billed=True)


def seen(ready: bool = True, since: int = 1000, replica: str = "r") -> Sighting:
    return Sighting("acc", 1, replica, "eu", "H100", 1, ready, since)


def test_ready_all_along_is_extended() -> None:
    found = record([RUN], {"r": seen()}, {"r"}, {}, 9000, True)
    assert (found.extend, found.end, found.begin) == ({7: 9000}, {}, [])


def test_a_first_sight_begins_when_it_became_ready() -> None:
    found = record([], {"r": seen(since=3000)}, {"r"}, {}, 9000, True)
    assert found.begin == [Begin(seen(since=3000), 3000)]


def test_what_was_put_down_before_is_not_put_down_again() -> None:
    found = record([], {"r": seen(since=3000)}, {"r"}, {"r": 4000}, 9000, True)
    assert found.begin[0].began_ms == 4000


def test_one_that_never_became_ready_has_no_run() -> None:
    assert not record([], {"r": seen(ready=False)}, {"r"}, {}, 9000, True)


def test_an_end_that_was_seen_counts_until_then() -> None:
    assert record([RUN], {"r": seen(False, 8000)}, {"r"}, {}, 9000, True).end == {7: 8000}


def test_an_end_that_nobody_saw_counts_until_last_seen() -> None:
    late = 5000 + GAP_MS + 1
    assert record([RUN], {"r": seen(False, late)}, {"r"}, {}, 10**6, True).end == {7: 5000}
    assert record([RUN], {}, set(), {}, 10**6, True).end == {7: 5000}


def test_who_is_not_heard_for_a_while_is_not_ended() -> None:
    assert not record([RUN], {}, {"r"}, {}, 10**6, True)


def test_ready_again_since_it_was_last_seen_is_another_run() -> None:
    found = record([RUN], {"r": seen(since=70_000)}, {"r"}, {}, 90_000, True)
    assert (found.end, found.begin) == ({7: 5000}, [Begin(seen(since=70_000), 70_000)])


def test_billing_turned_on_or_off_parts_a_run() -> None:
    found = record([RUN], {"r": seen()}, {"r"}, {}, 9000, False)
    assert (found.end, found.begin) == ({7: 9000}, [Begin(seen(), 9000)])


steps = st.lists(
    st.tuples(
        st.sampled_from(["tick", "away", "down", "up", "silent", "gone", "toggle", "back"]),
        st.integers(1, 40_000),
    ),
    max_size=40,
)


@given(steps)
def test_runs_of_a_replica_never_overlap_and_hold_no_moment_it_was_not_ready(
    told: list[tuple[str, int]],
) -> None:
    now, since, ready, heard, present, billed = 0, 0, False, True, True, True
    runs: dict[int, Run] = {}
    truth: list[tuple[int, int]] = []
    for what, wait in told:
        if ready:
            truth.append((now, now + wait))
        now += wait
        if what == "toggle":
            billed = not billed
        elif what in ("silent", "back"):
            heard = what == "back"
        elif what == "gone":
            present, ready = not present, False
            since = now
        elif what in ("up", "down") and ready != (what == "up") and present:
            ready, since = what == "up", now
        if what == "away":
            continue  # control sees nothing of it
        sightings = {"r": seen(ready, since)} if heard and present else {}
        opened = [run for run in runs.values() if run.open]
        reach = {"r": max((run.seen_ms for run in runs.values()), default=0)}
        plan = record(opened, sightings, {"r"} if present else set(), reach, now, billed)
        for id, at in (plan.extend | plan.end).items():
            assert at >= runs[id].seen_ms
            runs[id] = msgspec.structs.replace(runs[id], seen_ms=at, open=id in plan.extend)
        for begin in plan.begin:
            id = len(runs) + 1
            runs[id] = msgspec.structs.replace(
                RUN, id=id, began_ms=begin.began_ms, seen_ms=now, charged_ms=begin.began_ms, billed=billed
            )
        assert sum(run.open for run in runs.values()) <= 1
    pieces = sorted((run.began_ms, run.seen_ms) for run in runs.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(pieces))
    for began, ended in pieces:
        covered = sum(max(0, min(ended, b) - max(began, a)) for a, b in truth)
        assert covered == ended - began
