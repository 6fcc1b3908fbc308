"""The gate in front of an engine's HTTP server.

Every request of every gateway and of the agent passes here, so this is where requests in flight are counted,
where a name that is being drained is fenced, and where keys are checked. Standard library only: the engine's
environment and the server's own simulated engine both import it.
"""

import hmac
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NoReturn
from urllib.parse import parse_qs

from . import __version__
from .asgi import (
    App,
    ClientLeft,
    Receive,
    Refusal,
    Scope,
    Send,
    headers_named,
    read_body,
    send_json,
    send_refusal,
)
from .flight import Flight
from .port import EngineFacts, EnginePort, EngineRefused
from .roster import Entry, Roster

__all__ = ["MAX_BODY_BYTES", "EngineFacts", "EnginePort", "EngineRefused", "Gate"]

MAX_BODY_BYTES = 32 * 1024 * 1024
UNLOAD_DEADLINE_S = 30.0
ADAPTER_PREFIX = "adp_"
# A gateway reads forms whole and strictly, and puts what it asks for first and once.
_FORM = re.compile(rb'multipart/form-data *; *boundary="?([^";]{1,70})"?(?: *;.*)?', re.IGNORECASE)
_FIRST = rb'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n([!-~]{1,512})\r\n--%b'

Role = Literal["infer", "agent"]


