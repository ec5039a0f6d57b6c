"""Batches of pairs: the fixture F3 worked by hand, random ones, and their cut into micro-batches."""

import dataclasses

import pytest
import torch

from strop.core.trainer.objective import Loss, PairBatch


def pairs(
    chosen=(-4.0,),
    rejected=(-6.0,),
    reference=((-4.5,), (-5.6,)),
    *,
    old=None,
    margins=None,
    weights=None,
    step=1.0,
    behind=None,
) -> PairBatch:
    """F3: sums over 5 and 8 tokens, spread evenly."""
    n = len(chosen)

    def spread(sums, length):
        return torch.tensor([[s / length] * length for s in sums], dtype=torch.float64)

    def policy(sums):
        return None if sums is None else (spread(sums[0], 5), spread(sums[1], 8))

    return PairBatch(
        chosen_logps=spread(chosen, 5).requires_grad_(),
        chosen_mask=torch.ones(n, 5, dtype=torch.float64),
        rejected_logps=spread(rejected, 8).requires_grad_(),
        rejected_mask=torch.ones(n, 8, dtype=torch.float64),
        weights=torch.ones(n, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64),
        margins=torch.full((n,), torch.nan, dtype=torch.float64)
        if margins is None
        else torch.tensor(margins, dtype=torch.float64),
        step_pairs=step,
        step_chosen_tokens=5.0 * step,
        reference_logps=policy(reference),
        old_logps=policy(old),
        behind=behind or {},
    )


def turned() -> PairBatch:
    """F3 with its sides swapped."""
    return pairs((-6.0,), (-4.0,), ((-5.6,), (-4.5,)))


def random_pairs(seed: int = 0, n: int = 7, width: int = 6, dtype: torch.dtype = torch.float64) -> PairBatch:
    """Pairs of 1 to `width` tokens a side, with weights, margins and both policies; noise lies under the masks."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=rng, dtype=dtype)

    masks = [(torch.arange(width) < torch.randint(1, width + 1, (n, 1), generator=rng)).to(dtype) for _ in range(2)]
    return PairBatch(
        chosen_logps=(-2 * rand(n, width)).requires_grad_(),
        chosen_mask=masks[0],
        rejected_logps=(-2 * rand(n, width)).requires_grad_(),
        rejected_mask=masks[1],
        weights=0.5 + rand(n),
        margins=rand(n),
        step_pairs=float(n),
        step_chosen_tokens=float(masks[0].sum()),
        reference_logps=(-2 * rand(n, width), -2 * rand(n, width)),
        old_logps=(-2 * rand(n, width), -2 * rand(n, width)),
        behind={name: (-2 * rand(n, width), -2 * rand(n, width)) for name in ("better", "worse")},
    )


def part(batch: PairBatch, rows: torch.Tensor) -> PairBatch:
    """A micro-batch of it."""
    changed = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if field.name.startswith("step_"):
            continue
        if isinstance(value, torch.Tensor):
            changed[field.name] = value[rows]
        elif isinstance(value, dict):
            changed[field.name] = {name: tuple(side[rows] for side in sides) for name, sides in value.items()}
        elif isinstance(value, tuple):
            changed[field.name] = tuple(side[rows] for side in value)
    return dataclasses.replace(batch, **changed)


def gradients(objective, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the loss by the log-probabilities of the chosen and of the rejected."""
    found = torch.autograd.grad(objective(batch).value, (batch.chosen_logps, batch.rejected_logps), allow_unused=True)
    return tuple(torch.zeros_like(batch.chosen_logps) if g is None else g for g in found)


def check_pair_cuts(objective, batch: PairBatch | None = None) -> Loss:
    """The loss, its gradient and its metrics are the same in one micro-batch and in several; none under the mask."""
    batch = random_pairs() if batch is None else batch
    parts = [part(batch, rows) for rows in torch.arange(len(batch.weights)).split([1, 4, len(batch.weights) - 5])]
    whole, losses = objective(batch), [objective(micro) for micro in parts]
    assert sum(loss.value.item() for loss in losses) == pytest.approx(whole.value.item(), abs=1e-9)
    for name, value in whole.metrics.items():
        assert sum(loss.metrics[name] for loss in losses) == pytest.approx(value, abs=1e-9), name
    sides = (batch.chosen_logps, batch.rejected_logps)
    one = torch.autograd.grad(whole.value, sides)
    cut = torch.autograd.grad(sum(loss.value for loss in losses), sides)
    for found, again, mask in zip(one, cut, (batch.chosen_mask, batch.rejected_mask), strict=True):
        torch.testing.assert_close(found, again)
        assert found.abs().sum() > 0
        assert ((found != 0) <= (mask > 0)).all(), "a gradient where the mask is 0"
    return whole
