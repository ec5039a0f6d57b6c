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
from strop.core.trainer.token_head import TokenHead

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
    values: Tensor | None
    """[N] float32 of the head, read where each was chosen; None where there is none."""


class TokenLogps(nn.Module):
    """A causal language model that answers with log-probabilities instead of logits.

    `model` may carry adapters; its own decoder and head are called, so that those take part. `entropy` adds that of
    each target's distribution; `head` reads a number of its own from the same hidden states.
    """

    def __init__(self, model: PreTrainedModel, *, entropy: bool = False, head: TokenHead | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.entropy = entropy
        self.head = head
        self.split = self._head_is_plain()

    def forward(self, batch: Inputs) -> Predicted:
        """Of the batch's N targets."""
        hidden: Tensor | None = None
        if self.split:
            hidden = self._hidden_at(batch)
            found = self._picked(hidden, batch.target)
        else:
            own = self._own(batch, hidden=self.head is not None)
            found = self._pick(own.logits.flatten(0, 1)[batch.at], batch.target)
            if own.hidden_states is not None:
                hidden = own.hidden_states[-1].flatten(0, 1)[batch.at]
        values = None if self.head is None else self.head(hidden)
        return Predicted(found[0], found[1] if self.entropy else None, values)

    def _picked(self, hidden: Tensor, target: Tensor) -> Tensor:
        """[1 or 2, N]"""
        pieces = list(zip(self._pieces(hidden), self._pieces(target), strict=True))
        if len(pieces) == 1:
            return self._head(*pieces[0])
        if not torch.is_grad_enabled():
            return torch.cat([self._head(*piece) for piece in pieces], 1)
        return torch.cat([checkpoint(self._head, *piece, use_reentrant=False) for piece in pieces], 1)

    def best(self, batch: Inputs) -> Tensor:
        """[N] the likeliest token at the place of each target."""
        if not self.split:
            logits: Tensor = self._own(batch).logits
            return logits.flatten(0, 1)[batch.at].argmax(-1)
        return torch.cat([self._logits(hidden).argmax(-1) for hidden in self._pieces(self._hidden_at(batch))])

    def _own(self, batch: Inputs, *, hidden: bool = False) -> Any:
        return self.model(**_reads(batch.ids, batch.positions), output_hidden_states=hidden)

    def _hidden_at(self, batch: Inputs) -> Tensor:
        """[N, H] the last hidden states that the targets are chosen from."""
        return self._hidden(batch.ids, batch.positions).flatten(0, 1)[batch.at]

    def _pieces(self, values: Tensor) -> Sequence[Tensor]:
        """Of [N, ...], as many targets at a time as may have their logits in memory."""
        return torch.split(values, max(1, CHUNK_ELEMENTS // self._vocabulary()))

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
    values: Tensor | None
    """[B, T] likewise, of the head; None where there is none."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A policy on its device, and how it reads sequences."""

    policy: TokenLogps
    device: str
    bfloat16: bool = False
    packed: bool = False
    """One after the other, without padding."""
    ranks: Ranks = ALONE

    def numbers(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B, T] log-probability of each target, zero where the mask is zero."""
        return self(sequences).logps

    def __call__(self, sequences: Sequence[Encoded]) -> Seen:
        """One forward pass over all of them."""
        batch = inputs(sequences, self.device, packed=self.packed)
        with self._precision():
            found: Predicted = self.policy(batch)
        entropy, values = (None if some is None else _spread(some, batch) for some in (found.entropy, found.values))
        return Seen(_spread(found.logps, batch), batch.mask, entropy, values)

    def likeliest(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B, T] the likeliest token at each target, zero where the mask is zero."""
        batch = inputs(sequences, self.device, packed=self.packed)
        with self._precision():
            return _spread(self.policy.best(batch), batch)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.bfloat16)


@dataclass(frozen=True, slots=True)
class Values:
    """What the head of a reader's policy says of each target, in place of log-probabilities."""

    read: Reader

    @property
    def packed(self) -> bool:
        """As the reader."""
        return self.read.packed

    @property
    def ranks(self) -> Ranks:
        """As the reader."""
        return self.read.ranks

    def numbers(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B, T] zero where the mask is zero."""
        values = self.read(sequences).values
        assert values is not None, "the policy has a head"
        return values


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
