"""The catalogue's entries refuse what they do not know, so that a misspelt setting is not ignored."""

import msgspec
import pytest

from pillion.core.catalogue import CatalogueModel, GpuType, Pool, Provider, Region


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Region, {"name": "a", "gpu": {}}),
        (Region, {"gpus": {}}),
        (Region, {"name": "a", "provisioner": "cloud"}),
        (Region, {"name": "a", "gpus": {"cpu": "many"}}),
        (CatalogueModel, {"name": "a"}),
        (CatalogueModel, {"name": "a", "source": "hf:a/a", "loras": True}),
        (Pool, {"model": "a", "on-demand": True}),
        (GpuType, {"name": "H100", "memory": 80}),
        (Provider, {"name": "x", "base_url": "http://x"}),
    ],
)
def test_unknown_and_missing_settings_are_refused(kind: type, given: dict) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, kind)


def test_defaults() -> None:
    assert Region("a").provisioner == "local"
    model = CatalogueModel("a", "hf:a/a")
    assert (model.kind, model.engine, model.lora, model.options) == ("chat", "vllm", True, {})
    assert Pool("a").on_demand
