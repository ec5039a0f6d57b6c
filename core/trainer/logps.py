"""Log-probabilities of target tokens without a [tokens, vocabulary] matrix for the whole batch.

The decoder runs once over the batch; the output head runs on target positions alone, in chunks that are recomputed
in the backward pass where the vocabulary is large. A model whose head does more than a matrix product and the scalings
known here is found out at the start, by comparison with its own logits, and goes through its own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from strop.core.trainer.batches import Inputs

CHUNK_ELEMENTS = 1 << 25
"""Logits computed at a time: 128 MB in float32."""
NEVER = -1e4
"""Stands in for the logarithm of 0, which times 0 would be no number."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the policy makes of N targets."""

    logps: Tensor
    """[N] float32 log-probability of each."""
    entropy: Tensor | None
    """[N] float32, in nats, of the distribution each was chosen from; None unless asked for."""


class TokenLogps(nn.Module):
    """A causal language model that answers with log-probabilities instead of logits.

    `model` may carry adapters; its own decoder and head are called, so that those take part. `entropy` adds that of
    each target's distribution.
    """

    def __init__(self, model: PreTrainedModel, *, entropy: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.entropy = entropy
        self.split = self._head_is_plain()

    def forward(self, ids: Tensor, row: Tensor, position: Tensor, target: Tensor) -> Predicted:
        """Of N targets; `row` and `position` say which place of ids [B, L] predicts each."""
        found = self._picked(ids, row, position, target)
        return Predicted(found[0], found[1] if self.entropy else None)

    def _picked(self, ids: Tensor, row: Tensor, position: Tensor, target: Tensor) -> Tensor:
        """[1 or 2, N]"""
        if not self.split:
            logits = self.model(input_ids=ids, use_cache=False).logits[row, position]
            return self._pick(logits, target)
        hidden = self._hidden(ids)[row, position]
        chunk = max(1, CHUNK_ELEMENTS // self._vocabulary())
        if len(target) <= chunk:
            return self._head(hidden, target)
        parts = []
        for start in range(0, len(target), chunk):
            piece = (hidden[start : start + chunk], target[start : start + chunk])
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._head, *piece, use_reentrant=False))
            else:
                parts.append(self._head(*piece))
        return torch.cat(parts, 1)

    def best(self, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """[N] the likeliest token after each of N places of ids [B, L]."""
        if not self.split:
            found: Tensor = self.model(input_ids=ids, use_cache=False).logits[row, position].argmax(-1)
            return found
        hidden = self._hidden(ids)[row, position]
        chunk = max(1, CHUNK_ELEMENTS // self._vocabulary())
        return torch.cat([self._logits(piece).argmax(-1) for piece in hidden.split(chunk)])

    def _hidden(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def _head(self, hidden: Tensor, target: Tensor) -> Tensor:
        return self._pick(self._logits(hidden), target)

    def _pick(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        logps = -F.cross_entropy(logits, target, reduction="none")
        if not self.entropy:
            return logps[None]
        distribution = F.log_softmax(logits, -1)
        return torch.stack([logps, -(distribution.exp() * distribution.clamp(min=NEVER)).sum(-1)])

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        config: Any = self.model.config.get_text_config()
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * factor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _vocabulary(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def _head_is_plain(self) -> bool:
        """Whether decoder and head, called apart, give the model's own logits."""
        was_training = self.model.training
        self.model.eval()
        try:
            device = next(self.model.parameters()).device
            ids = torch.arange(1, 9, device=device).remainder(self._vocabulary())[None]
            with torch.no_grad():
                own = self.model(input_ids=ids, use_cache=False).logits.float()
                return bool(torch.allclose(self._logits(self._hidden(ids)).float(), own, atol=1e-4, rtol=1e-3))
        except (AttributeError, TypeError):  # no such decoder or head
            return False
        finally:
            self.model.train(was_training)


def spread(flat: Tensor, batch: Inputs) -> Tensor:
    """[B, T] from [N]: each log-probability at its place, zero where the mask is zero."""
    return torch.zeros_like(batch.mask).index_put((batch.row, batch.slot), flat)
