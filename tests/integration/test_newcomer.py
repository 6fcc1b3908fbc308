"""The newcomer's way: launch, register, attach, call by every name, detach."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillion.sdk import Pillion
from pillion.sdk.errors import NotFoundError

from .site import Site, adapter_file, ask, tag


def test_from_an_adapter_file_to_an_answer(site: Site, client: Pillion, tmp_path: Path) -> None:
    walk(site, client, tmp_path)


def walk(site: Site, client: Pillion, folder: Path) -> None:
    """All of it; what is left is the instance, which serves the base."""
    instance = site.launch(client)
    made = client.adapters.upload("captain", "tiny", adapter_file(folder, 1))
    assert made.aliases == [f"captain:{made.row_id}", "tiny:captain"]
    assert any("lora_alpha" in warning for warning in made.warnings)

    client.adapters.attach("captain", instance)
    attachment = client.adapters.wait_ready("captain", instance)
    assert (attachment.ready, attachment.wanted) == (1, 1)

    assert ask(client, "tiny") == ask(client, f"tiny:{instance}") == tag(None)
    for name in made.aliases:
        assert ask(client, name) == tag(made.digest)
    for ref in ("captain", made.id, str(made.row_id)):
        assert (
            ask(client, "tiny", adapter=ref)
            == ask(client, f"tiny:{instance}", adapter=ref)
            == tag(made.digest)
        )

    client.adapters.rename("captain", "skipper")
    assert ask(client, f"skipper:{made.row_id}") == ask(client, f"captain:{made.row_id}") == tag(made.digest)

    client.adapters.detach("captain", instance)
    client.adapters.wait_gone("captain", instance)
    for name in (*made.aliases, f"skipper:{made.row_id}"):
        with pytest.raises(NotFoundError) as refused:
            ask(client, name)
        assert refused.value.code == "adapter_not_deployed"
    assert ask(client, "tiny") == tag(None)
