"""Completions that say one thing several times: which token is a copy of which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.core.algebra.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 2
"""Tokens by which copies may be unequal in sum, as the first may be tokenised apart from what stands before it."""


def copied(targets: Tensor, mask: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """[S, T] 1 on covered tokens that copy the one a period earlier, and [S] the periods, in tokens.

    `copies` [S] says how often a completion says its thing; 0: once, its period is 0 and it has no copied token. The
    last covered token ends the text and belongs to no copy. Raises ValueError where the tokens show no such period.
    """
    periods = torch.zeros_like(copies)
    marks = torch.zeros_like(mask)
    for row in torch.nonzero(copies > 0)[:, 0].tolist():
        n, times = int(mask[row].sum()) - 1, int(copies[row])
        ids = targets[row, :n]
        near = [d for d in range(max(1, (n - SLACK) // times), (n + SLACK) // times + 1) if abs(n - times * d) <= SLACK]
        for d in sorted(near, key=lambda d: abs(n - times * d)):
            if torch.equal(ids[n - (times - 1) * d + d :], ids[n - (times - 1) * d : n - d]):
                periods[row] = d
                marks[row, d:n] = (ids[d:] == ids[:-d]).to(marks.dtype)
                break
        else:
            raise ValueError(
                f"a completion is to be {times} copies of one text, and its {n} tokens do not repeat: build them with "
                "`repeated`, with a separator at which the policy's tokenizer parts words"
            )
    return marks * mask, periods


def a_period_earlier(values: Tensor, periods: Tensor) -> Tensor:
    """[B, T] the value of the token that each copies, for periods [B]; what has none gets that of the first token."""
    places = torch.arange(values.shape[1], device=values.device)[None] - periods[:, None]
    return values.gather(1, places.clamp(min=0))
