"""The adapters a simulated engine holds: checked against the base, slow by their size, refused at will."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pillion import __version__
from pillion.core.adapters.bases import Base, base_modules
from pillion.core.errors import AdapterInvalidError
from pillion.engines.plugin.pillion_engine.port import EngineFacts, EngineRefused
from pillion.engines.sim.settings import Faults, SimConfig, names
from pillion.engines.sim.weights import RefusedWeightsError, Weights, check
from pillion.engines.sim.words import Voice

TAG_LENGTH = 12
HIDDEN_SIZE = 64


class SimAdapters:
    """The gate's port to the simulated engine. `faults` gives those that hold now."""

    def __init__(self, config: SimConfig, faults: Callable[[], Faults]) -> None:
        self._config = config
        self._faults = faults
        document = _document(config.model_dir)
        self._base = _base(config.base, document)
        self._voices: dict[str, Voice] = {}
        self.paths: dict[str, str] = {}
        size = document.get("hidden_size")
        self.hidden_size: int = size if isinstance(size, int) else HIDDEN_SIZE

    def voice(self, model: str) -> Voice | None:
        """Who answers to this name; None for nobody."""
        return Voice(self._config.base) if model == self._config.base else self._voices.get(model)

    async def facts(self) -> EngineFacts:
        return EngineFacts("sim", __version__, "native", max_requests=self._config.options.max_num_seqs)

    def dead(self) -> bool:
        return False

    async def add(self, name: str, path: str) -> None:
        faults = self._faults()
        if names(faults.refuse_load, name):
            raise EngineRefused(f"told to refuse {name}")
        if name not in self._voices and len(self._voices) >= self._config.slots:
            raise EngineRefused(f"all {self._config.slots} slots are taken")
        try:
            weights = await asyncio.to_thread(check, Path(path), self._base, self._config.max_rank)
        except RefusedWeightsError as error:
            raise EngineRefused(str(error)) from error
        await asyncio.sleep(weights.size / 1e6 * self._config.options.load_ms_per_mb / 1000 * faults.slow)
        self.paths[name] = path
        self._voices[name] = self._speak(name, weights, faults)

    async def remove(self, name: str) -> None:
        self._voices.pop(name, None)
        self.paths.pop(name, None)

    async def resident(self) -> set[str]:
        return set(self._voices)

    def _speak(self, name: str, weights: Weights, faults: Faults) -> Voice:
        digest = name.partition("@")[2] or hashlib.sha256(weights.path.read_bytes()).hexdigest()
        effective = weights.effective and not names(faults.ineffective, name)
        return Voice(self._config.base, digest[:TAG_LENGTH], effective)


def _document(model_dir: str | None) -> Mapping[str, Any]:
    if model_dir is None:
        return {}
    document: dict[str, Any] = json.loads((Path(model_dir) / "config.json").read_text())
    return document


def _base(name: str, document: Mapping[str, Any]) -> Base | None:
    """The base's shapes; None where its family is not known, so that they cannot be checked."""
    try:
        return Base(name, base_modules(document))
    except AdapterInvalidError:
        return None
