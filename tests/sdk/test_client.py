"""The client against answers made up here: what it sends, what it makes of what comes back."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pillion.sdk import Pillion, PillionAPIError, PillionError, errors
from pillion.sdk.types import Attachment, Record, read
from pillion.sdk.waiting import Progress

URL = "http://127.0.0.1:8080"
Answer = Callable[[httpx.Request], httpx.Response]


class Time:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def client(answer: Answer, time: Time | None = None) -> Pillion:
    time = time or Time()
    return Pillion(URL, "pil_x", http=httpx.MockTransport(answer), clock=time.clock, sleep=time.sleep)


def answers(*responses: httpx.Response | Exception) -> tuple[Answer, list[httpx.Request]]:
    """One after the other, the last for ever; and the requests that came."""
    left, seen = [*responses], []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return answer, seen


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"error": {"message": "m", "code": code, "param": "name", "reasons": ["a", "b"]}}
    return httpx.Response(status, json=body, headers={"x-request-id": "req-1", **headers})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidRequestError),
        (401, errors.AuthenticationError),
        (402, errors.PaymentRequiredError),
        (403, errors.PermissionDeniedError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (413, errors.InvalidRequestError),
        (422, errors.InvalidRequestError),
        (429, errors.RateLimitError),
        (503, errors.UnavailableError),
        (500, PillionAPIError),
    ],
)
def test_an_error_has_its_class_and_all_its_parts(status: int, kind: type[PillionAPIError]) -> None:
    answer, _ = answers(problem(status, "some_code", **{"retry-after": "7"}))
    with client(answer) as pillion, pytest.raises(kind) as caught:
        pillion.adapters.rename("x", "y")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.message, error.param) == (status, "some_code", "m", "name")
    assert (error.reasons, error.request_id, error.retry_after) == (("a", "b"), "req-1", 7.0)


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(502, text="<html>\nBad gateway</html>"), "HTTP 502 from .*: <html> Bad gateway"),
        (httpx.Response(301, headers={"location": "https://other"}), "redirects to https://other"),
        (httpx.Response(200, text="hello"), "not JSON: is this a Pillion server?"),
        (httpx.Response(200, json=[1]), "not the adapter this client knows"),
        (httpx.Response(200, json={"row_id": 1}), "missing required field `id`"),
    ],
)
def test_what_is_no_pillion_is_said(response: httpx.Response, words: str) -> None:
    answer, seen = answers(response)
    with client(answer) as pillion, pytest.raises(PillionError, match=words):
        pillion.adapters.rename("x", "y")
    assert len(seen) == 1


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), problem(503, "no_healthy_replica")])
def test_only_reading_is_tried_again(failure: Any) -> None:
    time = Time()
    answer, seen = answers(failure, failure, httpx.Response(200, json={"id": "adp_1"}))
    with client(answer, time) as pillion:
        assert pillion.adapters.get("x").id == "adp_1"
        assert (len(seen), len(time.slept)) == (3, 2)
    answer, seen = answers(failure)
    with client(answer) as pillion, pytest.raises(PillionError):
        pillion.instances.launch("tiny")
    assert len(seen) == 1


def test_a_refused_connection_or_a_long_wait_is_told_at_once() -> None:
    for failure in (httpx.ConnectError("refused"), problem(503, "x", **{"retry-after": "60"})):
        answer, seen = answers(failure)
        with client(answer) as pillion, pytest.raises(PillionError):
            pillion.adapters.get("x")
        assert len(seen) == 1


def test_silence_is_a_timeout() -> None:
    answer, _ = answers(httpx.ReadTimeout("slow"))
    with client(answer) as pillion, pytest.raises(errors.PillionTimeoutError, match="did not answer PATCH"):
        pillion.adapters.rename("x", "y")


def test_lists_are_paged_and_end_even_if_the_server_repeats_itself() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        after = int(request.url.params.get("after", 0))
        data = [{"id": f"adp_{after + i}"} for i in range(2)]
        return httpx.Response(200, json={"data": data, "has_more": True, "next": str(min(after + 2, 4))})

    with client(page) as pillion:
        assert [a.id for a in pillion.adapters.list()] == [f"adp_{i}" for i in range(6)]
        assert [a.id for a in pillion.adapters.list(limit=3)] == ["adp_0", "adp_1", "adp_2"]


@pytest.mark.parametrize("ref", ["", ".", ".."])
def test_a_ref_that_would_leave_its_place_is_never_sent(ref: str) -> None:
    answer, seen = answers(httpx.Response(200, json={}))
    with client(answer) as pillion, pytest.raises(errors.PillionConfigError):
        pillion.adapters.delete(ref)
    assert seen == []


def test_a_ref_is_one_segment_of_the_path() -> None:
    answer, seen = answers(httpx.Response(200, json={"id": "adp_1"}))
    with client(answer) as pillion:
        pillion.adapters.get("a/../b?c#d")
    assert seen[0].url.raw_path == b"/v1/adapters/a%2F..%2Fb%3Fc%23d"


def test_records_keep_what_they_do_not_know_at_every_depth() -> None:
    body = {"id": "adp_1", "x": 1, "attachments": [{"instance_id": 3, "y": 2}]}
    answer, _ = answers(httpx.Response(200, json=body))
    with client(answer) as pillion:
        adapter = pillion.adapters.get("x")
    assert adapter.raw == body
    assert adapter.attachments[0].raw == {"instance_id": 3, "y": 2}


class _Sink(httpx.BaseTransport):
    """Takes a request in as it is sent, keeping nothing but its length."""

    length = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        self.length = sum(len(chunk) for chunk in request.stream)
        assert int(request.headers["content-length"]) == self.length
        return httpx.Response(201, json={"id": "adp_1"})


def test_an_upload_is_never_whole_in_memory(tmp_path: Path) -> None:
    size = 200 << 20
    file = tmp_path / "adapter_model.safetensors"
    with file.open("wb") as sparse:
        sparse.truncate(size)
    sink, told = _Sink(), [(0, None)]
    with Pillion(URL, "pil_x", http=sink) as pillion:
        tracemalloc.start()
        pillion.adapters.upload(
            "a", "tiny", file, on_bytes=lambda done, total: told.__setitem__(0, (done, total))
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert told == [(size, size)]
    assert sink.length > size
    assert peak < 8 << 20


def test_a_download_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"half"
            raise httpx.RemoteProtocolError("closed")

    with (
        client(lambda _: httpx.Response(200, stream=Broken())) as pillion,
        pytest.raises(errors.PillionConnectionError),
    ):
        pillion.adapters.download("x", tmp_path / "w.safetensors")
    assert [*tmp_path.iterdir()] == []


def _states(*states: str) -> list[httpx.Response]:
    return [
        httpx.Response(
            200, json={"id": "adp_1", "attachments": [{"instance_id": 1, "state": state, "wanted": 2}]}
        )
        for state in states
    ]


def test_waiting_backs_off_tells_and_outlives_a_server_that_is_away() -> None:
    time = Time()
    away = [httpx.ConnectError("refused")] * 10
    answer, seen = answers(*_states("attaching"), *away, *_states("attaching", "ready"))
    told: list[Progress] = []
    with client(answer, time) as pillion:
        attachment = pillion.adapters.wait_ready("x", 1, on_progress=told.append)
    assert attachment.state == "ready"
    assert [p.stage for p in told] == ["attaching", "attaching", "ready"]
    assert time.slept == sorted(time.slept)
    assert max(time.slept) == 2.0
    assert len(seen) == 13


def test_waiting_ends_at_its_deadline() -> None:
    time = Time()
    answer, _ = answers(*_states("attaching"))
    with (
        client(answer, time) as pillion,
        pytest.raises(errors.PillionTimeoutError, match=r"after 10 s \(attaching\)"),
    ):
        pillion.adapters.wait_ready("x", 1, timeout=10)
    assert time.now == 10.0


def test_waiting_for_what_is_not_attached_fails() -> None:
    answer, _ = answers(httpx.Response(200, json={"id": "adp_1"}))
    with (
        client(answer) as pillion,
        pytest.raises(errors.PillionFailedError, match="not attached to instance 1"),
    ):
        pillion.adapters.wait_ready("x", 1)


def _told(*states: str) -> httpx.Response:
    text = "".join(json.dumps({"id": "job_1", "state": state}) + "\n" for state in states)
    return httpx.Response(200, text=text, headers={"content-type": "application/x-ndjson"})


def test_a_job_is_followed_again_where_the_telling_broke_off() -> None:
    answer, seen = answers(_told("queued"), httpx.ConnectError("refused"), _told("running", "succeeded"))
    states: list[str] = []
    with client(answer) as pillion:
        job = pillion.jobs.wait("job_1", on_progress=lambda progress: states.append(progress.stage))
    assert job.finished
    assert list(dict.fromkeys(states)) == ["queued", "running", "succeeded"]
    assert len(seen) == 3


def test_a_server_that_does_not_stream_jobs_is_asked_again() -> None:
    once = [httpx.Response(200, json={"id": "job_1", "state": state}) for state in ("running", "failed")]
    once[1] = httpx.Response(
        200, json={"id": "job_1", "state": "failed", "error": {"code": "c", "message": "why"}}
    )
    answer, _ = answers(*once)
    with client(answer) as pillion, pytest.raises(errors.PillionFailedError, match="failed: why") as caught:
        pillion.jobs.wait("job_1")
    assert caught.value.code == "c"


def _sse(text: str) -> httpx.Response:
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


def test_a_chat_stream_is_read_as_the_standard_says() -> None:
    text = ': ping\r\n\r\nevent: x\r\ndata: {"a":\r\ndata: 1}\r\n\r\ndata:{"b": 2}\n\ndata: [DONE]\n\n'
    answer, seen = answers(_sse(text))
    with client(answer) as pillion:
        chunks = [
            *pillion.chat.stream("tiny", [{"role": "user", "content": "x"}], adapter="pirate", top_p=0.5)
        ]
    assert chunks == [{"a": 1}, {"b": 2}]
    assert seen[0].headers["x-pillion-adapter-id"] == "pirate"
    assert json.loads(seen[0].content)["top_p"] == 0.5


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("data: {}\n\n", errors.PillionConnectionError),
        ('data: {"error": {"message": "m", "code": "c"}}\n\n', PillionAPIError),
        ("data: nonsense\n\n", errors.PillionProtocolError),
    ],
)
def test_a_chat_stream_is_never_silently_short(text: str, kind: type[PillionError]) -> None:
    answer, _ = answers(_sse(text))
    with client(answer) as pillion, pytest.raises(kind):
        list(pillion.chat.stream("tiny", []))


def test_a_keys_text_does_not_show_in_a_repr() -> None:
    from pillion.sdk.types import Key

    assert "secret" not in repr(read(Key, {"id": "key_1", "key": "secret"}))


def test_every_record_can_be_read_from_what_is_there() -> None:
    assert read(Attachment, {}).raw == {}
    assert issubclass(Attachment, Record)
