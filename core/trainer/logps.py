"""Log-probabilities of target tokens without a [tokens, vocabulary] matrix for the whole batch.

The decoder runs once over the batch; the output head runs on target positions alone, in chunks that are recomputed
in the backward pass where the vocabulary is large. A model whose head does more than a matrix product and the scalings
known here is found out at the start, by comparison with its own logits, and goes through its own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from strop.core.trainer.batches import Inputs, inputs
from strop.core.trainer.encode import Encoded, IntArray
from strop.core.trainer.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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

    def forward(self, batch: Inputs) -> Predicted:
        """Of the batch's N targets."""
        found = self._picked(batch)
        return Predicted(found[0], found[1] if self.entropy else None)

    def _picked(self, batch: Inputs) -> Tensor:
        """[1 or 2, N]"""
        if not self.split:
            return self._pick(self._own_logits(batch), batch.target)
        pieces = self._pieces(batch)
        if len(pieces) == 1:
            return self._head(*pieces[0])
        if not torch.is_grad_enabled():
            return torch.cat([self._head(*piece) for piece in pieces], 1)
        return torch.cat([checkpoint(self._head, *piece, use_reentrant=False) for piece in pieces], 1)

    def best(self, batch: Inputs) -> Tensor:
        """[N] the likeliest token at the place of each target."""
        if not self.split:
            return self._own_logits(batch).argmax(-1)
        return torch.cat([self._logits(hidden).argmax(-1) for hidden, _ in self._pieces(batch)])

    def _own_logits(self, batch: Inputs) -> Tensor:
        logits: Tensor = self.model(**_reads(batch.ids, batch.positions)).logits
        return logits.flatten(0, 1)[batch.at]

    def _pieces(self, batch: Inputs) -> list[tuple[Tensor, Tensor]]:
        """Hidden states and targets, of as many targets at a time as may have their logits in memory."""
        hidden = self._hidden(batch.ids, batch.positions).flatten(0, 1)[batch.at]
        chunk = max(1, CHUNK_ELEMENTS // self._vocabulary())
        return list(zip(torch.split(hidden, chunk), torch.split(batch.target, chunk), strict=True))

    def _hidden(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.model.get_decoder()(**_reads(ids, positions)).last_hidden_state
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


def _reads(ids: Tensor, positions: Tensor | None) -> dict[str, Any]:
    given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    return given if positions is None else given | {"position_ids": positions}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy makes of B completions."""

    logps: Tensor
    """[B, T] log-probability of each target, zero where the mask is zero."""
    mask: Tensor
    """[B, T]"""
    entropy: Tensor | None
    """[B, T] likewise; None unless asked for."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A policy on its device, and how it reads sequences."""

    policy: TokenLogps
    device: str
    bfloat16: bool = False
    packed: bool = False
    """One after the other, without padding."""
    ranks: Ranks = ALONE

    def __call__(self, sequences: Sequence[Encoded]) -> Seen:
        """One forward pass over all of them."""
        batch = inputs(sequences, self.device, packed=self.packed)
        with self._precision():
            found: Predicted = self.policy(batch)
        entropy = None if found.entropy is None else _spread(found.entropy, batch)
        return Seen(_spread(found.logps, batch), batch.mask, entropy)

    def likeliest(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B, T] the likeliest token at each target, zero where the mask is zero."""
        batch = inputs(sequences, self.device, packed=self.packed)
        with self._precision():
            return _spread(self.policy.best(batch), batch)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.bfloat16)


def _spread(flat: Tensor, batch: Inputs) -> Tensor:
    """[B, T] from [N]."""
    return flat.new_zeros(batch.mask.shape).index_put((batch.row, batch.slot), flat)


def reads_packed_apart(read: Reader, ids: IntArray) -> bool:
    """Whether a sequence of these tokens is told the same when another one stands before it."""
    own = Encoded(ids, 1, np.ones(len(ids) - 1, dtype=np.float32))
    other = Encoded(ids[::-1], 1, own.mask)
    packed = replace(read, packed=True)
    with torch.no_grad():
        alone, behind = packed([own]).logps[0], packed([other, own]).logps[1]
    return bool(torch.allclose(alone, behind, atol=0.05 if read.bfloat16 else 1e-4))
