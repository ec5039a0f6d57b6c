"""A model that gives one number a token: a language model's hidden states under a linear head of their own.

A token's number is read where the token is predicted from, as its log-probability is: it says how things stand before
it. The output head over the vocabulary is left alone, in training and in the saved model, which so stays a language
model with the head in a folder beside it.

Source: Lyu et al. 2025, 2502.06781 (OREAL), and its code, which reads there too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from strop.core.trainer.batches import Inputs, Step, inputs
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.logps import Reader
from strop.core.trainer.objective import Loss, ScoredTokens
from strop.core.trainer.ranks import ALONE, Ranks
from strop.core.trainer.token_head import HEADS, TokenHead, load_head

NAME = "outcome"
"""Of the head, in the model's directory."""


class TokenScores(nn.Module):
    """A causal language model and its head."""

    def __init__(self, model: Any, head: TokenHead) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, batch: Inputs) -> Tensor:
        """[N] float32, one number for each of the batch's targets."""
        positions = {} if batch.positions is None else {"position_ids": batch.positions}
        found = self.model.get_decoder()(input_ids=batch.ids, use_cache=False, **positions)
        scores: Tensor = self.head(found.last_hidden_state.flatten(0, 1)[batch.at])
        return scores


@dataclass(frozen=True, slots=True)
class TokenReader:
    """What stands where an objective without a token head has the `Reader` of a policy."""

    policy: TokenScores
    device: str
    bfloat16: bool = False
    packed: bool = False
    ranks: Ranks = ALONE

    def numbers(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B, T] zero where the mask is zero."""
        return self._read(inputs(sequences, self.device, packed=self.packed))

    def means(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B] over each one's covered tokens."""
        batch = inputs(sequences, self.device, packed=self.packed)
        return self._read(batch).sum(1) / batch.mask.sum(1).clamp(min=1)

    def loss(
        self,
        members: Sequence[int],
        items: Sequence[Item] | Mapping[int, Item],
        step: Step,
        objective: Callable[[Any], Loss],
    ) -> Loss:
        """The objective's loss of one micro-batch, the gradient still attached."""
        chosen = [items[i] for i in members]
        batch = inputs([item.sequences[0] for item in chosen], self.device, packed=self.packed)

        def each(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        return objective(
            ScoredTokens(
                scores=self._read(batch),
                step_rewards=each([items[i].reward for micro in step.micro for i in micro]),
                mask=batch.mask,
                rewards=each([item.reward for item in chosen]),
                weights=each([item.weight for item in chosen]),
                step_sequences=step.sequences,
            )
        )

    def _read(self, batch: Inputs) -> Tensor:
        with torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.bfloat16):
            scores: Tensor = self.policy(batch)
        return scores.new_zeros(batch.mask.shape).index_put((batch.row, batch.slot), scores)


def token_reader(read: Reader, directory: Path) -> TokenReader:
    """Reads the model that `read` reads through the head in its directory; a fresh head where there is none."""
    model = read.policy.model
    return TokenReader(
        TokenScores(model, load_head(directory, NAME, model)), read.device, read.bfloat16, read.packed, read.ranks
    )


def has_head(directory: Path) -> bool:
    """Whether there is one in the directory."""
    return (directory / HEADS / f"{NAME}.safetensors").is_file()


def freeze_output(model: Any) -> None:
    """Nothing of the vocabulary's head is trained, unless the embeddings share its weights."""
    output, given = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is not given.weight:
        output.requires_grad_(False)
