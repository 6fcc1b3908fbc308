"""The way of a request as machine code, where it was compiled from these very sources (`pillion.main.compiling`).

What was compiled is found by a digest of all sources that matter: what does not fit them any more is left alone, and the
sources run as they are, as they do with `PILLION_COMPILED=0`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
import warnings
from pathlib import Path

# All that a request runs through. What is not in here runs once in a while, or is mostly waiting.
MODULES = (
    "core/choice",
    "core/limits",
    "gateway/accounting",
    "gateway/answers",
    "gateway/app",
    "gateway/auth",
    "gateway/balance",
    "gateway/body",
    "gateway/budgets",
    "gateway/charges",
    "gateway/echo",
    "gateway/exchange",
    "gateway/fair",
    "gateway/fare",
    "gateway/form",
    "gateway/frames",
    "gateway/headers",
    "gateway/house",
    "gateway/http",
    "gateway/inbound",
    "gateway/inference",
    "gateway/knowledge",
    "gateway/limits",
    "gateway/metering",
    "gateway/metrics",
    "gateway/onward",
    "gateway/outbound",
    "gateway/outbox",
    "gateway/placing",
    "gateway/plans",
    "gateway/pool",
    "gateway/question",
    "gateway/replies",
    "gateway/spool",
    "gateway/tally",
    "gateway/tokens",
    "gateway/tries",
    "gateway/wire",
)
GROUP = "pillion_gateway"
SOURCES = Path(__file__).resolve().parents[1]
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


def found() -> Path | None:
    """The directory with the compiled modules of these very sources; None where there is none or it is not wanted."""
    if os.environ.get("PILLION_COMPILED") == "0":
        return None
    directory = place() / "pillion"
    return directory if directory.is_dir() else None


def load() -> Path | None:
    """What was `found`, in use; None also where it does not run here, of which a warning tells."""
    directory = found()
    if directory is None:
        return None
    try:
        _use(directory)
    except ImportError as error:
        sys.modules.pop(f"{GROUP}__mypyc", None)
        warnings.warn(f"the gateway runs as Python, its machine code not at all: {error}", stacklevel=2)
        return None
    return directory


def _use(directory: Path) -> None:
    """Loads what all compiled modules share; they themselves are found below `directory` when they are imported."""
    name = f"{GROUP}__mypyc"
    spec = importlib.util.spec_from_file_location(name, directory.parent / f"{name}{SUFFIX}")
    assert spec is not None
    assert spec.loader is not None
    shared = importlib.util.module_from_spec(spec)
    sys.modules[name] = shared
    spec.loader.exec_module(shared)


def place() -> Path:
    """By what is compiled, and what for."""
    digest = hashlib.sha256(SUFFIX.encode())
    # What they call counts too: machine code relies on its types.
    for source in sorted([*(SOURCES / "gateway").glob("*.py"), *(SOURCES / "core").rglob("*.py")]):
        digest.update(source.read_bytes())
    return Path(sysconfig.get_path("platlib")) / "pillion_compiled" / digest.hexdigest()[:32]
