"""An explanation as a person reads it; in a pipe a line per replica, of tab-separated fields."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from pillion.cli import output
from pillion.cli.output import moment, plain, utc
from pillion.sdk.types import Explanation, PlaceExplained, ReplicaExplained

TITLES = ("instance", "wish", "replica", "region", "state", "serving", "version", "since", "why_not", "next")


def show(found: Explanation) -> None:
    if not output.on_terminal():
        output.print_rows(TITLES, list(_rows(found)))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: Explanation) -> Iterator[str]:
    yield plain(found.summary)
    yield from _sayings(found.why_not, found.next, "")
    for place in found.places:
        yield ""
        yield _head(place)
        yield from _sayings(place.why_not, place.next, "  ")
        for replica in place.replicas:
            yield f"  {_replica(replica)}"
            yield from _sayings([], [replica.next] if replica.next else [], "    ")


def _head(place: PlaceExplained) -> str:
    words = [place.wish.replace("_", " ") if place.wish != "none" else "not wanted here"]
    words += [place.state] if place.state else []
    words += [f"served by {place.serving} of {place.wanted} replicas"] if place.wanted else []
    words += [f"session {place.session_key}"] if place.session_key else []
    return plain(f"instance {place.instance_id} ({place.model}, {place.instance_state}): {', '.join(words)}")


def _replica(replica: ReplicaExplained) -> str:
    where = f"{replica.replica} in {replica.region}"
    if not replica.serving:
        return plain(f"{where}: {replica.why_not or replica.state}")
    words = [f"serves version {replica.version}" if replica.version else "serves it"]
    words += [f"since {moment(replica.since)}"] if replica.since else []
    words += [f"loaded in {replica.load_ms:.0f} ms"] if replica.load_ms is not None else []
    words += [f"last used {moment(replica.last_used)}"] if replica.last_used else ["not used yet"]
    return plain(f"{where}: {', '.join(words)}")


def _sayings(why_not: list[str], following: list[str], indent: str) -> Iterator[str]:
    for text in why_not:
        yield f"{indent}not yet: {plain(text)}"
    for text in following:
        yield f"{indent}next: {plain(text)}"


def _rows(found: Explanation) -> Iterator[list[str]]:
    """One for each replica; where there is none, one for the place, or for the adapter alone."""
    if not found.places:
        yield ["", "", "", "", "", "no", "", "", *_both(found.why_not, found.next)]
    for place in found.places:
        head = [str(place.instance_id), place.wish]
        for replica in place.replicas:
            version = "" if replica.version is None else str(replica.version)
            serving = "yes" if replica.serving else "no"
            facts = [
                replica.replica,
                replica.region,
                replica.state,
                serving,
                version,
                utc(replica.since) or "",
            ]
            why_not = [*place.why_not, *([replica.why_not] if replica.why_not else [])]
            yield [*head, *facts, *_both(why_not, [*place.next, *([replica.next] if replica.next else [])])]
        if not place.replicas:
            yield [*head, "", "", "", "no", "", "", *_both(place.why_not, place.next)]


def _both(why_not: list[str], following: list[str]) -> list[str]:
    return [plain("; ".join(why_not)), plain("; ".join(following))]
