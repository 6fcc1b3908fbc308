"""The systems under test: how each is installed and started, as its own documentation tells for speed.

All get one core, one upstream and one worker; logs of requests are off. Nothing else runs on their core while they
are measured: those that wait are stopped (SIGSTOP).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import stand_in

HERE = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache" / "pillion" / "bench-gateway"
CORES = 4
# Where there are fewer, the system under test has one all the same, and the others share one.
UPSTREAM_CORE, LOAD_CORE, SYSTEM_CORE, REST_CORE = (
    range(CORES) if (os.cpu_count() or 1) >= CORES else (0, 0, 1, 0)
)
LITELLM_KEY = "sk-bench-0123456789"
EXCLUDE_NEWER = "7 days"

NGINX = """
daemon off; worker_processes 1; pid {scratch}/nginx.pid; error_log {scratch}/nginx.error crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 300s;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
  upstream mock {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""
LITELLM = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_key: none, api_base: "{upstream}/v1"}}
litellm_settings: {{request_timeout: 600, set_verbose: false, json_logs: true, telemetry: false}}
"""


class MissingError(Exception):
    """A system that cannot be had here; says why."""


@dataclass
class Place:
    """Where systems are started: the mock's address, a directory, and what was started."""

    upstream: str
    scratch: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: dict[int, Path] = field(default_factory=dict)

    def spawn(
        self, argv: list[str | Path], core: int, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        log = self.scratch / f"{len(self.started)}-{Path(argv[0]).name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(environment or {})},
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
                cwd=self.scratch,
            )
        self.started.append(process)
        self.logs[process.pid] = log
        return process

    def last_words(self, process: subprocess.Popen[bytes]) -> str:
        return self.logs[process.pid].read_text(errors="replace")[-300:]

    def end(self) -> None:
        for process in reversed(self.started):
            family = [process.pid, *(child.pid for child in children(process.pid))]
            for pid in family:
                for number in (signal.SIGCONT, signal.SIGKILL):
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        break
            process.wait()


@dataclass
class System:
    """One that runs. `targets`: a file of keys and models, where not every request may be the same."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    key: str = "none"
    targets: Path | None = None
    streams: int = 400
    version: str = ""

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, *(child.pid for child in children(self.process.pid))]

    def signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def environment(name: str, package: str) -> Path:
    """The `bin` of a virtual environment with that package, made at the first use. Raises `MissingError`."""
    home = CACHE / name
    python = home / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    if not (home / ".installed").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for argv in (
            [*uv, "venv", "-q", "--clear", "-p", sys.executable, str(home)],
            [*uv, "pip", "install", "-q", "-p", str(python), "--exclude-newer", EXCLUDE_NEWER, package],
        ):
            made = subprocess.run(argv, capture_output=True, text=True, cwd=CACHE)
            if made.returncode:
                raise MissingError(f"{package} cannot be installed: {made.stderr.strip()[-300:]}")
        (home / ".installed").touch()
    return home / "bin"


def version(bin_: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([bin_ / "python", "-c", code], capture_output=True, text=True).stdout.strip()


def pillion(place: Place, name: str = "pillion", adapters: int = 100_000) -> System:
    """The gateway process as users start it, with everything on, and a stand-in for its control."""
    port, control, targets = free_port(), free_port(), place.scratch / f"{name}.targets"
    accounts = min(10_000, adapters)
    place.spawn(
        [
            *(sys.executable, HERE / "stand_in.py", "--port", str(control), "--upstream", place.upstream),
            *("--targets", targets, "--accounts", str(accounts), "--adapters", str(adapters)),
            *("--used", str(min(1000, adapters))),
        ],
        REST_CORE,
    )
    at, data = f"http://127.0.0.1:{control}", place.scratch / f"{name}-data"
    data.mkdir(exist_ok=True)
    (data / "internal-token").write_text(stand_in.TOKEN)
    process = place.spawn(
        [
            *(sys.executable, "-m", "pillion", "gateway", "--control-url", at, "--internal-url", at),
            *("--port", str(port), "--data-dir", data),
        ],
        SYSTEM_CORE,
        # One mock stands for a whole pool here: none of 400 streams is to wait for its turn.
        {"PILLION_LIMITS_POOL_REQUESTS": "4096"},
    )
    return System(name, f"http://127.0.0.1:{port}", process, targets=targets)


def pillion_ten(place: Place) -> System:
    return pillion(place, "pillion-ten", 10)


def vllm_router(place: Place) -> System:
    bin_, port = environment("vllm-router", "vllm-router"), free_port()
    argv = [
        *(bin_ / "vllm-router", "--worker-urls", place.upstream, "--port", str(port)),
        *("--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port())),
    ]
    process = place.spawn(argv, SYSTEM_CORE)
    return System("vllm-router", f"http://127.0.0.1:{port}", process, version=version(bin_, "vllm-router"))


def sglang_router(place: Place) -> System:
    bin_, port = environment("sglang-router", "sglang-router"), free_port()
    argv = [
        *(bin_ / "python", "-m", "sglang_router.launch_router", "--worker-urls", place.upstream),
        *("--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin", "--log-level", "error"),
        *("--prometheus-port", str(free_port())),
    ]
    process = place.spawn(argv, SYSTEM_CORE)
    return System(
        "sglang-router", f"http://127.0.0.1:{port}", process, version=version(bin_, "sglang-router")
    )


def asgi(place: Place) -> System:
    port = free_port()
    argv = [sys.executable, HERE / "asgi_proxy.py", "--port", str(port), "--upstream", place.upstream]
    return System("asgi", f"http://127.0.0.1:{port}", place.spawn(argv, SYSTEM_CORE))


def litellm(place: Place) -> System:
    """Few streams: it answers some tens of requests a second."""
    bin_, port = environment("litellm", "litellm[proxy]"), free_port()
    config = place.scratch / "litellm.yaml"
    config.write_text(LITELLM.format(upstream=place.upstream))
    process = place.spawn(
        [
            bin_ / "litellm",
            "--config",
            config,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ],
        SYSTEM_CORE,
        {
            "LITELLM_MASTER_KEY": LITELLM_KEY,
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
    )
    at = f"http://127.0.0.1:{port}"
    return System("litellm", at, process, key=LITELLM_KEY, streams=20, version=version(bin_, "litellm"))


def nginx(place: Place) -> System:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise MissingError("no nginx on the PATH (Debian: apt-get install nginx-light)")
    port, config = free_port(), place.scratch / "nginx.conf"
    upstream = place.upstream.removeprefix("http://")
    config.write_text(NGINX.format(scratch=place.scratch, port=port, upstream=upstream))
    process = place.spawn([program, "-c", config, "-e", place.scratch / "nginx.first"], SYSTEM_CORE)
    told = subprocess.run([program, "-v"], capture_output=True, text=True).stderr
    return System("nginx", f"http://127.0.0.1:{port}", process, version=told.rpartition("/")[2].split()[0])


SYSTEMS: dict[str, Callable[[Place], System]] = {
    "pillion": pillion,
    "pillion-ten": pillion_ten,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "asgi": asgi,
    "litellm": litellm,
    "nginx": nginx,
}
