"""Replaces input tokens of one optimiser step's completions, as the objective's mark asks (see `core/corruption.py`).

Which ones is drawn from the job's seed, the step and the example: neither the cut into micro-batches nor a kill changes
it. What frozen policies make of the examples is not touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strop.core.corruption import Corruption
from strop.core.seeds import derive
from strop.core.trainer.batches import Step
from strop.core.trainer.encode import Encoded, IntArray, Item
from strop.core.trainer.logps import Reader
from strop.core.trainer.look import likeliest
from strop.storage.errors import StageError


@dataclass(frozen=True, slots=True)
class Corrupter:
    """Made once a training."""

    wanted: Callable[[float], Corruption]
    """By the share of training done."""
    tokenizer: Any
    read: Reader
    """Asked for the policy's own tokens."""
    seed: int

    def step(self, items: Sequence[Item], step: Step, index: int, progress: float) -> dict[int, Item]:
        """The items of step `index`, by their place, with what the policy is to read of each."""
        corruption = self.wanted(progress)
        if corruption.share <= 0:
            return {i: items[i] for members in step.micro for i in members}
        found: dict[int, Item] = {}
        for members in step.micro:
            sides = [(i, s) for i in members for s in range(len(items[i].sequences))]
            sequences = [items[i].sequences[s] for i, s in sides]
            others = self._others(corruption, sequences)
            read = []
            for (i, s), sequence, other in zip(sides, sequences, others, strict=True):
                rng = np.random.default_rng(derive(self.seed, "corrupt", index, i, s))
                hit = (rng.random(len(sequence.mask)) < corruption.share) & (sequence.mask > 0)
                ids = sequence.ids.copy()
                ids[sequence.prompt_length :][hit] = other[hit]
                read.append(dataclasses.replace(sequence, read=ids))
            for (i, s), sequence in zip(sides, read, strict=True):
                item = found.get(i, items[i])
                kept = (*item.sequences[:s], sequence, *item.sequences[s + 1 :])
                found[i] = dataclasses.replace(item, sequences=kept)
        return found

    def _others(self, corruption: Corruption, sequences: Sequence[Encoded]) -> list[IntArray]:
        """[T] of each sequence: what may stand in a token's place."""
        if corruption.by == "mask":
            token = mask_token(self.tokenizer, corruption.token)
            return [np.full(len(sequence.mask), token, dtype=np.int64) for sequence in sequences]
        return likeliest(sequences, self.read)


def mask_token(tokenizer: Any, named: str | None) -> int:
    """Id of the token that stands for nothing. Raises StageError where the tokenizer has none of that name, or none."""
    if named is not None:
        found = tokenizer.get_vocab().get(named)
        if found is None:
            raise StageError(f"the policy's tokenizer has no token {named!r} to mask inputs with: name one it has")
        return int(found)
    for own in (tokenizer.mask_token_id, tokenizer.pad_token_id):
        if own is not None and own != tokenizer.eos_token_id:
            return int(own)
    raise StageError(
        "the policy's tokenizer has neither a mask token nor a padding of its own to mask inputs with: name one of its "
        "tokens that completions never have, as `token` of the objective"
    )
