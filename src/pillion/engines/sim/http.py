"""The simulated engine's HTTP: vLLM's paths, without the gate that stands in front of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from pillion import __version__
from pillion.engines.plugin.pillion_engine.asgi import ClientLeft, Receive, Scope, Send, read_body
from pillion.engines.plugin.pillion_engine.port import EngineRefused
from pillion.engines.sim import answers, asks, responses, sounds
from pillion.engines.sim.adapters import SimAdapters
from pillion.engines.sim.answers import Head, Piece
from pillion.engines.sim.asks import Ask, AskError, Limits
from pillion.engines.sim.metrics import Metrics
from pillion.engines.sim.patience import ClientLeftError, Patience
from pillion.engines.sim.settings import Faults, SimConfig
from pillion.engines.sim.stream import Stream
from pillion.engines.sim.words import Voice

MAX_BODY = 64 * 1024 * 1024
HUNG_POLL_S = 0.02
_YIELD_EVERY = 16
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Endpoint:
    """How one endpoint reads a request and shapes its answer, whole or in events."""

    prefix: str
    ask: Callable[[dict[str, Any], Limits], Ask]
    whole: Callable[[Head, list[list[Piece]]], dict[str, Any]]
    opening: Callable[[Head, int], Iterable[dict[str, Any]]]
    chunk: Callable[[Head, Piece, int], dict[str, Any]]
    closing: Callable[[Head, list[list[Piece]]], Iterable[dict[str, Any]]]


ENDPOINTS = {
    "/v1/completions": Endpoint(
        "cmpl",
        asks.completion,
        answers.completion,
        answers.completion_opening,
        answers.completion_chunk,
        answers.completion_closing,
    ),
    "/v1/chat/completions": Endpoint(
        "chatcmpl", asks.chat, answers.chat, answers.chat_opening, answers.chat_chunk, answers.chat_closing
    ),
    "/v1/responses": Endpoint(
        "resp", asks.responses, responses.whole, responses.opening, responses.delta, responses.closing
    ),
    sounds.PATH: Endpoint("trsc", sounds.ask, sounds.whole, sounds.opening, sounds.chunk, sounds.closing),
}


class SimApp:
    """ASGI application. `new_id` makes ids of answers, `die` ends the process, `now` is in seconds."""

    def __init__(
        self,
        config: SimConfig,
        new_id: Callable[[], str],
        die: Callable[[], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.faults = config.options.faults
        self.adapters = SimAdapters(config, lambda: self.faults)
        self.metrics = Metrics(config.base, config.slots)
        self._config = config
        self._options = config.options
        self._limits = Limits(config.options.default_tokens, config.options.max_model_len)
        self._places = asyncio.Semaphore(config.options.max_num_seqs)
        self._new_id, self._now, self._die = new_id, now, die

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        patience = Patience(receive)
        try:
            while self.faults.hang:
                await patience.rest(HUNG_POLL_S)
            await self._route(scope, patience.receive, send, patience)
        except AskError as error:
            await _answer(send, error.status, error.body())
        except (ClientLeftError, ClientLeft):
            return
        finally:
            patience.end()

    def set_faults(self, faults: Faults) -> None:
        """What goes wrong from now on. With `crash` this does not return."""
        self.faults = faults
        if faults.crash:
            self._die()

    async def _route(self, scope: Scope, receive: Receive, send: Send, patience: Patience) -> None:
        path, method = scope["path"], scope["method"]
        if method == "GET" and path in (
            "/health",
            "/ping",
            "/version",
            "/metrics",
            "/v1/models",
            "/sim/faults",
        ):
            return await self._look(path, send)
        posts: dict[str, Callable[[dict[str, Any], Send], Awaitable[None]]] = {
            "/v1/embeddings": self._embed,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
            "/sim/faults": self._fault,
        }
        if method != "POST" or not (path in ENDPOINTS or path in posts):
            raise AskError(404, f"Nothing answers {method} {path}.", "NotFoundError")
        if path == sounds.PATH:
            body = await sounds.read_form(scope, receive)
        else:
            body = _object(await read_body(scope, receive, MAX_BODY))
        if path in posts:
            return await posts[path](body, send)
        endpoint = ENDPOINTS[path]
        await self._generate(endpoint, endpoint.ask(body, self._limits), send, patience)

    async def _look(self, path: str, send: Send) -> None:
        if path == "/metrics":
            return await _send(
                send, 200, self.metrics.text(self._now()).encode(), b"text/plain; version=0.0.4"
            )
        found: dict[str, Any] = {}
        if path == "/v1/models":
            found = {"object": "list", "data": list(self._models())}
        elif path == "/version":
            found = {"version": __version__}
        elif path == "/sim/faults":
            found = msgspec.to_builtins(self.faults)
        await _answer(send, 200, found)

    def _models(self) -> Iterator[dict[str, Any]]:
        base = self._config.base
        common = {"object": "model", "created": int(self._now()), "owned_by": "vllm"}
        length = self._options.max_model_len
        yield {
            "id": base,
            **common,
            "root": self._config.model_dir or base,
            "parent": None,
            "max_model_len": length,
        }
        for name, path in self.adapters.paths.items():
            yield {"id": name, **common, "root": path, "parent": base, "max_model_len": None}

    # Tokens

    async def _generate(self, endpoint: Endpoint, ask: Ask, send: Send, patience: Patience) -> None:
        head = Head(f"{endpoint.prefix}-{self._new_id()}", int(self._now()), ask, self._voice(ask))
        if self.faults.crash_on and self.faults.crash_on in ask.text:
            self._die()
        started = time.perf_counter()
        self.metrics.waiting[ask.model] += 1
        try:
            await self._places.acquire()
        finally:
            self.metrics.waiting[ask.model] -= 1
        self.metrics.running[ask.model] += 1
        self.metrics.prompt_tokens += ask.prompt_count
        reason = "abort"
        try:
            await patience.rest(self._options.ttft_ms / 1000 * self.faults.slow)
            self.metrics.first_token.observe(time.perf_counter() - started)
            await (self._stream if ask.stream else self._complete)(endpoint, head, send, patience)
            reason = "length"
        finally:
            self._places.release()
            self.metrics.running[ask.model] -= 1
            self.metrics.finished[reason] += 1
            self.metrics.whole.observe(time.perf_counter() - started)

    def _voice(self, ask: Ask) -> Voice:
        voice = self.adapters.voice(ask.model or self._config.base)
        if voice is None:
            raise AskError(404, f"The model `{ask.model}` does not exist.", "NotFoundError", "model")
        return voice

    def _choices(self, head: Head) -> list[list[Piece]]:
        ask = head.ask
        count = len(ask.prompts) * ask.n
        return [answers.pieces(head.voice, ask.max_tokens, ask.stop, choice) for choice in range(count)]

    async def _complete(self, endpoint: Endpoint, head: Head, send: Send, patience: Patience) -> None:
        choices = self._choices(head)
        longest = max((len(parts) for parts in choices), default=0)
        await patience.rest(max(0, longest - 1) * self._step())
        self.metrics.generation_tokens += sum(map(len, choices))
        await _answer(send, 200, endpoint.whole(head, choices))

    async def _stream(self, endpoint: Endpoint, head: Head, send: Send, patience: Patience) -> None:
        stream = Stream(send, named=endpoint.prefix == "resp")
        await stream.begin()
        choices = self._choices(head)
        for event in endpoint.opening(head, len(choices)):
            await stream.event(event)
        generated = 0
        for index, step in enumerate(_interleaved(choices)):
            if index:
                await patience.rest(self._step())
                if index % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            for piece in step:
                generated += 1
                self.metrics.generation_tokens += 1
                await stream.event(endpoint.chunk(head, piece, generated))
        for event in endpoint.closing(head, choices):
            await stream.event(event)
        await stream.end()

    def _step(self) -> float:
        """Seconds between two tokens."""
        rate = self._options.tokens_per_s
        return self.faults.slow / rate if rate else 0.0

    # The rest

    async def _embed(self, body: dict[str, Any], send: Send) -> None:
        ask = asks.embedding(body, self._limits)
        head = Head(f"embd-{self._new_id()}", int(self._now()), ask, self._voice(ask))
        self.metrics.prompt_tokens += ask.prompt_count
        size = body.get("dimensions") or self.adapters.hidden_size
        await _answer(send, 200, answers.embeddings(head, size))

    async def _load(self, body: dict[str, Any], send: Send) -> None:
        name, path = str(body.get("lora_name") or ""), str(body.get("lora_path") or "")
        if not name or not path:
            raise AskError(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self.adapters.paths:
            raise AskError(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        try:
            await self.adapters.add(name, path)
        except EngineRefused as refused:
            raise AskError(400, str(refused)) from refused
        await _send(send, 200, f"Success: LoRA adapter '{name}' added successfully.".encode(), b"text/plain")

    async def _unload(self, body: dict[str, Any], send: Send) -> None:
        name = str(body.get("lora_name") or "")
        if name not in self.adapters.paths:
            raise AskError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        await self.adapters.remove(name)
        await _send(
            send, 200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), b"text/plain"
        )

    async def _fault(self, body: dict[str, Any], send: Send) -> None:
        try:
            faults = msgspec.convert({**msgspec.to_builtins(self.faults), **body}, Faults)
        except msgspec.ValidationError as error:
            raise AskError(400, f"faults: {error}") from error
        await _answer(send, 200, msgspec.to_builtins(faults))
        self.set_faults(faults)


def _interleaved(choices: list[list[Piece]]) -> Iterator[list[Piece]]:
    for index in range(max((len(parts) for parts in choices), default=0)):
        yield [parts[index] for parts in choices if index < len(parts)]


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise AskError(400, f"The body is not a JSON object: {error}") from error
    return body


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    await _send(send, status, _encode(body), b"application/json")


async def _send(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
