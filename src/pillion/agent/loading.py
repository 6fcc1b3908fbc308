"""One load, from the artifact store to an adapter that gateways may call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from pillion.agent.proof import Prover, effective
from pillion.core.errors import PillionError
from pillion.core.replica import Failure, Proof
from pillion.engines.client import EngineClient, EngineError

FETCHES = 4
LOADS = 2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Engine:
    """An engine that is up, and who asks it."""

    client: EngineClient
    prover: Prover


@dataclass(frozen=True)
class Loaded:
    """Open to gateways, warm and proved. `load_ms`: all of it, the fetch included."""

    proof: Proof
    load_ms: float


class IneffectiveError(PillionError):
    """The engine took it, and answers as if it had not."""

    status, code = 422, "adapter_ineffective"


class Loading:
    """Loads at most a few at a time, so that one slow adapter does not hold up the others.

    `fetch` brings a version's files to this node by digest, verified, and gives their directory.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Path]]) -> None:
        self._fetch = fetch
        self._fetches = asyncio.Semaphore(FETCHES)
        self._loads = asyncio.Semaphore(LOADS)

    async def load(self, engine: Engine, name: str, digest: str) -> Loaded | tuple[Failure, bool]:
        """What came of it: loaded, or a failure and whether it is lasting. A failed load leaves nothing behind."""
        started = time.perf_counter()
        try:
            async with self._fetches:
                path = await self._fetch(digest)
            async with self._loads:
                proof = await self._bring_up(engine, name, path)
        except PillionError as error:
            return failure_of(error, name), lasting(error)
        except Exception as error:
            log.exception("load_broke", adapter=name)
            return failure_of(error, name), False
        return Loaded(proof, round((time.perf_counter() - started) * 1000, 3))

    async def _bring_up(self, engine: Engine, name: str, path: Path) -> Proof:
        await engine.client.load(name, str(path))
        try:
            proof = await engine.prover.prove(name)
            if not effective(proof):
                raise _ineffective(proof)
            await engine.client.open(name)
        except Exception:
            await _take_out(engine.client, name)
            raise
        return proof


def failure_of(error: Exception, name: str) -> Failure:
    """As its owner is told: what the engine calls it means nothing to them."""
    if isinstance(error, PillionError):
        said = error.message.replace(f"'{name}'", "the adapter").replace(name, "the adapter")
        return Failure(error.code, said)
    return Failure("internal_error", f"{type(error).__name__}: {error}")


def lasting(error: PillionError) -> bool:
    """Whether the same bytes would meet it again. All others may pass, and are tried again."""
    return isinstance(error, IneffectiveError) or (isinstance(error, EngineError) and error.lasting)


def _ineffective(proof: Proof) -> IneffectiveError:
    return IneffectiveError(
        f"the adapter changes nothing: its log-probabilities differ from the base's by {proof.difference:.2g} at most,"
        f" and the base's own vary by {proof.noise:.2g}. Check that it was trained for this base."
    )


async def _take_out(client: EngineClient, name: str) -> None:
    """What fails here is found again when the engine is next asked what it holds."""
    try:
        await client.unload(name, 0.0)
    except EngineError as error:
        log.error("unload_failed", adapter=name, error=str(error))
