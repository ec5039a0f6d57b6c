"""Log-probabilities of given continuations, in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strop.plugins.engines._decode import Forward

_ELEMENTS = 1 << 25
"""Logits computed at a time: 128 MB in float32."""


def score(
    model: Forward, prompts: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], device: torch.device
) -> list[list[float]]:
    """Log-probability in nats of every token of each tail, after its prompt and the tokens before it."""
    found: list[list[float]] = [[] for _ in prompts]
    order = sorted((i for i in range(len(prompts)) if tails[i]), key=lambda i: len(prompts[i]) + len(tails[i]))
    vocabulary = 1
    while order:
        longest = len(prompts[order[-1]]) + len(tails[order[-1]])
        rows = max(1, _ELEMENTS // (longest * vocabulary)) if vocabulary > 1 else 1
        batch, order = order[-rows:], order[:-rows]
        whole = [[*prompts[i], *tails[i]] for i in batch]
        ids = torch.tensor([s + [0] * (longest - len(s)) for s in whole], device=device)
        logits = model.logits(ids)
        vocabulary = logits.shape[-1]
        logps = torch.log_softmax(logits[:, :-1].float(), -1).gather(2, ids[:, 1:, None])[..., 0].cpu()
        for i, row in zip(batch, logps.tolist(), strict=True):
            end = len(prompts[i]) + len(tails[i])
            found[i] = row[len(prompts[i]) - 1 : end - 1]
    return found
