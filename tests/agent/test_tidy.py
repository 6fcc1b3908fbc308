"""An agent clears away copies that nobody on its node is granted."""

import os
import time
from pathlib import Path

import pytest

from pillion.agent.home import Home
from pillion.agent.permitted import FILE
from pillion.agent.tidy import Tidy
from tests.agent.conftest import home_of
from tests.replicas import Node, grant


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_what_any_replica_of_the_node_is_granted_or_was_permitted_stays(node: Node) -> None:
    granted, permitted, others, nobodys = (node.put(f"a{n}", n) for n in range(4))
    for entry in (granted, permitted, others, nobodys):
        await node.fetch(entry.digest)
        os.utime(node.data_dir / "cache" / "adapters" / f"{entry.digest}.checked", (1.0, 1.0))
    spec = node.spec()
    home = home_of(node, spec)
    home.write("grant.json", grant(1, granted))
    home.write(FILE, {"entries": [permitted]})
    beside = home.directory.with_name("r8-local-beside")
    beside.mkdir()
    Home(beside).write("grant.json", grant(1, others, replica="r8-local-beside"))
    tidy = Tidy(home, Path(spec.cache_dir), 0, time.time)
    assert tidy.look() == [nobodys.digest]
    Home(beside).write("grant.json", grant(2, replica="r8-local-beside"))
    assert tidy.look() == [others.digest]
    assert Tidy(home, node.data_dir / "nowhere", 0, time.time).look() == []
