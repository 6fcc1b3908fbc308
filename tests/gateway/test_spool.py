"""The spool: what was told is there after any end of the process, in order, once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.usage import LOST, Incident, Mark, Report, Used
from pillion.gateway import spool as module
from pillion.gateway.reports import Reports, UntoldError
from pillion.gateway.spool import Spool, SpoolBusyError, SpoolFullError, own_and_orphans

MAX = 2**20


def used(name: str = "r", status: str = LOST, completion: int | None = None) -> Used:
    return Used(
        0, 1.0, "acc", "key", "adp", 1, "m:1", "m", 1, "r1", "local", name, 3, 0, completion, status, 1.0, 2.0, False
    )  # fmt: skip


def synced(spool: Spool) -> None:
    syncing = spool.syncing()
    syncing.run()
    spool.synced(syncing)


def names(spool: Spool, after: int = 0) -> list[tuple[int, str, str]]:
    return [(t.seq, t.request_id, t.status) for t in spool.after(after, 10_000) if isinstance(t, Used)]


def test_sequences_are_given_in_the_order_of_completion(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", MAX)
    one, two = spool.open(used("one")), spool.open(used("two"))
    spool.tell(used("two", "200"), two)
    spool.tell(used("one", "200"), one)
    assert names(spool) == []  # not on the disk yet
    synced(spool)
    assert names(spool) == [(1, "two", "200"), (2, "one", "200")]
    assert names(spool, after=1) == [(2, "one", "200")]


@pytest.mark.parametrize("at_hand", [1, 7, 50])
def test_what_is_far_behind_is_read_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_hand: int
) -> None:
    monkeypatch.setattr(module, "AT_HAND", at_hand)
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)
    spool = Spool(tmp_path / "s", MAX)
    for number in range(40):
        spool.tell(used(f"r{number}", "200"), spool.open(used()))
        if number == 29:
            synced(spool)
    had: list[int] = []
    while batch := spool.after(had[-1] if had else 0, 4):
        assert len(batch) <= 4
        had += [told.seq for told in batch]
    assert had == list(range(1, 31))
    synced(spool)
    assert [told.seq for told in spool.after(30, 100)] == list(range(31, 41))
    assert [told.seq for told in spool.after(5, 100)] == list(range(6, 41))


def test_what_was_open_is_told_as_lost_with_what_was_known(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", MAX)
    number, done = spool.open(used("open")), spool.open(used("done"))
    spool.known(number, 5, 0, 7)
    spool.tell(used("done", "200"), done)
    spool.close()
    again = Spool(tmp_path / "s", MAX)
    assert names(again) == [(1, "done", "200"), (2, "open", LOST)]
    (lost,) = again.after(1, 10)
    assert isinstance(lost, Used)
    assert (lost.prompt_tokens, lost.completion_tokens) == (5, 7)
    again.close()
    assert names(Spool(tmp_path / "s", MAX)) == [(1, "done", "200"), (2, "open", LOST)]


def test_incidents_have_their_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", MAX)
    spool.tell(Incident(0, 1.0, "adapter_quarantined", "acc", "adp", "why"))
    synced(spool)
    assert spool.after(0, 10) == [Incident(1, 1.0, "adapter_quarantined", "acc", "adp", "why")]


def test_segments_go_when_control_has_all_in_them_and_nothing_of_them_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 400)
    spool = Spool(tmp_path / "s", MAX)
    long = spool.open(used("long"))
    for number in range(20):
        spool.tell(used(f"r{number}", "200"), spool.open(used(f"r{number}")))
    synced(spool)
    files = len(list((tmp_path / "s").glob("*.log")))
    assert files > 5
    spool.taken(10)
    assert len(list((tmp_path / "s").glob("*.log"))) == files  # `long` was opened in the first
    spool.tell(used("long", "200"), long)
    spool.taken(10)
    assert len(list((tmp_path / "s").glob("*.log"))) < files
    synced(spool)
    assert [name for _, name, _ in names(spool, after=10)] == [*(f"r{n}" for n in range(10, 20)), "long"]
    spool.close()
    again = Spool(tmp_path / "s", MAX)
    assert again.last == 21
    assert again.oldest <= 11
    assert [seq for seq, _, _ in names(again, after=10)] == list(range(11, 22))


def test_a_full_spool_takes_no_admission_and_keeps_taking_ends(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", 500)
    with pytest.raises(SpoolFullError):
        [spool.open(used()) for _ in range(100)]
    first = spool.last
    for number in range(1, 4):
        spool.tell(used("end", "200"), number)
    synced(spool)
    assert spool.last == first + 3


def test_one_process_at_a_time_and_orphans_are_taken_over(tmp_path: Path) -> None:
    first, none = own_and_orphans(tmp_path, MAX)
    with pytest.raises(SpoolBusyError):
        Spool(first.directory, MAX)
    second, none_either = own_and_orphans(tmp_path, MAX)
    assert none == none_either == []
    assert second.id != first.id
    second.open(used("was open"))
    first.close()
    second.close()
    own, orphans = own_and_orphans(tmp_path, MAX)
    assert {own.id, *(o.id for o in orphans)} == {first.id, second.id}
    told = [name for spool in (own, *orphans) for _, name, _ in names(spool)]
    assert told == ["was open"]
    (orphan,) = orphans
    orphan.remove()
    assert [path.name for path in tmp_path.iterdir()] == [own.id]


@given(st.lists(st.sampled_from(["open", "known", "close"]), max_size=40), st.integers(0, 10_000), st.data())
def test_cut_off_anywhere_it_holds_a_beginning_of_what_was_told(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], cut: int, data: st.DataObject
) -> None:
    """A crash of the machine leaves any beginning of the file: nothing is made up, and nothing is told twice."""
    directory = tmp_path_factory.mktemp("spool") / "s"
    spool = Spool(directory, MAX)
    opened, told = list[int](), list[str]()
    for step in steps:
        if step == "open":
            opened.append(spool.open(used(f"n{len(opened)}:{len(told)}")))
        elif opened and step == "known":
            spool.known(data.draw(st.sampled_from(opened)), 1, 0, 2)
        elif opened:
            number = opened.pop(data.draw(st.integers(0, len(opened) - 1)))
            told.append(f"t{len(told)}")
            spool.tell(used(told[-1], "200"), number)
    spool.close()
    (path,) = directory.glob("*.log")
    os.truncate(path, min(cut, path.stat().st_size))
    again = Spool(directory, MAX)
    found = names(again)
    assert [seq for seq, _, _ in found] == list(range(1, len(found) + 1))
    ended = [name for _, name, status in found if status == "200"]
    assert ended == told[: len(ended)]
    if cut >= path.stat().st_size and len(list(directory.glob("*.log"))) == 1:
        assert ended == told
    again.close()


def test_bytes_that_are_none_end_the_log(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", MAX)
    spool.tell(used("kept", "200"), spool.open(used("kept")))
    spool.close()
    (path,) = (tmp_path / "s").glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\x10\x00\x00\x00 nothing of ours")
    assert names(Spool(tmp_path / "s", MAX)) == [(1, "kept", "200")]


def test_a_log_that_was_removed_never_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sequences would begin at 1 under a name of which control has more: what it tells would be thrown away."""
    removed, kept = Spool(tmp_path / "a", MAX), Spool(tmp_path / "b", MAX)
    kept.close()
    locking = fcntl.flock

    def removed_meanwhile(descriptor: int, how: int) -> None:
        if (tmp_path / "a").exists():
            removed.remove()
        locking(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    own, orphans = own_and_orphans(tmp_path, MAX)
    assert (own.id, orphans) == ("b", [])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with pytest.raises(SpoolBusyError):
        Spool(tmp_path / "a", MAX, make=False)


class Books:
    """Control's side of one spool, as `control.usage.take` keeps it. `told`: names, `missing`: sequences passed over."""

    def __init__(self) -> None:
        self.mark = 0
        self.told: list[str] = []
        self.missing: list[int] = []

    async def report(self, report: Report) -> Mark:
        if report.oldest > self.mark + 1:
            self.missing += range(self.mark + 1, report.oldest)
            self.mark = report.oldest - 1
        for told in report.told:
            if told.seq == self.mark + 1 and isinstance(told, Used):
                self.mark = told.seq
                self.told.append(f"{told.request_id} {told.status}")
        return Mark(self.mark)

    async def demand(self, demand: object) -> None:
        raise NotImplementedError


async def reported(spool: Spool, books: Books) -> int:
    """Places that were damaged, once all is told."""
    reports = Reports(books, spool, [], lambda: 0.0, random.random)  # type: ignore[arg-type]
    await reports.flush()
    return reports.damaged


def written(directory: Path, count: int) -> list[tuple[int, int]]:
    """A log of so many requests, `r1` and so on, in one segment; from where to where each one's end goes."""
    spool, places = Spool(directory, MAX), []
    (path,) = directory.glob("*.log")
    for number in range(1, count + 1):
        opened = spool.open(used(f"r{number}"))
        start = len(path.read_bytes().rstrip(b"\0"))
        spool.tell(used(f"r{number}", "200"), opened)
        places.append((start, len(path.read_bytes().rstrip(b"\0"))))
    spool.close()
    return places


@pytest.mark.parametrize("known", [0, 3, 5, 10])
async def test_damage_in_the_middle_costs_what_is_in_it_and_is_told(tmp_path: Path, known: int) -> None:
    """Also where control has all of it already: then nothing is told anew, and nothing new is taken for it."""
    places = written(tmp_path / "s", 10)
    books = Books()
    (path,) = (tmp_path / "s").glob("*.log")
    whole = path.read_bytes()
    if known:
        books.mark = known
    for at in {places[4][0], places[4][0] + 6, places[4][0] + 20, places[4][1] - 1}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        for old in (tmp_path / "s").glob("*.log"):
            if old != path:
                old.unlink()
        books.mark, books.told, books.missing = known, [], []
        spool = Spool(tmp_path / "s", MAX)
        spool.tell(used("new", "200"), spool.open(used("new")))
        synced(spool)
        assert await reported(spool, books) == 1
        assert books.told == [
            *(f"r{n} 200" for n in range(known + 1, 11) if n != 5),
            "r5 lost",
            "new 200",
        ]
        assert books.missing == ([5] if known < 5 else [])
        spool.close()


async def test_every_byte_of_it_may_be_damaged(tmp_path: Path) -> None:
    written(tmp_path / "s", 3)
    (path,) = (tmp_path / "s").glob("*.log")
    whole = path.read_bytes()
    for at in range(len(whole)):
        for old in (tmp_path / "s").glob("*.log"):
            old.unlink()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        spool, books = Spool(tmp_path / "s", MAX), Books()
        spool.tell(used("new", "200"), spool.open(used("new")))
        synced(spool)
        await reported(spool, books)
        assert books.told[-1] == "new 200"
        assert len([name for name in books.told if name.endswith("200")]) >= 3
        assert len(books.told) == len(set(books.told))
        spool.close()


async def test_an_orphan_that_is_an_older_copy_is_told_before_it_goes(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", MAX)
    spool.open(used("was open"))
    spool.close()
    own, (orphan,) = Spool(tmp_path / "own", MAX), [Spool(tmp_path / "s", MAX)]
    books = Books()
    books.mark = 5
    await Reports(books, own, [orphan], lambda: 0.0, random.random)._flush(orphan)  # type: ignore[arg-type]
    assert books.told == ["was open lost"]


@pytest.mark.parametrize("lag", [1, 4, 10])
async def test_an_older_copy_of_a_log_hides_nothing_new(tmp_path: Path, lag: int) -> None:
    """A disk that was restored: the sequences that it would give next are known to control as others."""
    written(tmp_path / "s", 5)
    books = Books()
    books.mark = 5 + lag
    spool = Spool(tmp_path / "s", MAX)
    names = [f"n{number}" for number in range(6)]
    for name in names[:3]:
        spool.tell(used(name, "200"), spool.open(used(name)))
    assert await reported(spool, books) == 1
    for name in names[3:]:
        spool.tell(used(name, "200"), spool.open(used(name)))
    synced(spool)
    spool.close()
    spool = Spool(tmp_path / "s", MAX)
    assert await reported(spool, books) == 0
    assert sorted(books.told) == [f"{name} 200" for name in names]


def test_a_full_disk_refuses_admissions_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 400)
    spool = Spool(tmp_path / "s", MAX)
    spool.tell(used("before", "200"), spool.open(used("before")))
    open_still = spool.open(used("open still"))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as disk:
        disk.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="no space"):
            [spool.open(used("filler")) for _ in range(10)]
        files = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            with pytest.raises(OSError, match="no space"):
                spool.open(used("refused"))
        with pytest.raises(OSError, match="no space"):
            spool.tell(used("open still", "200"), open_still)
        assert len(os.listdir("/proc/self/fd")) == files
        synced(spool)
        assert names(spool) == [(1, "before", "200")]
    spool.tell(used("after", "200"), spool.open(used("after")))
    synced(spool)
    assert names(spool) == [(1, "before", "200"), (2, "after", "200")]
    spool.close()
    again = Spool(tmp_path / "s", MAX)
    told = [(name, status) for _, name, status in names(again)]
    assert told[:2] == [("before", "200"), ("after", "200")]
    assert ("open still", LOST) in told
    assert "refused" not in dict(told)


