"""The OpenAI Python SDK, unchanged, against the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import msgspec
import openai
import pytest
from openai import AsyncOpenAI

from tests.gateway.conftest import Town
from tests.gateway.test_paying import PRICE, Bank, snapshot
from tests.gateway.test_retries import fenced
from tests.gateway.test_streams import chunk, open_stream
from tests.gateway.world import BASE, make_key

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(town: Town) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{town.site.url}/v1", api_key=town.key, max_retries=0) as made:
        yield made


async def test_list(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [
        BASE,
        f"{BASE}:1",
        "ft1:1",
        f"{BASE}:tune-1",
    ]
    assert (await client.models.retrieve("ft1:1")).owned_by == "acc_acme"


async def test_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="ft1:1", messages=HELLO)  # type: ignore[arg-type]
    assert (answer.model, answer.choices[0].message.content) == ("ft1:1", "hello")
    assert answer._request_id


async def test_stream(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=f"{BASE}:tune-1", messages=HELLO, stream=True)  # type: ignore[arg-type]
    chunks = [part async for part in stream]
    assert "".join(part.choices[0].delta.content or "" for part in chunks) == "hello"
    assert {part.model for part in chunks} == {f"{BASE}:tune-1"}


async def test_embeddings(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model=BASE, input="x", encoding_format="float")
    assert (answer.model, answer.data[0].embedding) == (BASE, [0.5, -1.25])


async def test_errors_are_its_own_classes(town: Town, client: AsyncOpenAI) -> None:
    async def ask(model: str, **extra: object) -> None:
        await client.chat.completions.create(model=model, messages=HELLO, extra_body=extra)  # type: ignore[arg-type]

    with pytest.raises(openai.NotFoundError) as missing:
        await ask("nope")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError):
        await ask(BASE, lora_request={})
    town.a.behave = town.b.behave = fenced
    with pytest.raises(openai.InternalServerError) as loading:
        await ask("ft1:1")
    assert (loading.value.status_code, loading.value.code) == (503, "adapter_loading")
    client.api_key = "pil_wrong"
    with pytest.raises(openai.AuthenticationError) as wrong:
        await ask(BASE)
    assert wrong.value.code == "invalid_api_key"
    client.api_key, entry = make_key("acc_acme", "manage")
    await town.publish(entry, town.instance(town.a))
    with pytest.raises(openai.PermissionDeniedError):
        await ask(BASE)


async def test_a_stream_that_fails_raises(town: Town, client: AsyncOpenAI) -> None:
    async def fail(request, body):  # type: ignore[no-untyped-def]
        response = await open_stream(request)
        await response.write(chunk(body["model"], "hel"))
        return response

    town.a.behave = town.b.behave = fail
    stream = await client.chat.completions.create(model=BASE, messages=HELLO, stream=True)  # type: ignore[arg-type]
    with pytest.raises(openai.APIError, match="not complete"):
        async for _ in stream:
            pass


async def refusal(client: AsyncOpenAI, model: str = BASE) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.with_options(max_retries=1).chat.completions.create(model=model, messages=HELLO)  # type: ignore[arg-type]
    return caught.value


async def priced(town: Town, bank: Bank, *, limit: int | None = None) -> AsyncOpenAI:
    """A client whose key pays at this bank."""
    town.site.control.public = bank.handle
    key, made = snapshot(town, (PRICE,), limit=limit)
    await town.site.control.publish(made)
    return AsyncOpenAI(base_url=f"{town.site.url}/v1", api_key=key)


async def test_what_the_balance_does_not_cover_is_told_and_not_tried_again(town: Town) -> None:
    bank = Bank(0)
    async with await priced(town, bank) as client:
        found = await refusal(client)
    assert (found.status_code, found.code, found.type) == (402, "insufficient_balance", "billing_error")
    assert found.response.request.headers["x-stainless-retry-count"] == "0"
    assert town.a.asked == []


@pytest.mark.parametrize("spent", [True, False])
async def test_a_quota_is_no_limit_of_rate_and_not_tried_again(town: Town, spent: bool) -> None:
    """A key that has spent its limit; control away, and nothing in hand."""
    bank = Bank(10**6, limit=0) if spent else Bank(0, away=True)
    async with await priced(town, bank, limit=bank.limit) as client:
        found = await refusal(client)
    assert isinstance(found, openai.RateLimitError)
    assert (found.code, found.response.headers["x-should-retry"]) == ("insufficient_quota", "false")
    assert "retry-after" not in found.response.headers
    assert found.response.request.headers["x-stainless-retry-count"] == "0"
    assert town.a.asked == []


async def test_a_limit_of_rate_is_waited_for_as_long_as_it_says(town: Town) -> None:
    text, (lookup, entry) = make_key()
    entry = msgspec.structs.replace(entry, requests_per_minute=1)
    _, known = snapshot(town, None)
    await town.site.control.publish(msgspec.structs.replace(known, keys={lookup: entry}))
    async with AsyncOpenAI(base_url=f"{town.site.url}/v1", api_key=text) as client:
        await client.chat.completions.create(model=BASE, messages=HELLO)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            waits: list[float] = []

            async def slept(_: object, *, response: httpx.Response, **__: object) -> None:
                waits.append(float(response.headers["retry-after"]))

            patch.setattr(type(client), "_sleep_for_retry", slept)
            found = await refusal(client)
    assert isinstance(found, openai.RateLimitError)
    assert (found.code, found.response.headers["x-ratelimit-limit-requests"]) == ("rate_limit_exceeded", "1")
    assert found.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert found.response.request.headers["x-stainless-retry-count"] == "1", "once more, and no more"
    assert len(waits) == 1
    assert 0 < waits[0] <= 60
