"""vLLM as its documentation starts it, and as Pillion does: two systems with one face, for bench/engine.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil

from pillion.core.replica import GroupSpec, LoraSpec, ModelSpec, ReplicaSpec
from pillion.engines.vllm import VllmDriver

START_S = 600.0
BASE = "base"
GPU_SHARE = 0.42  # two engines have to fit
INFER, AGENT = "infer-key", "agent-key"


@dataclass(frozen=True)
class Shape:
    """What both systems serve: the base in `models`/base, room for `slots` adapters up to `rank`."""

    models: Path
    slots: int = 9
    rank: int = 64
    dtype: str = "bfloat16"
    gpu: bool = False


@dataclass
class System:
    """One engine that is up. `load` and `unload` return seconds."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=120))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Lets it run; outside of this it is stopped, lest it disturb the other one."""
        for process in self._processes():
            process.resume()
        try:
            yield
        finally:
            for process in self._processes():
                process.suspend()

    def load(self, name: str, path: Path) -> float:
        began = time.perf_counter()
        if self.name == "stock":
            self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        else:
            self._post("/pillion/v1/adapters", {"name": name, "path": str(path)})
            self._post(f"/pillion/v1/adapters/{name}/open", {})
        return time.perf_counter() - began

    def unload(self, name: str) -> float:
        began = time.perf_counter()
        if self.name == "stock":
            self._post("/v1/unload_lora_adapter", {"lora_name": name})
        else:
            answer = self.client.delete(
                f"{self.url}/pillion/v1/adapters/{name}?deadline_s=5", headers=_auth(AGENT)
            )
            answer.raise_for_status()
        return time.perf_counter() - began

    def first_token(self, model: str) -> float:
        """Seconds to the first event of a stream."""
        body = {"model": model, "prompt": "w5 w6 w7 w8", "max_tokens": 4, "ignore_eos": True, "stream": True}
        began = time.perf_counter()
        url = f"{self.url}/v1/completions"
        with self.client.stream("POST", url, json=body, headers=_auth(INFER)) as answer:
            answer.raise_for_status()
            next(answer.iter_lines())
            return time.perf_counter() - began

    def tokens_per_s(self, names: list[str], requests: int, tokens: int) -> float:
        """Tokens of `requests` at once, over `names` in turn, each of `tokens` tokens, per second."""
        return asyncio.run(self._throughput(names, requests, tokens))

    def memory_mib(self) -> float:
        """Memory of all its processes, shared pages counted once."""
        return sum(process.memory_full_info().pss for process in self._processes()) / 2**20

    def _processes(self) -> list[psutil.Process]:
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    async def _throughput(self, names: list[str], requests: int, tokens: int) -> float:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.url, headers=_auth(INFER), connector=connector) as session:

            async def one(number: int) -> int:
                body = {
                    "model": names[number % len(names)],
                    "prompt": " ".join(f"w{3 + (number * 37 + n) % 4000}" for n in range(16)),
                    "max_tokens": tokens,
                    "ignore_eos": True,
                    "temperature": 0,
                }
                async with session.post("/v1/completions", json=body) as answer:
                    answer.raise_for_status()
                    return int((await answer.json())["usage"]["completion_tokens"])

            began = time.perf_counter()
            done = await asyncio.gather(*(one(number) for number in range(requests)))
            return sum(done) / (time.perf_counter() - began)

    def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = self.client.post(self.url + path, json=body, headers=_auth(AGENT))
        if answer.is_error:
            raise RuntimeError(f"{self.name} {path}: {answer.status_code} {answer.text[:500]}")


@contextmanager
def started(name: str, python: Path, shape: Shape, log: Path) -> Iterator[tuple[System, float]]:
    """A healthy engine, `stock` or `pillion`, and the seconds from launch to healthy."""
    port = _free_port()
    argv, env = (stock if name == "stock" else pillion)(python, shape, port, log.parent)
    with log.open("ab") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            argv, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _until_healthy(url, process, log)
            yield System(name, url, process), time.perf_counter() - began
        finally:
            end(process)


def stock(python: Path, shape: Shape, port: int, data_dir: Path) -> tuple[list[str], dict[str, str]]:
    """vLLM with its own defaults; only what both must have in common is set."""
    argv = [
        str(python),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    argv += ["--model", str(shape.models / "base"), "--served-model-name", BASE, "--dtype", shape.dtype]
    argv += ["--max-num-seqs", "64", "--enable-lora", "--max-lora-rank", str(shape.rank)]
    argv += ["--max-loras", str(shape.slots), "--max-cpu-loras", str(shape.slots)]
    argv += ["--gpu-memory-utilization", str(GPU_SHARE)] if shape.gpu else []
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    return argv, {**os.environ, **own, **({} if shape.gpu else {"VLLM_CPU_KVCACHE_SPACE": "1"})}


def pillion(python: Path, shape: Shape, port: int, data_dir: Path) -> tuple[list[str], dict[str, str]]:
    """What Pillion's agent starts."""
    group = GroupSpec(
        instance=1,
        region="local",
        replicas=1,
        model=ModelSpec(BASE, f"path:{shape.models / 'base'}"),
        engine="vllm",
        lora=LoraSpec(True, max_adapters=shape.slots - 1, max_rank=shape.rank),
        gpu_type="gpu" if shape.gpu else "cpu",
        engine_options={"dtype": shape.dtype, "max_num_seqs": 64, "gpu_memory_utilization": GPU_SHARE},
    )
    spec = ReplicaSpec("bench", group, "agent-token", INFER, AGENT, "file:///nowhere", str(data_dir))
    launch = VllmDriver().command(spec, port, python, data_dir)
    return list(launch.argv), {**launch.env, "HF_HUB_OFFLINE": "1"}


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def make_models(python: Path, cache: Path, hidden: int, layers: int, vocabulary: int = 4096) -> Path:
    """The directory of a random base and its adapters, made once."""
    made = cache / f"bench-{hidden}x{layers}-{vocabulary}"
    if not made.exists():
        under_way = made.with_suffix(f".{os.getpid()}")
        script = Path(__file__).with_name("engine_models.py")
        numbers = [str(hidden), str(layers), str(vocabulary)]
        subprocess.run([str(python), str(script), str(under_way), *numbers], check=True, capture_output=True)
        under_way.rename(made)
    return made


def rank_of(path: Path) -> int:
    return int(json.loads((path / "adapter_config.json").read_text())["r"])


def _auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise RuntimeError(f"the engine did not come up:\n{log.read_text(errors='replace')[-3000:]}")
