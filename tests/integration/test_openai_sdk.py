"""The OpenAI Python SDK, unchanged, against the one URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from pillion.sdk import Pillion

from .site import Site, adapter_file, tag, until


@pytest.fixture
def served(site: Site, client: Pillion, tmp_path: Path) -> tuple[int, str, str]:
    """Instance, alias and answer of an attached adapter of `client`'s."""
    instance = site.launch(client)
    made = client.adapters.upload("captain", "tiny", adapter_file(tmp_path, 1))
    client.adapters.attach("captain", instance)
    client.adapters.wait_ready("captain", instance)
    return instance, made.aliases[0], tag(made.digest)


def sdk(site: Site, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def ai(site: Site, client: Pillion) -> Iterator[openai.OpenAI]:
    made = client.keys.create(name="sdk", scopes=["inference"])
    assert made.key is not None
    with sdk(site, made.key) as found:
        yield found


def say(ai: openai.OpenAI, model: str, **options: object) -> str | None:
    answer = ai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=4,
        **options,  # type: ignore[call-overload]
    )
    assert answer.model == model
    return answer.choices[0].message.content  # type: ignore[no-any-return]


def test_lists_what_this_key_can_call(ai: openai.OpenAI, served: tuple[int, str, str]) -> None:
    instance, alias, _ = served
    found = {model.id: getattr(model, "parent", None) for model in ai.models.list()}
    assert found[alias] == found["tiny:captain"] == "tiny"
    assert {"tiny", f"tiny:{instance}"} <= found.keys()


def test_chats_streams_and_completes(ai: openai.OpenAI, served: tuple[int, str, str]) -> None:
    instance, alias, expected = served
    assert say(ai, alias) == say(ai, "tiny:captain") == expected
    assert say(ai, f"tiny:{instance}", extra_headers={"x-pillion-adapter-id": "captain"}) == expected
    assert say(ai, "tiny") == tag(None)
    stream = ai.chat.completions.create(
        model=alias, messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {alias}
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert ai.completions.create(model=alias, prompt="hi", max_tokens=4).choices[0].text.strip() == expected
    assert ai.responses.create(model=alias, input="hi", max_output_tokens=4).output_text.strip() == expected


def test_writes_sounds_down(client: Pillion, ai: openai.OpenAI, served: tuple[int, str, str]) -> None:
    """A form: the model is one of its fields, and the tokens are counted."""
    _, alias, expected = served
    sound = ("a.wav", b"RIFF" * 5_000)
    more = {"max_completion_tokens": "4"}
    answer = ai.audio.transcriptions.create(model=alias, file=sound, extra_body=more)
    assert answer.text.strip() == expected
    assert answer.usage is not None
    with ai.audio.transcriptions.with_streaming_response.create(
        model=alias, file=sound, stream=True, extra_body=more
    ) as stream:
        text = "".join(stream.iter_lines())
    assert text.endswith("data: [DONE]")
    assert "usage" not in text
    with pytest.raises(openai.NotFoundError):
        ai.audio.transcriptions.create(model="tiny:nobodys", file=sound)
    events = until(
        lambda: found if len(found := list(client.usage.events())) == 2 else [], "two usage events"
    )
    assert {(event.prompt_tokens, event.completion_tokens) for event in events} == {(21, 4)}


def test_embeds(site: Site, client: Pillion, ai: openai.OpenAI) -> None:
    made = client.instances.launch("embed", regions=["eu-1"])
    client.instances.wait_running(made.id)
    assert len(ai.embeddings.create(model="embed", input="hi").data[0].embedding) > 0


def test_errors_are_its_own_exceptions(
    site: Site, client: Pillion, ai: openai.OpenAI, served: tuple[int, str, str]
) -> None:
    _, alias, _ = served
    with pytest.raises(openai.NotFoundError) as unknown:
        say(ai, "nothing-of-that-name")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as mismatch:
        say(ai, "other", extra_headers={"x-pillion-adapter-id": "captain"})
    assert mismatch.value.code == "base_mismatch"
    with sdk(site, "pil_wrong") as stranger, pytest.raises(openai.AuthenticationError):
        say(stranger, alias)
    manager = client.keys.create(name="manager", scopes=["manage"])
    assert manager.key is not None
    with sdk(site, manager.key) as limited, pytest.raises(openai.PermissionDeniedError):
        say(limited, alias)


def test_a_revoked_key_is_refused_at_once(site: Site, client: Pillion, served: tuple[int, str, str]) -> None:
    _, alias, expected = served
    made = client.keys.create(name="brief", scopes=["inference"])
    assert made.key is not None
    with sdk(site, made.key) as brief:
        assert say(brief, alias) == expected
        client.keys.revoke(made.id)
        with pytest.raises(openai.AuthenticationError):
            say(brief, alias)


def test_what_is_anothers_does_not_exist(
    site: Site, tenant: Callable[[], Pillion], served: tuple[int, str, str]
) -> None:
    instance, alias, _ = served
    key = tenant().keys.create(name="sdk", scopes=["inference"]).key
    assert key is not None
    with sdk(site, key) as other:
        for model in (alias, "tiny:captain", f"tiny:{instance}"):
            with pytest.raises(openai.NotFoundError) as foreign:
                say(other, model)
            with pytest.raises(openai.NotFoundError) as unknown:
                say(other, "tiny:nobodys")
            expected = str(unknown.value.body).replace("tiny:nobodys", model)
            assert str(foreign.value.body) == expected
        assert all(alias != model.id for model in other.models.list())
