"""vLLM's LoRA on CPUs, with rows grouped by adapter.

Stock operators index the stacked adapters with each row's slot. A row of the base carries slot -1, which
Python takes for the last one, so the base is answered with another adapter's weights as soon as one batch
holds both. They also copy a whole adapter for every row. Here base rows are left out, and nothing is copied.

vLLM runs LoRA on CPUs without a compiler (`CpuPlatform.check_and_update_config`), so plain Python is in
place; under a tracer the operators raise rather than have one step's groups baked in.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from .grouped import NO_ROWS, Groups, add_low_rank, expand, group_rows, set_full, shrink

Stacked = tuple[torch.Tensor, ...]


class GroupedLora(PunicaWrapperCPU):  # type: ignore[misc]
    """Replaces `PunicaWrapperCPU`. Shapes are those of the methods it overrides."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens: Groups = NO_ROWS
        self._prompts: Groups = NO_ROWS
        self._logits: Groups = NO_ROWS

    def update_metadata(
        self,
        mapping: Any,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Groups the rows of the next step, and those whose logits are wanted."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.is_prefill = mapping.is_prefill
        self._tokens = group_rows(self.token_lora_indices)
        self._logits = self._prompts = group_rows(self.sampler_indices)

    def logits_are_of_tokens(self, rows: slice) -> None:
        """The next logits are of these tokens of the step, not of one token per request."""
        self._logits = group_rows(self.token_lora_indices[rows])

    def logits_are_of_prompts(self) -> None:
        """Takes back `logits_are_of_tokens`."""
        self._logits = self._prompts

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacked,
        lora_b_stacked: Stacked,
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: Stacked | None = None,
        **kwargs: Any,
    ) -> None:
        """Linear, merged and row-parallel layers. Stock ignores `add_inputs` here; so does this."""
        if self._tokens.blocks:
            y, x = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
            add_low_rank(y, x, self._tokens, lora_a_stacked, lora_b_stacked, output_slices, scale=scale)

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`x` holds each token's row of its adapter's A."""
        if self._tokens.blocks:
            width = min(y.shape[-1], lora_b_stacked.shape[2])
            expand(y, x, self._tokens, lora_b_stacked, width, add=add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """One row per request, or as told; the vocabulary may be padded on either side."""
        if self._logits.blocks:
            y, x = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
            width = min(y.shape[-1], lora_b_stacked.shape[2])
            add_low_rank(y, x, self._logits, (lora_a_stacked,), (lora_b_stacked,), (width,), scale=scale)

    def apply_lora_full_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weight_stacked: torch.Tensor,
        bias_stacked: torch.Tensor,
        module_enabled: torch.Tensor,
    ) -> None:
        """Classification heads that an adapter brings whole."""
        set_full(y, x, self._prompts, weight_stacked, bias_stacked, module_enabled)

    def add_shrink(
        self,
        y: Stacked | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacked,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """First half of a sharded layer."""
        x = x.reshape(-1, x.shape[-1])
        for low, a_stacked in zip(y, lora_a_stacked, strict=True):
            shrink(low, x, self._tokens, a_stacked, scale)

    def add_expand(
        self,
        y: torch.Tensor,
        x: Stacked | torch.Tensor,
        lora_b_stacked: Stacked,
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Second half of a sharded layer."""
        y = y.view(-1, y.shape[-1])
        offset = offset_start
        for low, b_stacked, width in zip(x, lora_b_stacked, output_slices, strict=True):
            expand(y, low, self._tokens, b_stacked, width, offset=offset, add=add_inputs)
            offset += width
