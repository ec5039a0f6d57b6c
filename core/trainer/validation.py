"""Early stop: some examples are held back, and training ends when the loss on them no longer falls.

What is saved are the parameters of the best look, not the last ones. Whole prompts are held back, so that nothing of
them is trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strop.core.seeds import derive
from strop.core.trainer.batches import Step
from strop.core.trainer.encode import Item
from strop.core.trainer.ranks import like, whole
from strop.storage.errors import StageError


@dataclass(slots=True)
class Watch:
    """The examples held back, and how training has fared on them so far."""

    step: Step
    """All of them, as one step."""
    every: int
    """Optimiser steps between looks."""
    patience: int
    best: float = math.inf
    since: int = 0
    """Looks since the best one."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """The parameters of the best look."""

    @property
    def over(self) -> bool:
        """Whether training ends."""
        return self.since >= self.patience

    def saw(self, loss: float, trained: Mapping[str, Tensor]) -> None:
        """Take note of a look."""
        if loss < self.best:
            self.best, self.since = loss, 0
            self.kept = {name: p.detach().clone() for name, p in trained.items()}
        else:
            self.since += 1

    def put_back(self, trained: Mapping[str, Tensor]) -> None:
        """Give the policy the parameters of the best look."""
        with torch.no_grad():
            for name, values in self.kept.items():
                trained[name].copy_(values)

    def state(self) -> dict[str, Any]:
        """For the trainer's checkpoint; every process must ask for it."""
        return {
            "best": self.best,
            "since": self.since,
            "kept": {name: whole(values) for name, values in self.kept.items()},
        }

    def restore(self, state: Mapping[str, Any], trained: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.best, self.since = state["best"], state["since"]
        self.kept = {name: like(values, trained[name]) for name, values in state["kept"].items()}


def held_back(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """The items to train on and those to look at: about that share of them, all of a prompt or none, groups whole.

    Raises StageError where one of the two would be empty.
    """
    first: dict[int, bytes] = {}
    keys = []
    for item in items:
        prompt = bytes(item.sequences[0].ids[: item.sequences[0].prompt_length])
        keys.append(prompt if item.group_id < 0 else first.setdefault(item.group_id, prompt))
    sizes = Counter(keys)
    names = sorted(sizes)
    chosen: set[bytes] = set()
    count = 0
    for i in np.random.default_rng(derive(seed, "validation")).permutation(len(names)):
        if count >= share * len(items):
            break
        chosen.add(names[i])
        count += sizes[names[i]]
    if not 0 < count < len(items):
        raise StageError(
            f"train.validation.share {share} of {len(items)} examples of {len(names)} prompts leaves none to "
            f"{'train on' if count else 'look at'}: change the share, or leave validation out"
        )
    parts: tuple[list[Item], list[Item]] = [], []
    for item, key in zip(items, keys, strict=True):
        parts[key in chosen].append(item)
    return parts
