from itertools import pairwise
from pathlib import Path

import pytest

from pillion.core.errors import InvalidRequestError
from pillion.core.replica import GroupSpec, LoraSpec, ModelSpec, ReplicaSpec
from pillion.engines.driver import PLUGIN, driver, model_argument, slots
from pillion.engines.vllm import lora_rank

PYTHON, DATA = Path("/env/bin/python"), Path("/data")


def spec(engine: str = "vllm", source: str = "path:/models/x", **changes: object) -> ReplicaSpec:
    lora = LoraSpec(enabled=True, max_adapters=4, max_rank=24)
    group = GroupSpec(1, "local", 2, ModelSpec("tiny", source), engine, **({"lora": lora} | changes))  # type: ignore[arg-type]
    return ReplicaSpec("r1-local-abcdef", group, "token", "infer", "engine", "file:///a", "/cache")


def arguments(wanted: ReplicaSpec) -> tuple[dict[str, str], dict[str, str]]:
    """Each option with what follows it, and the environment."""
    launch = driver(wanted.group.engine).command(wanted, 1234, PYTHON, DATA)
    argv = [*launch.argv, ""]
    return {a: b for a, b in pairwise(argv) if a.startswith("--")}, launch.env


def test_vllm_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLION_ADMIN_KEY", "pil_secret")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    argv, env = arguments(spec())
    assert argv["--host"] == "127.0.0.1"
    assert argv["--port"] == "1234"
    assert argv["--model"] == "/models/x"
    assert argv["--served-model-name"] == "tiny"
    assert argv["--max-loras"] == argv["--max-cpu-loras"] == "5"
    assert argv["--max-lora-rank"] == "32"
    assert argv["--middleware"] == "pillion_engine.vllm.VllmGate"
    assert argv["--download-dir"].startswith(str(DATA))
    assert "--enforce-eager" in argv
    assert (env["PILLION_INFER_KEY"], env["PILLION_AGENT_KEY"]) == ("infer", "engine")
    assert env["PILLION_ENGINE_SLOTS"] == "5"
    assert env["PYTHONPATH"] == str(PLUGIN)
    assert "PILLION_ADMIN_KEY" not in env
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in env
    assert not {"infer", "engine", "token"} & set(argv.values())


def test_vllm_on_gpus_and_from_the_hub() -> None:
    argv, env = arguments(
        spec(
            source="hf:org/model@abc",
            gpu_type="H100",
            gpu_count=2,
            engine_options={"gpu_memory_utilization": 0.8},
        )
    )
    assert argv["--model"] == "org/model"
    assert argv["--revision"] == "abc"
    assert argv["--tensor-parallel-size"] == "2"
    assert argv["--gpu-memory-utilization"] == "0.8"
    assert "--enforce-eager" not in argv
    assert "VLLM_CPU_KVCACHE_SPACE" not in env


def test_without_lora() -> None:
    wanted = spec(lora=LoraSpec())
    argv, _ = arguments(wanted)
    assert "--enable-lora" not in argv
    assert slots(wanted) == 0


def test_a_smaller_batch_of_adapters() -> None:
    argv, _ = arguments(spec(lora=LoraSpec(enabled=True, max_adapters=16, max_active=8)))
    assert (argv["--max-loras"], argv["--max-cpu-loras"]) == ("8", "17")


@pytest.mark.parametrize(
    ("rank", "taken"), [(1, 1), (2, 8), (8, 8), (64, 64), (65, 128), (300, 320), (512, 512)]
)
def test_ranks(rank: int, taken: int) -> None:
    assert lora_rank(rank) == taken


def test_a_rank_no_vllm_takes() -> None:
    with pytest.raises(InvalidRequestError, match="512"):
        lora_rank(513)


@pytest.mark.parametrize("engine", ["vllm", "sim"])
@pytest.mark.parametrize("options", [{"speed": 1}, {"max_model_len": 0}, {"max_model_len": "long"}])
def test_options_that_make_no_sense_are_named(engine: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        arguments(spec(engine, engine_options=options))


def test_unknown_engines_and_sources() -> None:
    with pytest.raises(InvalidRequestError, match="there are: sim, vllm"):
        driver("llama.cpp")
    with pytest.raises(InvalidRequestError, match="hf:<repo>"):
        model_argument("/models/x")


def test_the_sim() -> None:
    argv, env = arguments(spec("sim", engine_options={"tokens_per_s": 50}))
    assert argv["--data-dir"] == str(DATA)
    assert argv["--slots"] == "5"
    assert env["PILLION_AGENT_KEY"] == "engine"
    assert not {"infer", "engine", "token"} & set(argv.values())


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("INFO [cpu_model_runner.py:68] Starting to load model /x...", "loading"),
        ("Downloading weights of org/model", "pulling"),
        ("INFO Loading weights took 0.01 seconds", "warming"),
        ("Enforce eager set, disabling torch.compile", None),
        ("anything else", None),
    ],
)
def test_stages_of_vllm(line: str, stage: str | None) -> None:
    assert driver("vllm").stage(line) == stage
