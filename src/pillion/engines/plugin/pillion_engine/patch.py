"""What vLLM runs in each of its processes at their start (entry point group `vllm.general_plugins`).

On CPUs it puts `GroupedLora` in the place of vLLM's own LoRA operators, where it knows them by their source.
Where it does not, it changes nothing and says so; the gate then refuses requests for the base.
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .port import LoraPath

log = logging.getLogger("vllm.pillion")

CHECKED_VERSIONS = ("0.32.0",)
# Of each file, or method in one, that is replaced or calls back: the sources checked (sha256).
RECOGNISED: dict[str, frozenset[str]] = {
    "lora/ops/torch_ops/lora_ops.py": frozenset(
        {"33bc2aca729ebc379e1725c3c1ca870e70aa3b278f0ad3d2a621e6ec8ee99c20"}
    ),
    "lora/punica_wrapper/punica_base.py": frozenset(
        {"1fec4fd96e8c6a266176b198cf18a7f81400eefcf190c52da2b313b3b535f7eb"}
    ),
    "lora/punica_wrapper/punica_cpu.py": frozenset(
        {"d2ca28b31743f59a4a5a7c45449cf0f71d3019b842d551dee6cb7e7af53b02ee"}
    ),
    "lora/punica_wrapper/utils.py": frozenset(
        {"aa57be275f67313eb0f8d2ec193ce6fcc2d3516d82c2be49d76b8a55c10c295f"}
    ),
    "lora/layers/base_linear.py": frozenset(
        {"61b1a60e09a2bc4fba4fa2d0206a74bede3398ff992cfed6733ab063e85a974b"}
    ),
    "lora/layers/classifier.py": frozenset(
        {"e5ae94b1c1876deb99aadf069d0a0105cedac8eb7e9432eb135a2d9592d2dcf3"}
    ),
    "lora/layers/column_parallel_linear.py": frozenset(
        {"cb0b0d33ba8ccb76e8ce7eff5c0467b548da4af2325a85cf70f1f9c45280e39a"}
    ),
    "lora/layers/logits_processor.py": frozenset(
        {"a0bfacd6603b855071cabf29cf0b4edf1e2b598586e45043ccb5338492d8870c"}
    ),
    "lora/layers/replicated_linear.py": frozenset(
        {"08aae9600d9c68a26a3869d91b195dab8db556f352cad8affc52c9b0db666632"}
    ),
    "lora/layers/row_parallel_linear.py": frozenset(
        {"9ede1b9493cc6e31236f9303859a2def894841a089125d07cdb389c4fae6608a"}
    ),
    "lora/layers/vocab_parallel_embedding.py": frozenset(
        {"0149f170d227636df382e0fa7680828ed668b8220be1186b5d22b8478212f418"}
    ),
    "lora/layers/base.py": frozenset({"112fea061687e2eb95880dc1014b0b18291354366fd869da395ee443e5b9f08a"}),
    "lora/model_manager.py:activate_adapter": frozenset(
        {"cd365707e9437960402168b0c42582eb7fdd409d31f37240fb643ef6704314e5"}
    ),
    "lora/model_manager.py:_deactivate_adapter": frozenset(
        {"f80fbf43d4d6456c15075a8b8c54de85042e10e222eb618112aa4a78f18ef674"}
    ),
    "v1/worker/gpu_model_runner.py:_get_prompt_logprobs_dict": frozenset(
        {"da93cf002defeb6b656087a139b589f09bf0bde6d4883af6196956ca62f3f2c6"}
    ),
}
GROUPED = "pillion_engine.cpu_lora.GroupedLora"


@dataclass(frozen=True)
class Decision:
    """How LoRA is computed in this environment, and if vLLM's own way is kept on a CPU, why."""

    lora: LoraPath
    reason: str | None = None


def register() -> None:
    """Takes the place of the CPU platform's LoRA operators. Safe to call more than once."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    decision = decide(True, _root())
    platform: Any = type(current_platform)
    stock = platform.get_punica_wrapper

    def get_punica_wrapper(cls: object) -> str:
        # Asked once, in a worker that is about to set up LoRA.
        lora = _set_up(decision)
        return GROUPED if lora == "grouped" else str(stock())

    platform.get_punica_wrapper = classmethod(get_punica_wrapper)


def here() -> Decision:
    """What `register` decides in this environment. The same in every process of an engine."""
    from vllm.platforms import current_platform

    return decide(bool(current_platform.is_cpu()), _root())


def decide(cpu: bool, root: Path) -> Decision:
    """Whether the vLLM whose package lies at `root` is one whose CPU LoRA may be replaced."""
    if not cpu:
        return Decision("native")
    for name, known in RECOGNISED.items():
        if hashlib.sha256(_source(root, name)).hexdigest() not in known:
            versions = ", ".join(CHECKED_VERSIONS)
            return Decision("refused", f"vllm/{name} is not as in the versions checked ({versions})")
    return Decision("grouped")


def _source(root: Path, name: str) -> bytes:
    """What `name` holds, a file or `file:method`. Empty where there is no such thing."""
    file, _, method = name.partition(":")
    path = root / file
    content = path.read_bytes() if path.is_file() else b""
    if not method:
        return content
    ends = rb"(?=^    (?:def|async def|@)|^\S|\Z)"
    found = re.search(rb"^    def " + method.encode() + rb"\(.*?" + ends, content, re.MULTILINE | re.DOTALL)
    return found[0] if found else b""


def _root() -> Path:
    import vllm

    return Path(vllm.__file__).parent


def _set_up(decision: Decision) -> LoraPath:
    """Finishes the replacement in a worker, and lets the gate ask the worker what it did."""
    from vllm.config import get_current_vllm_config
    from vllm.v1.worker.worker_base import WorkerBase

    if decision.lora == "grouped" and get_current_vllm_config().use_v2_model_runner:
        decision = Decision("refused", "model runner V2 was not checked; set VLLM_USE_V2_MODEL_RUNNER=0")
    if decision.lora == "grouped":
        from .prompt_rows import follow_prompts
        from .slot_weights import watch

        follow_prompts()
        watch()
    # The gate, in another process, asks by `collective_rpc`.
    WorkerBase.pillion_lora_path = lambda _self: (decision.lora, decision.reason)
    log.info(
        "Pillion: LoRA on this CPU is %s%s", decision.lora, f": {decision.reason}" * bool(decision.reason)
    )
    return decision.lora
