"""The newcomer's way with PostgreSQL under it, and that what was made there is there at the next start."""

from __future__ import annotations

from pathlib import Path

from tests.postgres import Cluster, postgres

from .site import Site, adapter_file, ask, running, tag, until
from .test_newcomer import walk

__all__ = ["postgres"]


def test_the_newcomers_way_on_postgresql(postgres: Cluster, tmp_path: Path) -> None:
    name = postgres.create()
    try:
        with running(Site(tmp_path, database=postgres.url(name))) as site, site.client() as client:
            walk(site, client, tmp_path)
            assert not list(site.data.rglob("*.db")), "nothing is kept in SQLite"
    finally:
        postgres.drop(name)


def test_a_second_start_serves_what_the_first_was_given(postgres: Cluster, tmp_path: Path) -> None:
    name = postgres.create()
    try:
        with running(Site(tmp_path, database=postgres.url(name))) as site, site.client() as client:
            instance = site.launch(client)
            made = client.adapters.upload("captain", "tiny", adapter_file(tmp_path, 1))
            client.adapters.attach("captain", instance)
            client.adapters.wait_ready("captain", instance)
            assert site.stop() == 0
            site.start()
            answer = until(lambda: ask(client, made.aliases[0]), "the adapter at the second start")
            assert answer == tag(made.digest)
    finally:
        postgres.drop(name)
