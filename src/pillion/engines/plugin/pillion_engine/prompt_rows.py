"""Log-probabilities of prompts, where each row of logits is a token of a prompt.

vLLM computes them one request at a time, through the same output layer as the tokens it samples, whose rows are
one per request. Told nothing else, an adapter of that layer would be applied by the wrong rows.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from .cpu_lora import GroupedLora

Method = Callable[[Any, torch.Tensor, dict[str, int]], Any]


class PromptRows:
    """Hidden states of a step [tokens, width]. Whoever takes some, has the LoRA operators follow."""

    def __init__(self, hidden: torch.Tensor, operators: list[GroupedLora]):
        self._hidden = hidden
        self._operators = operators

    def __getitem__(self, rows: slice) -> torch.Tensor:
        for operators in self._operators:
            operators.logits_are_of_tokens(rows)
        return self._hidden[rows]


def follow_prompts() -> None:
    """Wraps the model runner's method that computes them. Safe to call more than once."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    method: Method = GPUModelRunner._get_prompt_logprobs_dict
    if not hasattr(method, "__wrapped__"):
        GPUModelRunner._get_prompt_logprobs_dict = _following(method)


def _following(method: Method) -> Method:
    @wraps(method)
    def with_rows(runner: Any, hidden: torch.Tensor, scheduled: dict[str, int]) -> Any:
        if not runner.lora_config or not runner.num_prompt_logprobs:
            return method(runner, hidden, scheduled)
        mapping = runner.lora_manager._adapter_manager.punica_wrapper_mapping
        operators = list(mapping.values())
        rows: Any = PromptRows(hidden, operators)
        try:
            return method(runner, rows, scheduled)
        finally:
            for each in operators:
                each.logits_are_of_prompts()

    return with_rows
