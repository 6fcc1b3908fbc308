"""Hot load: from registered to the first token, through Pillion (proof included) and on vLLM alone.

    make bench-load            rounds are interleaved; medians are printed and written to bench/results/hot_load.json

Alone means what one would do by hand: `POST /v1/load_lora_adapter`, one request to warm it, one streamed request
until its first token. Through Pillion: `POST /v1/adapters/{ref}/load`, which answers when the adapter was warmed,
proved effective and is routed to, then one streamed request until its first token. Every round loads other bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from pillion.engines.environments import EngineEnvironments
from pillion.sdk import Pillion
from pillion.tuning.recipe import DemoModel, make_demo_model

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SLOTS = 4
START_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    environments = EngineEnvironments()
    name = environments.install(progress=say).name
    python = environments.python(name)
    model = make_demo_model(python, progress=say)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        adapters = variants(model, Path(scratch), rounds + 1)
        alone = stack.enter_context(vllm_alone(python, model, Path(scratch)))
        pillion = stack.enter_context(through_pillion(model, Path(scratch)))
        direct, through = Direct(alone, model), Through(pillion, model)
        times: dict[str, list[float]] = {"vllm": [], "pillion": []}
        for number, adapter in enumerate(adapters):
            pair = {"vllm": direct.load(adapter), "pillion": through.load(adapter)}
            for system, took in pair.items():
                if number:  # the first of each only warms what is used by all
                    times[system].append(1000 * took)
    report(times)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def variants(model: DemoModel, scratch: Path, count: int) -> list[Path]:
    """Adapters that differ in a few bytes, so that none was seen before."""
    source = model.adapters[0].path
    tensors = load_file(source / "adapter_model.safetensors")
    found = []
    for number in range(count):
        folder = scratch / f"variant-{number}"
        folder.mkdir()
        scale = np.float32(1 + number / 1000)
        varied = {key: value * scale if "lora_B" in key else value for key, value in tensors.items()}
        save_file(varied, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        found.append(folder)
    return found


def first_token(client: httpx.Client, model: str, prompt: str) -> None:
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 8,
        "temperature": 0,
        "messages": [{"role": "user", "content": prompt}],
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"error: {model}: {answer.read().decode()}")
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                break


class Direct:
    def __init__(self, client: httpx.Client, model: DemoModel) -> None:
        self.client, self.prompts = client, [p.prompt for p in model.prompts]

    def load(self, adapter: Path) -> float:
        """Seconds from the load's request to the first token; unloads afterwards."""
        name = adapter.name
        began = time.perf_counter()
        self.client.post(
            "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(adapter)}
        ).raise_for_status()
        body = {"model": name, "prompt": self.prompts[0], "max_tokens": 1}
        self.client.post("/v1/completions", json=body).raise_for_status()
        first_token(self.client, name, self.prompts[1])
        took = time.perf_counter() - began
        self.client.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
        return took


class Through:
    def __init__(self, control: Pillion, model: DemoModel) -> None:
        self.control, self.model, self.prompts = control, model, [p.prompt for p in model.prompts]
        self.client = httpx.Client(
            base_url=os.environ["PILLION_URL"],
            headers={"authorization": f"Bearer {os.environ['PILLION_API_KEY']}"},
            timeout=60,
        )

    def load(self, adapter: Path) -> float:
        name = adapter.name
        made = self.control.adapters.upload(
            name,
            self.model.name,
            adapter / "adapter_model.safetensors",
            config=adapter / "adapter_config.json",
        )
        began = time.perf_counter()
        answer = self.client.post(f"/v1/adapters/{made.id}/load", json={})
        if answer.status_code != 200:
            raise SystemExit(f"error: load: {answer.text}")
        first_token(self.client, made.aliases[0], self.prompts[1])
        took = time.perf_counter() - began
        self.control.adapters.delete(made.id, force=True)
        return took


@contextmanager
def vllm_alone(python: Path, model: DemoModel, scratch: Path) -> Iterator[httpx.Client]:
    """vLLM with its own runtime loading, the same caps and options as Pillion's engine has."""
    port, threads = 18411, str(max(1, (os.cpu_count() or 2) // 2))
    options = {"dtype": "float32", **model.engine_options}
    argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    argv += [
        "--model",
        str(model.path),
        "--served-model-name",
        model.name,
        "--enforce-eager",
        "--enable-lora",
    ]
    argv += ["--max-loras", str(SLOTS + 1), "--max-cpu-loras", str(SLOTS + 1), "--max-lora-rank", "64"]
    argv += ["--dtype", str(options["dtype"]), "--max-num-seqs", "64"]
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": threads,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with (
        (scratch / "vllm.log").open("wb") as log,
        running(argv, log, environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        wait_for(client, "/health", 200, process, scratch / "vllm.log")
        yield client


@contextmanager
def through_pillion(model: DemoModel, scratch: Path) -> Iterator[Pillion]:
    port, threads = 18412, max(1, (os.cpu_count() or 2) // 2)
    url = f"http://127.0.0.1:{port}"
    config = scratch / "pillion.toml"
    options = {"dtype": "float32", **model.engine_options, "threads": threads}
    pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    config.write_text(
        f'[[models]]\nname = "{model.name}"\nsource = "{model.source}"\noptions = {{{pairs}}}\n'
    )
    argv = [sys.executable, "-m", "pillion", "serve", "--config", str(config)]
    argv += ["--data-dir", str(scratch / "data"), "--port", str(port)]
    with (scratch / "pillion.log").open("wb") as log, running(argv, log, dict(os.environ)) as process:
        with httpx.Client(base_url=url) as probe:
            wait_for(probe, "/v1/catalog", 401, process, scratch / "pillion.log")
        os.environ["PILLION_URL"] = url
        os.environ["PILLION_API_KEY"] = (scratch / "data" / "admin-key").read_text().strip()
        with Pillion() as client:
            instance = client.instances.launch(model.name, lora={"max_adapters": SLOTS})
            client.instances.wait_running(instance.id, timeout=START_S)
            yield client


@contextmanager
def running(
    argv: list[object], log: object, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([str(a) for a in argv], stdout=log, stderr=log, env=environment)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        process.wait(90)


def wait_for(
    client: httpx.Client, path: str, status: int, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get(path).status_code == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"error: it did not come up:\n{log.read_text()[-2000:]}")


def report(times: dict[str, list[float]]) -> None:
    medians = {system: statistics.median(values) for system, values in times.items()}
    added = [p - v for p, v in zip(times["pillion"], times["vllm"], strict=True)]
    found = {
        "rounds": len(added),
        "median_ms": medians,
        "added_median_ms": statistics.median(added),
        "all_ms": times,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "hot_load.json").write_text(json.dumps(found, indent=1))
    print(f"hot load, registered to first token, {len(added)} interleaved rounds, medians:")
    for system, value in medians.items():
        print(f"  {system:<8} {value:7.1f} ms")
    print(f"  added    {found['added_median_ms']:7.1f} ms")


if __name__ == "__main__":
    main()
