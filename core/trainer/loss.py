"""From one micro-batch to its loss: log-probabilities under the policy, those of the reference, and the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strop.core.trainer.batches import Inputs, Step, inputs
from strop.core.trainer.encode import Item
from strop.core.trainer.logps import Predicted, spread
from strop.core.trainer.objective import Loss, PairBatch, SequenceBatch, StepRows
from strop.core.trainer.score import ScoresOf, scored_loss

LogpsOf = Callable[[Inputs], Predicted]
"""What the policy makes of the wanted targets."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference policy's log-probabilities of every item, computed once."""

    logps: list[tuple[np.ndarray[Any, Any], ...]]
    """Per item and side: [T] zero where the loss covers nothing."""


def reference_logps(items: Sequence[Item], logps_of: LogpsOf, *, micro_batch_tokens: int, device: str) -> Reference:
    """One pass over the items, longest last, in the order of their lengths."""
    found: list[list[Any]] = [[None] * len(item.sequences) for item in items]
    flat = [(i, side) for i, item in enumerate(items) for side in range(len(item.sequences))]
    flat.sort(key=lambda at: (len(items[at[0]].sequences[at[1]].ids), at))
    start = 0
    while start < len(flat):
        end = start + 1
        while end < len(flat) and (end + 1 - start) * _length(items, flat[end]) <= micro_batch_tokens:
            end += 1
        members = flat[start:end]
        batch = inputs([items[i].sequences[side] for i, side in members], device)
        with torch.no_grad():
            logps = spread(logps_of(batch).logps, batch).cpu().numpy()
        for row, (i, side) in zip(logps, members, strict=True):
            found[i][side] = row[: len(items[i].sequences[side].mask)].copy()
        start = end
    return Reference([tuple(sides) for sides in found])


def _length(items: Sequence[Item], at: tuple[int, int]) -> int:
    return len(items[at[0]].sequences[at[1]].ids)


def step_rows(
    chosen: Sequence[Item],
    *,
    old: Sequence[Any] | None,
    reference: Sequence[Any] | None,
    mismatched: Sequence[float] | None,
    device: str,
) -> StepRows:
    """The sequences of one optimiser step; `old` and `reference` are log-probabilities of each, [T]."""
    mask = _padded([item.sequences[0].mask for item in chosen], 0.0, device)
    width = mask.shape[1]

    def known(rows: Sequence[Any] | None) -> Tensor | None:
        return None if rows is None or any(row is None for row in rows) else _padded(rows, 0.0, device, width) * mask

    def each(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return StepRows(
        mask=mask,
        weights=each([item.weight for item in chosen]),
        rewards=each([item.reward for item in chosen]),
        group_ids=torch.tensor([item.group_id for item in chosen], dtype=torch.int64, device=device),
        behaviour_logps=known([item.behaviour_logps for item in chosen]),
        old_logps=known(old),
        reference_logps=known(reference),
        mismatched=None if mismatched is None else each(mismatched),
    )


def micro_loss(
    members: Sequence[int],
    *,
    items: Sequence[Item],
    step: Step,
    whole: tuple[StepRows, dict[int, int]] | None,
    old: Reference | None,
    reference: Reference | None,
    logps_of: LogpsOf | ScoresOf,
    objective: Callable[[Any], Loss],
    device: str,
) -> Loss:
    """The objective's loss of one micro-batch, the gradient still attached. `whole` is None for pairs."""
    if isinstance(logps_of, ScoresOf):
        return scored_loss(members, items, step, logps_of, objective)
    if whole is None:
        return objective(_pairs(members, items, step, old, reference, logps_of, device))
    rows, place = whole
    batch = inputs([items[i].sequences[0] for i in members], device)
    predicted = logps_of(batch)
    at = torch.tensor([place[i] for i in members], device=device)
    return objective(
        SequenceBatch(
            logps=spread(predicted.logps, batch),
            mask=batch.mask,
            weights=rows.weights[at],
            step_tokens=step.tokens,
            step_sequences=step.sequences,
            step=rows,
            rows=at,
            entropy=None if predicted.entropy is None else spread(predicted.entropy, batch),
        )
    )


def _pairs(
    members: Sequence[int],
    items: Sequence[Item],
    step: Step,
    old: Reference | None,
    reference: Reference | None,
    logps_of: LogpsOf,
    device: str,
) -> PairBatch:
    chosen = [items[i] for i in members]
    both = inputs([item.sequences[side] for side in (0, 1) for item in chosen], device)
    logps = spread(logps_of(both).logps, both)
    n, width = len(chosen), both.mask.shape[1]

    def known(policy: Reference | None) -> tuple[Tensor, Tensor] | None:
        if policy is None:
            return None
        first, second = (_padded([policy.logps[i][side] for i in members], 0.0, device, width) for side in (0, 1))
        return first, second

    return PairBatch(
        chosen_logps=logps[:n],
        chosen_mask=both.mask[:n],
        rejected_logps=logps[n:],
        rejected_mask=both.mask[n:],
        weights=torch.tensor([item.weight for item in chosen], dtype=torch.float32, device=device),
        margins=torch.tensor([item.margin for item in chosen], dtype=torch.float32, device=device),
        step_pairs=step.sequences,
        step_chosen_tokens=step.tokens,
        reference_logps=known(reference),
        old_logps=known(old),
    )


def _padded(rows: Sequence[Any], value: float, device: str, width: int = 0) -> Tensor:
    out = np.full((len(rows), width or max(len(row) for row in rows)), value, dtype=np.float32)
    for at, row in zip(out, rows, strict=True):
        at[: len(row)] = row
    return torch.from_numpy(out).to(device)
