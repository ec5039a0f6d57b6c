"""The policy in training looked at between its steps: what it would write, and how sure it is, without gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from strop.core.plugin import Config, Mark
from strop.core.trainer.batches import Inputs
from strop.core.trainer.corrupt import Corrupter
from strop.core.trainer.logps import TokenLogps
from strop.core.trainer.loss import EntropyOf


def corrupter(
    mark: Mark, settings: Config, policy: TokenLogps, tokenizer: Any, *, seed: int, bfloat16: bool, device: str
) -> Corrupter | None:
    """What replaces input tokens, where the objective's mark asks for it."""
    corrupts = mark.corrupts
    if corrupts is None:
        return None

    def best_of(batch: Inputs) -> Tensor:
        with _looked_at(policy, bfloat16, device):
            return policy.best(batch.ids, batch.row, batch.position)

    return Corrupter(lambda progress: corrupts(settings, progress), tokenizer, best_of, seed, device)


def entropy_of(policy: TokenLogps, *, bfloat16: bool, device: str) -> EntropyOf:
    """Of the policy's distribution at each target."""
    seen = TokenLogps(policy.model, entropy=True)

    def entropy(batch: Inputs) -> Tensor:
        with _looked_at(seen, bfloat16, device):
            found = seen(batch.ids, batch.row, batch.position, batch.target).entropy
        assert isinstance(found, Tensor)
        return found

    return entropy


@contextmanager
def _looked_at(policy: TokenLogps, bfloat16: bool, device: str) -> Iterator[None]:
    """No gradient, and no dropout."""
    policy.model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=bfloat16):
            yield
    finally:
        policy.model.train()
