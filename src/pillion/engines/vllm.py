"""How to start vLLM, on a GPU or with its CPU build."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pillion.core.errors import InvalidRequestError
from pillion.core.replica import ReplicaSpec, Stage
from pillion.engines.driver import PLUGIN, Launch, environment, model_argument, options, slots

GATE = "pillion_engine.vllm.VllmGate"
SERVER, CPU_SERVER = "vllm.entrypoints.openai.api_server", "pillion_engine.serve"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

_STAGES: tuple[tuple[str, Stage], ...] = (
    ("Starting to load model", "loading"),
    ("Loading safetensors", "loading"),
    ("Downloading", "pulling"),
    ("downloading weights", "pulling"),
    ("Fetching ", "pulling"),
    ("Model loading took", "warming"),
    ("Loading weights took", "warming"),
    ("GPU KV cache size", "warming"),
    ("CPU KV cache size", "warming"),
    ("init engine", "warming"),
    ("Application startup complete", "warming"),
)

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class VllmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`engine_options` of vLLM. What is None is chosen for the machine.

    `threads`: cores one replica computes on (CPU). `kv_cache_gib`: memory for keys and values (CPU).
    `chat_template`: a file, for bases that bring none.
    """

    dtype: str | None = None
    max_model_len: _Positive | None = None
    max_num_seqs: _Positive | None = None
    enforce_eager: bool | None = None
    threads: _Positive | None = None
    kv_cache_gib: _Positive | None = None
    gpu_memory_utilization: _Share | None = None
    quantization: str | None = None
    chat_template: str | None = None
    seed: int | None = None


class VllmDriver:
    """vLLM's OpenAI server with our gate in front of it, bound to loopback."""

    def command(self, spec: ReplicaSpec, port: int, python: Path, data_dir: Path) -> Launch:
        group = spec.group
        chosen = options(group.engine_options, VllmOptions, "vllm")
        on_cpu = group.gpu_type == "cpu"
        model, revision = model_argument(group.model.source)
        argv = [str(python), "-m", CPU_SERVER if on_cpu else SERVER]
        argv += ["--host", spec.host, "--port", str(port), "--model", model]
        argv += ["--served-model-name", group.model.name]
        argv += ["--download-dir", str(data_dir / "cache" / "models"), "--middleware", GATE]
        argv += ["--disable-uvicorn-access-log"]
        argv += [] if revision is None else ["--revision", revision]
        argv += _lora_arguments(spec)
        argv += _tuning_arguments(chosen, on_cpu, group.gpu_count)
        return Launch(tuple(argv), _environment(spec, chosen, on_cpu, data_dir))

    def stage(self, line: str) -> Stage | None:
        return next((stage for mark, stage in _STAGES if mark in line), None)


def lora_rank(max_rank: int) -> int:
    """The smallest `--max-lora-rank` vLLM takes that holds `max_rank`. Raises `InvalidRequestError`."""
    for rank in LORA_RANKS:
        if rank >= max_rank:
            return rank
    raise InvalidRequestError(
        f"max_rank {max_rank} is over vLLM's limit of {LORA_RANKS[-1]}.", param="lora.max_rank"
    )


def _lora_arguments(spec: ReplicaSpec) -> list[str]:
    lora = spec.group.lora
    if not lora.enabled:
        return []
    room = slots(spec)
    return [
        "--enable-lora",
        *("--max-loras", str(min(lora.max_active or room, room))),
        *("--max-cpu-loras", str(room)),
        *("--max-lora-rank", str(lora_rank(lora.max_rank))),
    ]


def _tuning_arguments(chosen: VllmOptions, on_cpu: bool, gpu_count: int) -> list[str]:
    values: dict[str, Any] = {
        "--dtype": chosen.dtype or (_cpu_dtype() if on_cpu else None),
        "--max-model-len": chosen.max_model_len or "auto",
        "--max-num-seqs": chosen.max_num_seqs or (64 if on_cpu else None),
        "--gpu-memory-utilization": None if on_cpu else chosen.gpu_memory_utilization,
        "--tensor-parallel-size": gpu_count if not on_cpu and gpu_count > 1 else None,
        "--quantization": chosen.quantization,
        "--chat-template": chosen.chat_template,
        "--seed": chosen.seed,
    }
    argv = [text for name, value in values.items() if value is not None for text in (name, str(value))]
    eager = on_cpu if chosen.enforce_eager is None else chosen.enforce_eager
    return [*argv, "--enforce-eager"] if eager else argv


def _environment(spec: ReplicaSpec, chosen: VllmOptions, on_cpu: bool, data_dir: Path) -> dict[str, str]:
    own = {
        "PYTHONPATH": str(PLUGIN),
        # vLLM renames its processes: without this the data directory would not be in their arguments.
        "VLLM_PROCESS_NAME_PREFIX": f"vllm --data-dir {data_dir} {spec.id}",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if on_cpu:
        # Binding would put every replica of this machine on the same cores.
        own["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        own["OMP_NUM_THREADS"] = str(
            chosen.threads or max(1, (os.cpu_count() or 1) // max(1, spec.group.replicas))
        )
        # How often an idle thread looks for work before it sleeps, some 0.1 ms in all. Thousands of regions in a step each
        # wake sleepers, at half the speed; threads that spin for long take the cores of whoever would let them go on.
        if "OMP_WAIT_POLICY" not in os.environ:
            own["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "20000")
        # One process for the engine core and its only worker: every process imports all of torch.
        own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if chosen.enforce_eager is not False:
            # A few small functions would be compiled all the same: that takes seconds and a C++ compiler.
            own["TORCHDYNAMO_DISABLE"] = "1"
        own["VLLM_CPU_KVCACHE_SPACE"] = str(chosen.kv_cache_gib or 1)
    return environment(spec, os.environ, **own)


def _cpu_dtype() -> str:
    """Half-precision only where the processor computes with it; emulated, it is several times slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()) else "float32"
