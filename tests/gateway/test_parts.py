"""The small pure parts: what bodies may say, what errors may tell, who is asked, how often."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from pillion.core.choice import CROWD, LOOKED_AT
from pillion.core.errors import InvalidRequestError
from pillion.core.routing import Candidate, Routes
from pillion.gateway.app import kind_of
from pillion.gateway.balance import Balance, RetryBudget
from pillion.gateway.body import ALLOWED, DENIED, BodyPolicy, ask_for_usage, cache_salt
from pillion.gateway.faults import Scrub
from pillion.gateway.http import Head
from tests.gateway.world import ACME, BASE, make_adapter, make_instance, make_replica, make_snapshot

CHAT = "/v1/chat/completions"


def apply(policy: BodyPolicy, path: str, document: dict[str, Any]) -> dict[str, Any]:
    """What an engine would get of this JSON."""
    applied = policy.apply(path, {name: msgspec.Raw(msgspec.json.encode(v)) for name, v in document.items()})
    return {name: msgspec.json.decode(raw) for name, raw in applied.items()}


@pytest.mark.parametrize(
    "params",
    [
        chat_create_params.CompletionCreateParamsStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
        embedding_create_params.EmbeddingCreateParams,
        response_create_params.ResponseCreateParamsStreaming,
    ],
)
def test_all_of_openais_fields_pass(params: Any) -> None:
    assert set(params.__annotations__) | set(get_type_hints(params)) <= ALLOWED


def test_nothing_is_both_allowed_and_denied() -> None:
    assert not ALLOWED & DENIED


def test_operators_leave() -> None:
    policy = BodyPolicy(media_urls=True, extras=frozenset({"priority", "vllm_xargs", "chat_template_kwargs"}))
    body = {
        "model": BASE,
        "priority": 1,
        "vllm_xargs": {},
        "chat_template_kwargs": {"anything": 1},
        "messages": [{"role": "user", "content": [{"image_url": {"url": "https://example.org"}}]}],
    }
    assert apply(policy, CHAT, body) == body


@pytest.mark.parametrize(
    "switches", [{"chat_template": "{{x}}"}, {"tokenize": True}, "x", ["enable_thinking"]]
)
def test_template_switches(switches: Any) -> None:
    apply(BodyPolicy(), CHAT, {"chat_template_kwargs": {"enable_thinking": False}})
    with pytest.raises(InvalidRequestError):
        apply(BodyPolicy(), CHAT, {"chat_template_kwargs": switches})


@pytest.mark.parametrize("path", [CHAT, "/v1/score", "/v1/messages"])
@pytest.mark.parametrize("field", sorted(DENIED))
def test_denied_on_every_path(path: str, field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        apply(BodyPolicy(), path, {"model": BASE, field: None})


def test_media_where_it_may_hide() -> None:
    for body in (
        {"documents": {"content": [{"type": "video_url", "video_url": {"url": "rtsp://x"}}]}},
        {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
        {"input": [[{"file_url": "http://x"}]]},
    ):
        with pytest.raises(InvalidRequestError, match="data:"):
            apply(BodyPolicy(), "/v1/rerank", body)
    schema = {"properties": {"image_url": {"type": "string", "url": "http://x"}}}
    apply(BodyPolicy(), CHAT, {"tools": [{"type": "function", "function": {"parameters": schema}}]})


def test_stream_options_that_are_none() -> None:
    with pytest.raises(InvalidRequestError, match="stream_options"):
        ask_for_usage(CHAT, {"stream": msgspec.Raw(b"true"), "stream_options": msgspec.Raw(b"5")})


@pytest.mark.parametrize("salt", [b'"\xff"', b"1e999", b"5", b'""', b'{"a": 1}', b'"' + 257 * b"x" + b'"'])
def test_a_salt_that_is_none(salt: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        BodyPolicy().apply(CHAT, {"cache_salt": msgspec.Raw(salt)})


def test_salt_differs_by_account_and_by_the_clients_own() -> None:
    salts = [cache_salt(b"p", *ask) for ask in (("a", None), ("b", None), ("a", "b"), ("a", None))]
    assert salts[0] == salts[3]
    assert len(set(salts)) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("The model `served/qwen3-4b` does not exist.", "The model `qwen3-4b` does not exist."),
        ("served/qwen3-4b-more is another", "served/qwen3-4b-more is another"),
        ("adp_00000000000000000009@" + "0f" * 32 + " failed", "qwen3-4b failed"),
        ("File /usr/lib/python3/vllm/x.py, line 3", "File [path], line 3"),
        ("ratio 3/4 and a/b are no paths", "ratio 3/4 and a/b are no paths"),
        ("see http://127.0.0.1:8000/v1 now", "see [address] now"),
    ],
)
def test_scrub(text: str, told: str) -> None:
    assert Scrub("served/qwen3-4b", "qwen3-4b").message(text) == told


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/chat/completions", "inference"),
        ("POST", "/v1/responses", "inference"),
        ("POST", "/v1/audio/transcriptions", "inference"),
        ("GET", "/v1/responses/resp_1", "control"),
        ("GET", "/v1/models", "models"),
        ("HEAD", "/v1/models/ft1:1", "models"),
        ("DELETE", "/v1/models/ft1:1", "control"),
        ("POST", "/v1/models", "control"),
        ("POST", "/v1/adapters/upload", "control"),
        ("POST", "/v1/fine_tuning/jobs", "control"),
        ("POST", "/v1/load_lora_adapter", "control"),
        ("POST", "/v1/chat/", "control"),
        ("POST", "/v1", "control"),
        ("POST", "/v1/%61dapters", "control"),
        ("POST", "/v1/x/../../pillion", "control"),
        ("POST", "/chat/completions", "control"),
        ("GET", "/healthz", "own"),
        ("POST", "/healthz", "control"),
        ("GET", "/inference-instances/5/proxy/x", "container"),
        ("GET", "/inference-instances/5", "control"),
        ("GET", "/inference-instances/5/proxyx", "control"),
    ],
)
def test_kinds(method: str, path: str, kind: str) -> None:
    assert kind_of(Head(method, path, "", ())) == kind


def test_choice() -> None:
    now = [0.0]
    balance = Balance(lambda: now[0], out_s=5)
    own = make_instance(1, make_replica("a"), make_replica("b"))
    pool = make_instance(2, make_replica("p"), account=None)
    route = Routes(make_snapshot(own, pool)).resolve(ACME, BASE, None, 0.0)

    def choice(*excluded: str) -> str | None:
        candidate = balance.choose(route, excluded)
        return None if candidate is None else candidate.replica.id

    first = choice()
    other = {"a": "b", "b": "a"}[first or ""]
    assert choice() == first
    with balance.holding(first or ""), balance.holding(first or ""):
        assert choice() == other
        with balance.holding(other), balance.holding(other), balance.holding(other):
            assert choice() == first
    assert balance.in_flight(other) == 0
    balance.failed(first or "")
    assert choice() == other
    balance.failed(other)
    assert choice() == "p"
    now[0] = 5.0
    assert choice() == first
    balance.failed(first or "")
    now[0] = 14.0  # out for twice as long: it was the second failure in a row
    assert choice() == other
    assert choice("a", "b") == "p"
    assert choice("a", "b", "p") is None


def test_one_that_had_no_substitute_comes_back_as_soon_as_it_answers() -> None:
    """Requests that may go nowhere else fail on it again and again, and are the first to be answered."""
    now = [0.0]
    balance = Balance(lambda: now[0], out_s=5)
    route = Routes(make_snapshot(make_instance(1, make_replica("a"), make_replica("b")))).resolve(
        ACME, BASE, None, 0.0
    )
    first, other = (candidate.replica.id for candidate in route.candidates)
    for _ in range(2000):  # of an adapter that is nowhere else, within a second
        balance.failed(first)
    now[0] = 20.0
    assert balance.choose(route) == route.candidates[1]
    balance.answered(first)
    now[0] = 31.0
    assert balance.choose(route) == route.candidates[0]
    assert other != first


def test_what_was_recent_fades() -> None:
    now = [0.0]
    balance = Balance(lambda: now[0])
    route = Routes(make_snapshot(make_instance(1, make_replica("a"), make_replica("b")))).resolve(
        ACME, BASE, None, 0.0
    )
    first, other = (candidate.replica.id for candidate in route.candidates)

    def asked() -> str:
        candidate = balance.choose(route)
        assert candidate is not None
        with balance.holding(candidate.replica.id):
            return candidate.replica.id

    given = [asked() for _ in range(1000)]
    assert given[0] == first
    assert 1 < given.count(first) / given.count(other) < 1.8  # 1.25 and 0.75 times the mean
    now[0] = 1e5
    assert {asked() for _ in range(10)} == {first}


def test_it_is_loaded_elsewhere_only_where_it_must_be() -> None:
    replicas = [make_replica(name) for name in "abc"]
    instance = make_instance(1, *replicas)
    route = Routes(make_snapshot(instance)).resolve(ACME, BASE, None, 0.0)
    candidates = tuple(
        Candidate(instance, r, 0, resident=r.id == "b") for r in (replicas[1], replicas[0], replicas[2])
    )
    route = dataclasses.replace(route, candidates=candidates)
    balance = Balance(lambda: 0.0)
    for _ in range(CROWD):
        assert balance.choose(route) is candidates[0]
        balance.begin("b")
    assert balance.choose(route) is candidates[1]
    assert balance.choose(route, {"a", "b"}) is candidates[2]
    balance.failed("b")
    balance.failed("a")
    assert balance.choose(route) is candidates[2]


def test_of_many_the_first_that_work() -> None:
    balance = Balance(lambda: 0.0)
    own = make_instance(1, *[make_replica(f"r{number}") for number in range(3 * LOOKED_AT)])
    pool = make_instance(2, make_replica("p"), account=None)
    adapter = make_adapter(1)
    route = Routes(make_snapshot(own, pool)).resolve(ACME, BASE, None, 0.0)
    for number in range(3 * LOOKED_AT):
        assert balance.choose(route) is not None  # a base: any of them
        loaded = dataclasses.replace(route, adapter=adapter)
        assert balance.choose(loaded, {"p"}) is route.candidates[number]
        balance.failed(route.candidates[number].replica.id)
    everywhere = {f"r{number}" for number in range(1, 3 * LOOKED_AT)}
    for chosen in (balance.choose(route), balance.choose(loaded)):
        assert chosen is not None
        assert chosen.replica.id == "p"
        chosen = balance.choose(route, everywhere | {"p"})
        assert chosen is not None
        assert chosen.replica.id == "r0"
    assert balance.choose(route, everywhere | {"p", "r0"}) is None


def test_what_everybody_asks_for_comes_to_be_in_as_many_places_as_it_takes() -> None:
    """It has half of the requests to 100 replicas: more than those that are looked at could take."""
    draw, now, count = random.Random(1), 0.0, 100
    balance = Balance(lambda: now, draw.random)
    routes = Routes(make_snapshot(make_instance(1, *[make_replica(f"r{n}") for n in range(count)])))
    route = dataclasses.replace(routes.resolve(ACME, BASE, None, 0.0), adapter=make_adapter(1))
    cold = [dataclasses.replace(candidate, resident=False) for candidate in route.candidates]
    route = dataclasses.replace(route, candidates=tuple(cold))
    served: Counter[str] = Counter()
    for request in range(40_000):
        now = request / 200
        others = draw.random() < 0.5
        chosen = draw.choice(cold) if others else balance.choose(route)
        assert chosen is not None
        balance.begin(chosen.replica.id)
        balance.end(chosen.replica.id)
        served[chosen.replica.id] += request > 20_000
        if not others and not chosen.resident:
            there = dataclasses.replace(chosen, resident=True)
            found = (there if candidate is chosen else candidate for candidate in route.candidates)
            route = dataclasses.replace(
                route, candidates=tuple(sorted(found, key=lambda other: not other.resident))
            )
    assert max(served.values()) < 1.6 * served.total() / count


def test_different_models_lie_on_different_replicas() -> None:
    adapters = [make_adapter(row) for row in range(1, 200)]
    routes = Routes(
        make_snapshot(*adapters, make_instance(1, make_replica("a", *adapters), make_replica("b", *adapters)))
    )
    balance = Balance(lambda: 0.0)
    chosen = [balance.choose(routes.resolve(ACME, f"ft{a.row_id}:{a.row_id}", None, 0.0)) for a in adapters]
    share = sum(candidate is not None and candidate.replica.id == "a" for candidate in chosen)
    assert 60 < share < 140


def test_budget_is_a_tenth() -> None:
    budget = RetryBudget(share=0.1, reserve=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert 99 <= spent <= 100
