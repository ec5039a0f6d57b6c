"""Batches for objectives: the fixtures F1, F2 and F3 worked by hand, random ones, and their cut into micro-batches."""

import dataclasses

import pytest
import torch

from strop.core.trainer.objective import Loss, SequenceBatch, StepRows

F1_REWARDS = (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)
F1_GROUPS = (0, 0, 0, 0, 1, 1, 1, 1)
F1_LENGTHS = (3, 2, 4, 3, 2, 2, 3, 5)

F2_LOGPS = ((-0.5, -1.0, -0.2), (-1.2, -0.4, 0.0))
F2_OLD = ((-0.7, -0.9, -0.6), (-0.8, -0.5, 0.0))
F2_REFERENCE = ((-0.6, -1.1, -0.5), (-1.0, -0.6, 0.0))
F2_MASK = ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0))
"""Two sequences with advantages +1 and -1."""


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def sequences(
    logps=F2_LOGPS,
    mask=F2_MASK,
    *,
    rewards=None,
    groups=None,
    behaviour=None,
    old=None,
    reference=None,
    entropy=None,
    weights=None,
    strata=None,
    step_entropy=None,
    step_logps=None,
    targets=None,
    token_scores=None,
    values=None,
    old_values=None,
    progress=0.0,
    history=(),
) -> SequenceBatch:
    """A whole step in one micro-batch, in float64; `rewards` and `groups` a sequence, the rest [S, T]."""
    logps, mask = tensor(logps).clone().requires_grad_(), tensor(mask)
    n = len(mask)
    step = StepRows(
        mask=mask,
        weights=torch.ones(n, dtype=torch.float64) if weights is None else tensor(weights),
        rewards=torch.full((n,), torch.nan, dtype=torch.float64) if rewards is None else tensor(rewards),
        group_ids=torch.full((n,), -1) if groups is None else torch.as_tensor(groups),
        behaviour_logps=None if behaviour is None else tensor(behaviour),
        old_logps=None if old is None else tensor(old),
        reference_logps=None if reference is None else tensor(reference),
        old_values=None if old_values is None else tensor(old_values),
        strata=None if strata is None else torch.as_tensor(strata),
        entropy=None if step_entropy is None else tensor(step_entropy),
        logps=None if step_logps is None else tensor(step_logps),
        targets=None if targets is None else torch.as_tensor(targets),
        token_scores=None if token_scores is None else tensor(token_scores),
    )
    return SequenceBatch(
        logps=logps,
        mask=mask,
        weights=step.weights,
        step_tokens=float(mask.sum()),
        step_sequences=float(n),
        step=step,
        rows=torch.arange(n),
        entropy=None if entropy is None else tensor(entropy).clone().requires_grad_(),
        head_values=None if values is None else tensor(values).clone().requires_grad_(),
        progress=progress,
        history=history,
    )


def f2(**more) -> SequenceBatch:
    """F2 as two samples of one prompt with rewards 1 and -1, whose mean is 0: centred rewards are +1 and -1."""
    return sequences(**{"rewards": (1.0, -1.0), "groups": (0, 0), "behaviour": F2_OLD, "old": F2_OLD} | more)


def random_step(seed: int = 0, groups: int = 3, size: int = 4, width: int = 6) -> SequenceBatch:
    """A step of groups with mixed rewards 0 and 1, lengths 1 to `width` and every optional column."""
    rng = torch.Generator().manual_seed(seed)
    n = groups * size
    lengths = torch.randint(1, width + 1, (n,), generator=rng)
    mask = (torch.arange(width) < lengths[:, None]).double()
    rewards = (torch.rand(n, generator=rng) < 0.5).double()
    rewards[::size], rewards[1::size] = 1.0, 0.0

    def logps():
        return -torch.rand(n, width, generator=rng, dtype=torch.float64).mul(2) * mask

    return sequences(
        logps(), mask, rewards=rewards, groups=torch.arange(groups).repeat_interleave(size), behaviour=logps(),
        old=logps(), reference=logps(), entropy=-logps(), strata=torch.randint(0, 2, (n,), generator=rng),
        step_entropy=-logps(), values=-logps(), old_values=-logps(), token_scores=logps() - logps(),
    )  # fmt: skip


def micro_batches(batch: SequenceBatch, *sizes: int) -> list[SequenceBatch]:
    """The same step, cut."""
    assert sum(sizes) == len(batch.rows)
    parts = []
    for rows in torch.arange(len(batch.rows)).split(list(sizes)):
        width = int(batch.mask[rows].sum(1).max())
        parts.append(
            dataclasses.replace(
                batch,
                logps=batch.logps[rows, :width],
                mask=batch.mask[rows, :width],
                weights=batch.weights[rows],
                rows=rows,
                entropy=None if batch.entropy is None else batch.entropy[rows, :width],
                head_values=None if batch.head_values is None else batch.head_values[rows, :width],
            )
        )
    return parts


def gradient(objective, batch: SequenceBatch) -> torch.Tensor:
    """[S, T] of the loss by the log-probabilities."""
    (found,) = torch.autograd.grad(objective(batch).value, batch.logps)
    return found


def check_cuts(objective, batch: SequenceBatch | None = None) -> Loss:
    """The loss, its gradient and its metrics are the same in one micro-batch and in several of uneven size."""
    batch = random_step() if batch is None else batch
    whole, parts = objective(batch), [objective(part) for part in micro_batches(batch, 1, 4, len(batch.rows) - 5)]
    assert sum(part.value.item() for part in parts) == pytest.approx(whole.value.item(), abs=1e-9)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name] for part in parts) == pytest.approx(value, abs=1e-9), name
    (one,) = torch.autograd.grad(whole.value, batch.logps, retain_graph=True)
    (cut,) = torch.autograd.grad(sum(part.value for part in parts), batch.logps)
    torch.testing.assert_close(one, cut)
    assert ((one != 0) <= (batch.mask > 0)).all(), "a gradient where the mask is 0"
    return whole