class Gate:
    """ASGI middleware around an OpenAI-compatible engine.

    `slots` is how many adapters the engine holds without evicting any. `base_names` are all names the base
    answers to, the first being its own. Both keys are secrets of this engine; they must differ.
    """

    def __init__(
        self,
        app: App,
        port: EnginePort,
        *,
        infer_key: str,
        agent_key: str,
        base_names: Sequence[str],
        slots: int,
        max_body_bytes: int = MAX_BODY_BYTES,
    ):
        if not infer_key or not agent_key or infer_key == agent_key:
            raise ValueError("the gate needs two different keys, one to infer and one for the agent")
        self._app = app
        self._port = port
        self._keys: dict[Role, bytes] = {"infer": infer_key.encode(), "agent": agent_key.encode()}
        self._base = base_names[0]
        self._max_body = max_body_bytes
        self._roster = Roster(port, base_names, slots)
        self._facts: EngineFacts | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            # A socket names its model in a message that nobody could count or fence.
            return await send({"type": "websocket.close", "code": 1008})
        try:
            await self._serve(scope, receive, send)
        except Refusal as refusal:
            await send_refusal(send, refusal)
        except ClientLeft:
            return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path == "/health":
            return await self._app(scope, receive, send)
        role = self._role(scope)
        if path.startswith("/pillion/"):
            _only_agent(role)
            return await self._operate(path, scope, receive, send)
        if role == "infer":
            _may_infer(path, scope["method"])
        if path.startswith("/v1/") and scope["method"] == "POST":
            return await self._relay(role, scope, receive, send)
        await self._app(scope, receive, send)

    def _role(self, scope: Scope) -> Role:
        given = headers_named(scope, b"authorization")
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer":
            # Both are always compared, so the time tells nothing about either.
            matches: dict[Role, bool] = {
                role: hmac.compare_digest(key.strip(), want) for role, want in self._keys.items()
            }
            for role, matched in matches.items():
                if matched:
                    return role
        raise Refusal(401, "invalid_api_key", "This engine needs the key it was started with.")

    # Requests for tokens

    async def _relay(self, role: Role, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._max_body)
        model = _model_of(body) if role == "agent" else _strict_model_of(scope, body)
        if self._port.dead():
            raise Refusal(503, "engine_dead", "The engine is dead.", dead="before")
        facts = await self._engine()
        # From the check to the count nothing awaits, so no name can close in between.
        entry = self._entry(role, model)
        flight = Flight(model or self._base, self._port.dead)
        if entry is not None:
            self._keep_right(facts, role, entry)
            entry.flights.add(flight)
            entry.requests += role == "infer"
        try:
            await flight.run(self._app, scope, body, receive, send)
        finally:
            if entry is not None:
                entry.flights.discard(flight)
            flight.done.set_result(None)
        await flight.tell()

    def _entry(self, role: Role, model: str | None) -> Entry | None:
        entry = self._roster.bases.get(model or "") or self._roster.adapters.get(model or "")
        if entry is not None and not entry.leaving and (entry.open or role == "agent"):
            return entry
        if entry is not None:
            raise Refusal(
                503, "adapter_fenced", f"'{model}' takes no new requests here.", param="model", retry=True
            )
        if role == "agent":
            # Named by no model, a request is answered by the base; named by an unknown one, refused.
            return None if model else self._roster.bases[self._base]
        if model is not None and model.startswith(ADAPTER_PREFIX):
            raise Refusal(
                503, "adapter_not_resident", f"'{model}' is not loaded here.", param="model", retry=True
            )
        raise Refusal(404, "model_not_found", f"The model '{model or ''}' does not exist.", param="model")

    def _keep_right(self, facts: EngineFacts, role: Role, entry: Entry) -> None:
        """Refuses the base where the engine is not known to keep adapters out of its rows.

        Batches of the base alone are no way out: stock vLLM on CPUs adds an adapter's output layer to them
        too. Before anything was loaded the agent may ask, to know what adapters are to differ from.
        """
        unsafe = facts.lora == "refused" and entry.name in self._roster.bases
        if unsafe and (role == "infer" or self._roster.touched):
            reason = f"This engine may mix adapters into its base model's answers: {facts.reason}."
            raise Refusal(503, "base_unsafe", reason, param="model")

    async def _engine(self) -> EngineFacts:
        if self._facts is None:
            self._facts = await self._port.facts()
        return self._facts

    # What the agent alone may do

    async def _operate(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if path == "/pillion/v1/state" and method == "GET":
            return await send_json(send, 200, await self._state())
        if path == "/pillion/v1/requests" and method == "GET":
            return await send_json(send, 200, self._requests())
        if path == "/pillion/v1/adapters" and method == "POST":
            name, directory = _adapter_of(await read_body(scope, receive, self._max_body))
            return await send_json(
                send, 200, {"name": name, "load_ms": await self._roster.load(name, directory)}
            )
        prefix = "/pillion/v1/adapters/"
        name, _, verb = path.removeprefix(prefix).partition("/") if path.startswith(prefix) else ("", "", "")
        if name and method == "DELETE" and not verb:
            deadline_s, only_idle = _deadline_of(scope), _query(scope, "only_idle") == "true"
            gone = await self._roster.unload(name, deadline_s, only_idle=only_idle)
            return await send_json(send, 200, gone)
        if name and method == "POST" and verb in ("open", "close"):
            await self._roster.set_open(name, verb == "open")
            return await send_json(send, 200, {"name": name, "open": verb == "open"})
        raise Refusal(404, "not_found", f"Nothing answers {method} {path}.")

    async def _state(self) -> dict[str, Any]:
        facts = await self._engine()
        resident = await self._port.resident()
        base_inflight = sum(len(entry.flights) for entry in self._roster.bases.values())
        return {
            "engine": facts.engine,
            "engine_version": facts.version,
            "plugin": {"version": __version__, "lora": facts.lora, "reason": facts.reason},
            "max_requests": facts.max_requests,
            "base": {"name": self._base, "inflight": base_inflight},
            "adapters": [
                {
                    "name": entry.name,
                    "path": entry.path,
                    "inflight": len(entry.flights),
                    "requests": entry.requests,
                    "open": entry.open,
                    "resident": entry.name in resident,
                }
                for entry in self._roster.adapters.values()
            ],
        }

    def _requests(self) -> dict[str, Any]:
        """Without a word to the engine."""
        adapters = self._roster.adapters.values()
        return {
            entry.name: {"inflight": len(entry.flights), "requests": entry.requests} for entry in adapters
        }


def _only_agent(role: Role) -> None:
    if role != "agent":
        raise Refusal(403, "insufficient_scope", "Only the agent of this engine may do this.")


def _may_infer(path: str, method: str) -> None:
    reserved = path.startswith(("/v1/load_lora_adapter", "/v1/unload_lora_adapter"))
    if not path.startswith("/v1/") or reserved or method not in ("GET", "HEAD", "POST"):
        raise Refusal(403, "insufficient_scope", "This key can only infer.")


def _strict_model_of(scope: Scope, body: bytes) -> str | None:
    """The model a gateway's request names.

    The type is checked as well: what is JSON to us and a form to the engine could name two models.
    """
    kinds = headers_named(scope, b"content-type")
    if len(kinds) == 1 and (form := _FORM.fullmatch(kinds[0])) is not None:
        return _model_first_in(form[1], body)
    kind = kinds[0].split(b";")[0].strip().lower() if len(kinds) == 1 else b""
    if len(kinds) > 1 or not (kind in (b"", b"application/json") or kind.endswith(b"+json")):
        _malformed("The request body must be JSON.")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        _malformed("The request body is not JSON.")
    return _model_in(fields)


def _model_first_in(boundary: bytes, body: bytes) -> str:
    escaped = re.escape(boundary)
    found = re.match(_FIRST % (escaped, escaped), body)
    if found is None:
        _malformed("A form must have the field 'model' first.", "model")
    return found[1].decode("ascii")


def _model_of(body: bytes) -> str | None:
    try:
        return _model_in(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _model_in(fields: object) -> str | None:
    model = fields.get("model") if isinstance(fields, dict) else None
    return model if isinstance(model, str) else None


def _adapter_of(body: bytes) -> tuple[str, str]:
    """Name and directory of the adapter to load. 400 where they are no such thing."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    name, path = (fields.get("name"), fields.get("path")) if isinstance(fields, dict) else (None, None)
    if not isinstance(name, str) or not name or "/" in name or len(name) > 256:
        _malformed("`name` must be a string without '/', at most 256 characters.", "name")
    if not isinstance(path, str) or not path.startswith("/"):
        _malformed("`path` must be an absolute path.", "path")
    return name, path


def _deadline_of(scope: Scope) -> float:
    given = _query(scope, "deadline_s")
    try:
        deadline = float(given) if given else UNLOAD_DEADLINE_S
    except ValueError:
        deadline = -1.0
    if not 0 <= deadline <= 86_400:
        _malformed("`deadline_s` must be a number of seconds between 0 and 86400.", "deadline_s")
    return deadline


def _query(scope: Scope, name: str) -> str | None:
    given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get(name)
    return given[-1] if given else None


def _malformed(message: str, param: str | None = None) -> NoReturn:
    raise Refusal(400, "invalid_request", message, param=param)