def test_what_is_no_log_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".a file").write_text("x")
    (tmp_path / "a directory").mkdir()
    spool, orphans = own_and_orphans(tmp_path, MAX)
    assert orphans == []
    assert {path.name for path in tmp_path.iterdir()} == {".a file", "a directory", spool.id}


@pytest.mark.parametrize("trouble", ["not taken", "not removed"])
async def test_an_orphan_that_cannot_go_holds_up_nobody(tmp_path: Path, trouble: str) -> None:
    """Control does not take what it says, or its directory stays: on NFS files that were open leave others behind."""
    orphan = Spool(tmp_path / "s", MAX)
    if trouble == "not removed":
        (tmp_path / "s" / ".nfs0001").touch()

    class Picky(Books):
        async def report(self, report: Report) -> Mark:
            if report.spool != "own":
                if trouble == "not taken":
                    raise UntoldError
                return Mark(0)
            return await super().report(report)

    own, books = Spool(tmp_path / "own", MAX), Picky()
    reports = Reports(books, own, [orphan], lambda: 0.0, random.random)  # type: ignore[arg-type]
    for number in range(3):
        own.tell(used(f"r{number}", "200"), own.open(used()))
        synced(own)
        with contextlib.suppress(UntoldError):
            await reports.flush()
        assert len(books.told) == number + 1
