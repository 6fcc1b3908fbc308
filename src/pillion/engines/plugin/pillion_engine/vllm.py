"""The gate in vLLM's own HTTP server: `--middleware pillion_engine.vllm.VllmGate`."""

import os
import re
from pathlib import Path
from typing import Any

from .asgi import App, Receive, Scope, Send
from .gate import MAX_BODY_BYTES, Gate
from .patch import Decision, here
from .port import EngineFacts, EngineRefused

INFER_KEY, AGENT_KEY = "PILLION_INFER_KEY", "PILLION_AGENT_KEY"
SLOTS, MAX_BODY = "PILLION_ENGINE_SLOTS", "PILLION_MAX_BODY_BYTES"
WORKER_SAYS = "pillion_lora_path"


class VllmGate:
    """ASGI middleware. The server does not start without its keys, or with more than one process of it."""

    def __init__(self, app: App):
        self._app = app
        self._gate: Gate | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = _fault(scope)
        if fault is not None and scope["type"] == "lifespan":
            await receive()
            return await send({"type": "lifespan.startup.failed", "message": fault})
        if fault is not None:
            raise RuntimeError(fault)
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if self._gate is None:
            self._gate = self._build(scope["app"].state)
        await self._gate(scope, receive, send)

    def _build(self, state: Any) -> Gate:
        lora = state.engine_client.vllm_config.lora_config
        held = lora.max_cpu_loras if lora is not None else 0
        return Gate(
            self._app,
            VllmPort(state),
            infer_key=os.environ[INFER_KEY],
            agent_key=os.environ[AGENT_KEY],
            base_names=[base.name for base in state.openai_serving_models.base_model_paths],
            # More than the engine holds would make it evict silently.
            slots=min(held, int(os.environ.get(SLOTS, held))),
            max_body_bytes=int(os.environ.get(MAX_BODY, MAX_BODY_BYTES)),
        )


class VllmPort:
    """Adapters of a vLLM engine, through its engine client and its server's table of names.

    Every load has a number of its own, for the engine knows adapters by number and must never take new bytes
    for old ones.
    """

    def __init__(self, state: Any):
        self._engine = state.engine_client
        self._models = state.openai_serving_models
        self._names: dict[int, str] = {}

    async def facts(self) -> EngineFacts:
        import vllm

        decision = await self._decision()
        most = self._engine.vllm_config.scheduler_config.max_num_seqs
        return EngineFacts("vllm", vllm.__version__, decision.lora, decision.reason, most)

    def dead(self) -> bool:
        return bool(self._engine.errored)

    async def add(self, name: str, path: str) -> None:
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        if not (Path(path) / "adapter_config.json").is_file():
            raise EngineRefused(f"There is no adapter_config.json in {path}.")
        number = self._models.lora_id_counter.inc(1)
        request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=path)
        try:
            await self._engine.add_lora(request)
        except EngineDeadError:
            raise
        except Exception as error:
            # It may have taken a slot before it failed.
            await self._engine.remove_lora(number)
            raise EngineRefused(_own_words(error)) from error
        self._names[number] = name
        self._models.lora_requests[name] = request

    async def remove(self, name: str) -> None:
        self._models.lora_requests.pop(name, None)
        await self._abort(name)
        for number in [number for number, known in self._names.items() if known == name]:
            await self._engine.remove_lora(number)

    async def resident(self) -> set[str]:
        held = set(await self._engine.list_loras()) if self._names else set()
        routed = {request.lora_int_id for request in self._models.lora_requests.values()}
        self._names = {number: name for number, name in self._names.items() if number in held | routed}
        return {name for number, name in self._names.items() if number in held}

    async def _abort(self, name: str) -> None:
        """Stops what the engine still runs with the adapter, or it would fetch it from disk again.

        The gate waits for its requests first; this is for those whose handler was cancelled so early that
        vLLM does not know it has to abort them. Aborts and removals reach the engine in order.
        """
        running = self._engine.output_processor.request_states
        stray = [number for number, request in running.items() if request.lora_name == name]
        if stray:
            await self._engine.abort(stray, internal=True)

    async def _decision(self) -> Decision:
        decision = here()
        if decision.lora == "native" or self._engine.vllm_config.lora_config is None:
            return Decision("native")
        try:
            said = {tuple(answer) for answer in await self._engine.collective_rpc(WORKER_SAYS)}
        except Exception as error:
            return Decision("refused", f"the engine's workers do not have the plugin: {error}")
        if said != {(decision.lora, decision.reason)}:
            reasons = sorted(str(reason or lora) for lora, reason in said)
            return Decision("refused", "the engine's workers say: " + "; ".join(reasons))
        return decision


def _own_words(error: Exception) -> str:
    """What the worker said, without what each process on the way wrapped around it."""
    said = re.sub(r"^Call to \w+ method failed: ", "", str(error))
    worker = re.match(r"Worker failed with error (['\"])(.*)\1, please check", said, re.DOTALL)
    return worker[2] if worker else said


def _fault(scope: Scope) -> str | None:
    if not os.environ.get(INFER_KEY) or not os.environ.get(AGENT_KEY):
        return f"{INFER_KEY} and {AGENT_KEY} must be set"
    app = scope.get("app")
    if app is not None and (getattr(app.state.args, "api_server_count", None) or 1) > 1:
        return "requests in flight are counted in one process: --api-server-count must be 1"
    return None
