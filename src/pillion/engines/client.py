"""The agent's side of the gate in front of every engine, whatever its kind."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from pillion.core.errors import PillionError

CALL_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 600.0
CUT_GRACE_S = 30.0
# Refusals that the same bytes would meet again; all others may pass.
LASTING = frozenset({"engine_refused", "name_taken"})
BUSY = "adapter_busy"
T = TypeVar("T")


class EngineError(PillionError):
    """The engine refused or could not do it. `lasting`: trying again with the same bytes is of no use."""

    status, code = 502, "engine_error"

    @property
    def lasting(self) -> bool:
        return self.code in LASTING


class EngineAwayError(EngineError):
    """The engine did not answer."""

    code = "engine_away"


class Plugin(msgspec.Struct, frozen=True):
    """What runs inside the engine. `lora`: how adapters are computed; `reason`: why not better."""

    version: str
    lora: str
    reason: str | None = None


class BaseState(msgspec.Struct, frozen=True):
    name: str
    inflight: int


class AdapterState(msgspec.Struct, frozen=True):
    """`open` to gateways; `resident` by the engine's own word; `inflight` requests with it now.

    `requests`: how many of gateways have begun since it was loaded.
    """

    name: str
    path: str
    inflight: int
    open: bool
    resident: bool
    requests: int = 0


class Requests(msgspec.Struct, frozen=True):
    """With one adapter: in flight now, and begun since it was loaded."""

    inflight: int
    requests: int


class EngineState(msgspec.Struct, frozen=True):
    """`max_requests`: how many it answers at a time."""

    engine: str
    engine_version: str
    plugin: Plugin
    base: BaseState
    adapters: tuple[AdapterState, ...]
    max_requests: int | None = None


class Unloaded(msgspec.Struct, frozen=True):
    """Requests that ended by themselves, requests cut off, and the engine's time."""

    drained: int
    cut: int
    unload_ms: float


class _Loaded(msgspec.Struct, frozen=True):
    load_ms: float


class EngineClient:
    """One engine at `url`. Every call raises `EngineError`, or `EngineAwayError` where nothing answers."""

    def __init__(self, url: str, agent_key: str) -> None:
        self.url = url
        self._headers = {"authorization": f"Bearer {agent_key}"}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def healthy(self, timeout_s: float) -> bool:
        """Whether the engine says so within `timeout_s`. Never raises `EngineError`."""
        try:
            await self._call("GET", "/health", timeout_s=timeout_s)
        except EngineError:
            return False
        return True

    async def state(self) -> EngineState:
        return _read(await self._call("GET", "/pillion/v1/state"), EngineState)

    async def requests(self) -> dict[str, Requests]:
        """By adapter. The engine itself is not asked."""
        return _read(await self._call("GET", "/pillion/v1/requests"), dict[str, Requests])

    async def load(self, name: str, path: str) -> float:
        """Loads, closed to gateways; returns milliseconds. Idempotent."""
        answer = await self._call(
            "POST", "/pillion/v1/adapters", {"name": name, "path": path}, timeout_s=LOAD_TIMEOUT_S
        )
        return _read(answer, _Loaded).load_ms

    async def open(self, name: str) -> None:
        await self._call("POST", f"{_adapter(name)}/open")

    async def close_adapter(self, name: str) -> None:
        await self._call("POST", f"{_adapter(name)}/close")

    async def unload(self, name: str, deadline_s: float) -> Unloaded:
        """Fence, drain up to `deadline_s`, cut off, remove, proved gone."""
        answer = await self._call(
            "DELETE", f"{_adapter(name)}?deadline_s={deadline_s:g}", timeout_s=deadline_s + CUT_GRACE_S
        )
        return _read(answer, Unloaded)

    async def evict(self, name: str) -> bool:
        """Unloads it, proved gone; False, and nothing done, where a request is in flight with it."""
        try:
            await self._call("DELETE", f"{_adapter(name)}?deadline_s=0&only_idle=true", timeout_s=CUT_GRACE_S)
        except EngineError as error:
            if error.code != BUSY:
                raise
            return False
        return True

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/completions` with the agent's key, which closed adapters answer too."""
        return _read(await self._call("POST", "/v1/completions", body, timeout_s=120), dict[str, Any])

    async def _call(
        self, method: str, path: str, body: object = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> bytes:
        if self._session is None:
            never = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=never)
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            # Not aiohttp's own timer: when it and a cancellation fall together, it takes both for a timeout.
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(method, self.url + path, data=data, headers=headers) as answer,
            ):
                raw = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = str(error) or type(error).__name__
            raise EngineAwayError(
                f"the engine at {self.url} did not answer {method} {path}: {what}"
            ) from error
        if answer.status != 200:
            raise _refusal(answer.status, raw)
        return raw


def _read(answer: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=shape)
    except msgspec.MsgspecError as error:
        raise EngineError(f"the engine's answer cannot be read: {error}") from error


def _adapter(name: str) -> str:
    return f"/pillion/v1/adapters/{quote(name, safe='@')}"


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


def _refusal(status: int, raw: bytes) -> EngineError:
    try:
        error = msgspec.json.decode(raw, type=_ErrorBody).error
    except msgspec.MsgspecError:
        error = _Error(raw[:200].decode(errors="replace"))
    code = error.code if isinstance(error.code, str) else "engine_error"
    return EngineError(error.message or f"the engine answered {status}", code=code)
