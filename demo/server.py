"""The demo's own Pillion: started in the background, found again, ended by its process id."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("PILLION_DEMO_DIR") or ROOT / ".demo")
DATA = STATE / "data"
PROCESS = STATE / "server.json"
START_S = 60.0


def write_config(model_name: str, source: str, options: dict[str, object]) -> Path:
    """pillion.toml with the one model. A server that runs with another configuration is ended first."""
    STATE.mkdir(exist_ok=True)
    path = STATE / "pillion.toml"
    pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    text = (
        "[[regions]]\n"
        'name = "local"\n'
        f"gpus = {{cpu = {os.cpu_count() or 1}}}\n\n"
        "[[models]]\n"
        f"name = {json.dumps(model_name)}\n"
        f"source = {json.dumps(source)}\n"
        f"options = {{{pairs}}}\n"
    )
    if path.exists() and path.read_text() != text:
        stop()
    path.write_text(text)
    return path


def running() -> str | None:
    """The URL of the demo's server, if it runs."""
    process = _process()
    return None if process is None else str(json.loads(PROCESS.read_text())["url"])


def start(config: Path) -> str:
    """Start `pillion serve` in the background and wait until it answers; its URL."""
    port = int(os.environ.get("PILLION_DEMO_PORT", "0")) or _free_port(8080)
    url = f"http://127.0.0.1:{port}"
    with (STATE / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pillion",
                "serve",
                "--config",
                config,
                "--data-dir",
                DATA,
                "--port",
                str(port),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    made = psutil.Process(process.pid).create_time()
    PROCESS.write_text(json.dumps({"pid": process.pid, "made": made, "url": url}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _answers(url):
            return url
        time.sleep(0.1)
    raise SystemExit(f"error: the server did not come up; see {STATE / 'server.log'}")


def stop() -> bool:
    """End the server and its engines. False where there was none."""
    process = _process()
    if process is not None:
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    PROCESS.unlink(missing_ok=True)
    return process is not None


def admin_key() -> str:
    return (DATA / "admin-key").read_text().strip()


def engine_process(replica: str) -> psutil.Process:
    """The engine of a replica, from what its agent wrote down."""
    engine = json.loads((DATA / "replicas" / replica / "engine.json").read_text())
    return psutil.Process(engine["pid"])


def _process() -> psutil.Process | None:
    try:
        kept = json.loads(PROCESS.read_text())
        process = psutil.Process(kept["pid"])
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    return process if process.create_time() == kept["made"] else None


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/catalog", headers={"authorization": "Bearer x"}).status_code == 401
    except httpx.TransportError:
        return False


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
