from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pillion.sdk import Pillion

from .site import Site, running

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for the whole worker: every test takes an account of its own and stops its instances."""
    made = Site(tmp_path_factory.mktemp("site"))
    with running(made):
        yield made
    assert made.process is not None
    assert made.process.returncode == 0
    assert made.processes() == []


@pytest.fixture
def tenant(site: Site) -> Iterator[Callable[[], Pillion]]:
    made: list[Pillion] = []

    def new() -> Pillion:
        made.append(site.tenant(f"tenant-{next(_numbers)}"))
        return made[-1]

    yield new
    for client in made:
        for instance in client.instances.list():
            client.instances.stop(instance.id)
        client.close()


@pytest.fixture
def client(tenant: Callable[[], Pillion]) -> Pillion:
    return tenant()


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """One that a test may break."""
    made = Site(tmp_path)
    with running(made):
        yield made
