"""A whole Pillion as real processes, with the sim engine, in a directory of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil
from safetensors.numpy import save_file

from pillion.sdk import Pillion

DEADLINE_S = 60.0
BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """A simulated engine of a replica, as its agent reaches it."""

    region: str
    process: psutil.Process
    url: str
    key: str

    def state(self) -> dict[str, Any]:
        """What its gate holds, and how many requests are in flight."""
        return dict(self._call("GET", "/pillion/v1/state"))

    def go_wrong(self, **faults: Any) -> None:
        """From now on (`pillion.engines.sim.settings.Faults`); those not named stay as they are."""
        self._call("POST", "/sim/faults", json=faults)

    def _call(self, method: str, path: str, **more: Any) -> Any:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.request(method, self.url + path, headers=headers, **more).raise_for_status().json()


def until(look: Callable[[], T], what: str, timeout: float = DEADLINE_S) -> T:
    """What `look` returns once it is true; an error of the client's counts as not yet."""
    deadline = time.monotonic() + timeout
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = look()
            if last:
                return last  # type: ignore[return-value]
        except Exception as error:
            last = error
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}; last: {last!r}")


def adapter_file(folder: Path, seed: int, rank: int = 8, *, scale: float = 1.0) -> Path:
    """A LoRA for `BASE`, other bytes for every seed."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        for module, (rows, columns) in {"q_proj": (64, 64), "v_proj": (32, 64)}.items():
            stem = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{stem}.lora_A.weight"] = rng.normal(size=(rank, columns)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = (scale * rng.normal(size=(rows, rank))).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"adapter-{seed}-{rank}.safetensors"
    save_file(tensors, path)
    return path


class Site:
    """`pillion serve` on a free port. `url` is what clients call, `admin` the first key."""

    def __init__(self, root: Path, database: str = "", environment: dict[str, str] | None = None) -> None:
        self.root, self.data = root, root / "data"
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        model = root / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text(json.dumps(BASE))
        section = f"[database]\nurl = {json.dumps(database)}\n\n" if database else ""
        regions = "".join(
            f'[[regions]]\nname = "{name}"\ngpus = {{cpu = 8}}\n\n' for name in ("eu-1", "us-1")
        )
        models = "".join(
            f'[[models]]\nname = "{name}"\nsource = "path:{model}"\nengine = "sim"\n{more}\n\n'
            for name, more in (
                ("tiny", ""),
                ("other", ""),
                ("slow", "options = {ttft_ms = 50, tokens_per_s = 50}"),
                ("embed", 'kind = "embedding"\nlora = false'),
            )
        )
        self.config = root / "pillion.toml"
        self.config.write_text(section + regions + models)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str) -> None:
        self._begin(*arguments)
        until(lambda: httpx.get(f"{self.url}/v1/catalog").status_code == 401, f"up: {self.log()}")

    def refused(self, *arguments: str) -> int:
        """Its exit status where it must not start."""
        self._begin(*arguments)
        assert self.process is not None
        return self.process.wait(DEADLINE_S)

    def _begin(self, *arguments: str) -> None:
        with (self.root / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pillion", "serve", "--config", str(self.config)),
                    *("--data-dir", str(self.data), "--port", str(self.port), *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def log(self) -> str:
        path = self.root / "serve.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    @property
    def admin(self) -> str:
        return (self.data / "admin-key").read_text().strip()

    def client(self, key: str | None = None) -> Pillion:
        return Pillion(self.url, key or self.admin)

    def tenant(self, name: str) -> Pillion:
        """A client of a new account."""
        with httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.admin}"}) as admin:
            account = admin.post("/v1/admin/accounts", json={"name": name, "tier": "reserved"}).json()
            made = admin.post(
                f"/v1/admin/accounts/{account['id']}/keys",
                json={"name": "k", "scopes": ["inference", "manage"]},
            ).json()
        return self.client(made["key"])

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Ours, by the data directory in their arguments; `part`: control, gateway, agent, engines.sim, serve."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if str(self.data) in words and process.status() != psutil.STATUS_ZOMBIE:
                wanted = f"pillion {part}" if part not in ("", "engines.sim") else part
                if wanted in words:
                    found.append(process)
        return found

    def launch(self, client: Pillion, model: str = "tiny", slots: int = 4, **more: Any) -> int:
        more.setdefault("regions", ["eu-1"])
        made = client.instances.launch(model, lora={"max_adapters": slots}, **more)
        client.instances.wait_running(made.id, timeout=DEADLINE_S)
        return made.id

    def engines(self, instance: int) -> list[Engine]:
        """Those of an instance, by region."""
        found = []
        for folder in (self.data / "replicas").iterdir():
            try:
                spec, engine = (
                    json.loads((folder / name).read_text()) for name in ("spec.json", "engine.json")
                )
            except FileNotFoundError:  # another instance's, which is ending
                continue
            if spec["group"]["instance"] == instance:
                url = f"http://{spec['host']}:{engine['port']}"
                process = psutil.Process(engine["pid"])
                found.append(Engine(spec["group"]["region"], process, url, spec["engine_key"]))
        return sorted(found, key=lambda engine: engine.region)

    def artifacts(self) -> set[str]:
        """Every file of the artifact store, what is under way included."""
        root = self.data / "artifacts"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@contextmanager
def running(site: Site, *arguments: str) -> Iterator[Site]:
    """Started, and at the end stopped for good: whatever a test left is ended by its process id."""
    site.start(*arguments)
    try:
        yield site
    finally:
        if site.process is not None and site.process.poll() is None:
            site.stop()
        for process in site.processes():
            process.kill()


def ask(client: Pillion, model: str, prompt: str = "hi", **options: Any) -> str:
    answer = client.chat.create(model, [{"role": "user", "content": prompt}], max_tokens=4, **options)
    return str(answer["choices"][0]["message"]["content"])


def tag(digest: str | None) -> str:
    """What the sim says who serves `tiny`'s adapter of that digest; None: the base."""
    return f"sim tiny {digest[:12] if digest else 'base'} t1 t2 t3 t4"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
