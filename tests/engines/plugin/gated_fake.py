"""An engine of a few lines behind a gate, and a client that speaks raw ASGI to it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from pillion.engines.plugin.pillion_engine.gate import EngineFacts, EngineRefused, Gate
from pillion.engines.plugin.pillion_engine.port import LoraPath

BASE = "tiny"
INFER, AGENT = "infer-key", "agent-key"
Message = dict[str, Any]


class FakeEngine:
    """Port and inner application in one. Streams one event per `tick()`; records what it was given."""

    def __init__(self, lora: LoraPath = "native") -> None:
        self.lora: LoraPath = lora
        self.held: dict[str, str] = {}
        self.sticky: set[str] = set()
        self.served: list[str] = []
        self.aborted: list[str] = []
        self.running: list[str] = []
        self.deaf = False
        self.is_dead = False
        self.adding = asyncio.Event()
        self.adding.set()
        self.ticks: asyncio.Queue[None] = asyncio.Queue()

    async def facts(self) -> EngineFacts:
        return EngineFacts("fake", "1", self.lora, "why" if self.lora == "refused" else None, 7)

    def dead(self) -> bool:
        return self.is_dead

    async def add(self, name: str, path: str) -> None:
        await self.adding.wait()
        if path.startswith("/bad"):
            raise EngineRefused("rank 512 is too high")
        self.held[name] = path

    async def remove(self, name: str) -> None:
        assert name not in self.running, "removed while the engine runs it: it would come back from disk"
        if name not in self.sticky:
            self.held.pop(name, None)

    async def resident(self) -> set[str]:
        return set(self.held)

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.ticks.put_nowait(None)

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        fields = json.loads(body) if body[:1] == b"{" else {}
        model = str(fields.get("model", "-"))
        self.served.append(model)
        self.running.append(model)
        work = asyncio.ensure_future(self._answer(fields, send))
        gone = asyncio.ensure_future(self._left(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.aborted.append(model)
            else:
                work.result()
        finally:
            work.cancel()
            gone.cancel()
            self.running.remove(model)

    async def _left(self, receive: Any) -> None:
        message = await receive()
        assert message["type"] == "http.disconnect"
        if self.deaf:
            await asyncio.Event().wait()

    async def _answer(self, fields: Message, send: Any) -> None:
        stream = bool(fields.get("stream"))
        kind = b"text/event-stream" if stream else b"application/json"
        start: Message = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", kind)],
        }
        if stream:
            await send(start)
        for number in range(int(fields.get("tokens", 0))):
            await self.ticks.get()
            if stream:
                data = b'data: {"t":%d}\n\n' % number
                await send({"type": "http.response.body", "body": data, "more_body": True})
        if not stream:
            await send(start | {"status": fields.get("status", 200)})
        await send({"type": "http.response.body", "body": b"" if stream else b"{}", "more_body": False})


class Call:
    """One request under way: `answer()` waits for its end, `leave()` closes the connection."""

    def __init__(self, gate: Gate, scope: Message, body: bytes) -> None:
        self.messages: list[Message] = []
        self._arrived = asyncio.Event()
        self._gone = asyncio.Event()
        self._unread = [body]
        self._task = asyncio.create_task(gate(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._unread:
            return {"type": "http.request", "body": self._unread.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(dict(message))
        self._arrived.set()

    async def events(self, count: int) -> None:
        """Waits until `count` messages, the start included, have arrived."""
        while len(self.messages) < count:
            self._arrived.clear()
            await asyncio.wait_for(self._arrived.wait(), 5)

    def leave(self) -> None:
        self._gone.set()

    async def answer(self) -> "Call":
        await asyncio.wait_for(self._task, 30)
        return self

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {key.decode(): value.decode() for key, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def whole(self) -> bool:
        return not self.messages[-1].get("more_body", True)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return str(error["code"])


class Client:
    """Calls a gate with one key."""

    def __init__(self, gate: Gate, key: str | None) -> None:
        self._gate = gate
        self._key = key

    def start(self, method: str, path: str, body: object = None, **headers: str) -> Call:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if self._key is not None:
            given["authorization"] = f"Bearer {self._key}"
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "headers": [(key.encode(), value.encode()) for key, value in given.items()],
        }
        return Call(self._gate, scope, raw)

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Call:
        return await self.start(method, path, body, **headers).answer()

    def chat(self, model: str, tokens: int = 0, stream: bool = False, **more: object) -> Call:
        body = {"model": model, "tokens": tokens, "stream": stream, **more}
        return self.start("POST", "/v1/chat/completions", body)


class Bench:
    """A fake engine behind a gate with `slots`, and its two clients."""

    def __init__(self, lora: LoraPath = "native", slots: int = 3, **options: Any) -> None:
        self.engine = FakeEngine(lora)
        self.gate = Gate(
            self.engine,
            self.engine,
            infer_key=INFER,
            agent_key=AGENT,
            base_names=[BASE],
            slots=slots,
            **options,
        )
        self.agent = Client(self.gate, AGENT)
        self.user = Client(self.gate, INFER)

    async def load(self, name: str, is_open: bool = True) -> None:
        answer = await self.agent.call("POST", "/pillion/v1/adapters", {"name": name, "path": f"/a/{name}"})
        assert answer.status == 200, answer.body
        if is_open:
            assert (await self.agent.call("POST", f"/pillion/v1/adapters/{name}/open")).status == 200

    async def state(self) -> Any:
        return (await self.agent.call("GET", "/pillion/v1/state")).json()

    async def adapter(self, name: str) -> Any:
        (found,) = [entry for entry in (await self.state())["adapters"] if entry["name"] == name]
        return found


async def until(met: Callable[[], bool]) -> None:
    """Lets the loop run until `met`, 5 s at most."""
    async with asyncio.timeout(5):
        while not met():
            await asyncio.sleep(0)
