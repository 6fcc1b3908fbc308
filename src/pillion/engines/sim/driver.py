"""How to start the simulated engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from pillion.core.replica import ReplicaSpec, Stage
from pillion.engines.driver import Launch, environment, model_argument, options, slots
from pillion.engines.sim.settings import SimOptions

_STAGES: tuple[tuple[str, Stage], ...] = (
    ("Starting to load model", "loading"),
    ("Model loading took", "warming"),
)


class SimDriver:
    """The simulated engine runs in the server's own environment. A hub model has no shapes to check."""

    def command(self, spec: ReplicaSpec, port: int, python: Path, data_dir: Path) -> Launch:
        group = spec.group
        chosen = options(group.engine_options, SimOptions, "sim")
        argv = [str(python), "-m", "pillion.engines.sim", "--data-dir", str(data_dir)]
        argv += ["--host", spec.host, "--port", str(port), "--served-model-name", group.model.name]
        model, _ = model_argument(group.model.source)
        if group.model.source.startswith("path:"):
            argv += ["--model", model]
        argv += ["--slots", str(slots(spec)), "--max-lora-rank", str(group.lora.max_rank)]
        argv += ["--options", msgspec.json.encode(chosen).decode()]
        # The engine must be this very code, wherever the interpreter would look for it.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        return Launch(tuple(argv), environment(spec, os.environ, PYTHONPATH=path))

    def stage(self, line: str) -> Stage | None:
        return next((stage for mark, stage in _STAGES if mark in line), None)
