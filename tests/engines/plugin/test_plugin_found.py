"""An engine finds the plugin through PYTHONPATH alone."""

import importlib.metadata
from pathlib import Path

import pillion.engines

PLUGIN = Path(pillion.engines.__file__).parent / "plugin"


def test_the_entry_point_is_found_on_the_path() -> None:
    found = list(importlib.metadata.distributions(path=[str(PLUGIN)]))

    assert [dist.metadata["Name"] for dist in found] == ["pillion-engine"]
    (entry,) = found[0].entry_points.select(group="vllm.general_plugins")
    assert (entry.name, entry.value) == ("pillion", "pillion_engine.patch:register")


def test_versions_agree() -> None:
    from pillion.engines.plugin.pillion_engine import __version__

    (dist,) = importlib.metadata.distributions(path=[str(PLUGIN)])
    assert dist.version == __version__
