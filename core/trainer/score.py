"""A model that gives one number a completion: a linear head on the hidden state of its last token.

It is transformers' own model for the classification of sequences with one label, so that a saved one loads anywhere.
The last token is found as that model finds it, as the last that is not the padding token: where a tokenizer pads with
its end of sequence, that is the token before the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strop.core.trainer.batches import Step
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.objective import Loss, ScoredPairs, ScoredSequences
from strop.core.trainer.policy import ADAPTER, load_model, quiet
from strop.core.trainer.ranks import ALONE, Ranks
from strop.storage.errors import StageError


def load_scored(
    directory: Path, tokenizer: Any, *, keep_dtype: bool = False, attention: str | None = None
) -> tuple[Any, torch.dtype]:
    """The model with a score head, in float32 unless its stored type is to be kept, and its stored type.

    A language model's directory gets a fresh head, drawn from torch's random state; adapters are merged.
    """
    from transformers import AutoModelForSequenceClassification as Auto

    with quiet():
        if (directory / ADAPTER).is_file():
            policy, stored = load_model(directory, keep_dtype=keep_dtype, attention=attention)
            policy.config.num_labels = 1
            model: Any = Auto.from_config(policy.config, dtype=policy.dtype)  # type: ignore[no-untyped-call]
            setattr(model, model.base_model_prefix, getattr(policy, policy.base_model_prefix))
        else:
            model = _from_pretrained(directory, attention)
            stored = model.dtype
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise StageError(
            f"the tokenizer in {directory} has neither pad_token nor eos_token: set one, to find the end by"
        )
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    return (model if keep_dtype else model.float()), stored


def _from_pretrained(directory: Path, attention: str | None) -> Any:
    """Without the warning that the head is new and the language model's own is not used: both are meant."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as module

    logging: Any = module
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            directory, num_labels=1, dtype="auto", attn_implementation=attention
        )
    finally:
        logging.set_verbosity(before)


class SequenceScores(nn.Module):
    """Scores of whole sequences."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, last: Tensor) -> Tensor:
        """[B] float32, of right-padded ids [B, L] whose score is read at `last` [B]."""
        hidden = getattr(self.model, self.model.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
        scores: Tensor = self.model.score(hidden[torch.arange(len(ids), device=ids.device), last])
        return scores.squeeze(-1).float()

    def of(self, sequences: Sequence[np.ndarray[Any, Any]], *, bfloat16: bool = False) -> Tensor:
        """[B] of token sequences."""
        pad = self.model.config.pad_token_id
        device = next(self.model.parameters()).device
        ids = np.full((len(sequences), max(map(len, sequences))), pad, dtype=np.int64)
        last = []
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            read = np.flatnonzero(sequence != pad)
            last.append(int(read[-1]) if len(read) else len(sequence) - 1)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            scores: Tensor = self(torch.from_numpy(ids).to(device), torch.tensor(last, device=device))
        return scores


@dataclass(frozen=True, slots=True)
class ScoreReader:
    """What stands where an objective without a score head has the `Reader` of a policy."""

    policy: SequenceScores
    device: str
    bfloat16: bool = False
    packed: bool = False
    """Never: the head is read at the end of each row."""
    ranks: Ranks = ALONE

    def __call__(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B]"""
        return self.policy.of([sequence.ids for sequence in sequences], bfloat16=self.bfloat16)


def scored_loss(
    members: Sequence[int],
    items: Sequence[Item] | Mapping[int, Item],
    step: Step,
    read: ScoreReader,
    objective: Callable[[Any], Loss],
) -> Loss:
    """The objective's loss of one micro-batch, the gradient still attached."""
    chosen = [items[i] for i in members]
    scores = read([sequence for side in zip(*(item.sequences for item in chosen), strict=True) for sequence in side])

    def each(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=scores.device)

    rewards, weights = each([item.reward for item in chosen]), each([item.weight for item in chosen])
    if len(chosen[0].sequences) == 1:
        return objective(ScoredSequences(scores, rewards, weights, step.sequences))
    n = len(chosen)
    margins = each([item.margin for item in chosen])
    return objective(ScoredPairs(scores[:n], scores[n:], weights, margins, rewards, step.sequences))
