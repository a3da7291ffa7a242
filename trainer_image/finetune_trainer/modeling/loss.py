"""The training loss: cross entropy summed over supervised tokens, with the output layer on their positions only.

The output layer is the most expensive part of a small model with a large vocabulary, and prompts do not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune_trainer.modeling import families
from finetune_trainer.modeling.attention import Segments, flash_kernel
from finetune_trainer.modeling.head_loss import CHUNK_BYTES, cross_entropy, head_loss, plain_slope
from finetune_trainer.modeling.packed_families import hidden_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.data.batching import Batch

    Agree = Callable[[torch.Tensor], torch.Tensor]


class SupervisedLoss(nn.Module):
    """A causal language model with its loss as one module, so that DDP and FSDP see one forward pass."""

    def __init__(self, model: Any, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__()
        self.model: Any = model
        self.chunk_bytes = chunk_bytes
        self.slope = plain_slope
        """Computes loss and gradient of logits; it may be compiled."""
        self.kernel_on = flash_kernel
        """Finds the kernel for packed rows on a device."""
        self.whole_logits = not families.has_plain_head(model)
        self.positions = families.takes_positions(model)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Sum of the cross entropy over the supervised tokens of the batch: a scalar, float32."""
        model = families.unwrapped(self.model)
        if batch.starts is None:
            extra: dict[str, Any] = {"attention_mask": batch.attention_mask}
            if batch.position_ids is not None and self.positions:
                extra["position_ids"] = batch.position_ids
            if self.whole_logits:
                logits = self.model(input_ids=batch.input_ids, use_cache=False, **extra).logits
                return cross_entropy(logits.flatten(0, 1).index_select(0, batch.places), batch.targets)
            hidden = model.base_model(input_ids=batch.input_ids, use_cache=False, **extra)[0]
        else:
            segments = Segments(batch.packed, batch.starts, batch.longest, self.kernel_on(batch.input_ids.device))
            hidden = hidden_states(model, batch.input_ids, batch.position_ids, segments)
        supervised = hidden.flatten(0, 1).index_select(0, batch.places)
        if self.whole_logits:
            return cross_entropy(model.get_output_embeddings()(supervised), batch.targets)
        return head_loss(model.get_output_embeddings(), supervised, batch.targets, self.chunk_bytes, self.slope)

    def logits(self, input_ids: torch.Tensor, last: int) -> torch.Tensor:
        """Logits [T, V] of the last positions of one row [1, N], by the whole forward pass."""
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits[0, -last:]

    def generate(
        self, input_ids: torch.Tensor, mask: torch.Tensor, stops: torch.Tensor, limit: int, agree: Agree
    ) -> torch.Tensor:
        """Answer prompts greedily, with the most likely token at each position.

        Args:
            input_ids: [B, T], prompts that are padded on the left.
            mask: [B, T], int64: 0 where there is padding.
            stops: [S], tokens that end an answer.
            limit: tokens of the longest answer.
            agree: makes the chosen tokens [B] the same on all participating ranks; negative ones end all answers here.

        Returns:
            [B, up to limit]; tokens after the first stop of a row do not belong to its answer.
        """
        answers = input_ids[:, :0]
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        positions, cache = (mask.cumsum(dim=1) - 1).clamp(min=0), None
        while answers.shape[1] < limit and not ended.all():
            extra = {"position_ids": positions} if self.positions else {}
            logits, cache = self._next(input_ids, {"attention_mask": mask, "past_key_values": cache, "use_cache": True, **extra})
            input_ids = agree(logits.argmax(dim=-1))[:, None]
            if bool(input_ids[0] < 0):
                break
            answers = torch.cat([answers, input_ids], dim=1)
            ended |= torch.isin(input_ids[:, 0], stops)
            mask, positions = torch.cat([mask, torch.ones_like(input_ids)], dim=1), positions[:, -1:] + 1
        return answers

    def _next(self, input_ids: torch.Tensor, options: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Logits [B, V] of the next tokens, and the cache of keys and values."""
        if self.whole_logits:
            out = self.model(input_ids=input_ids, **options)
            return out.logits[:, -1], out.past_key_values
        model = families.unwrapped(self.model)
        out = model.base_model(input_ids=input_ids, **options)
        return model.get_output_embeddings()(out.last_hidden_state[:, -1]), out.past_key_values
