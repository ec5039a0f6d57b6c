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
from strop.core.trainer.logps import spread
from strop.core.trainer.objective import Loss, PairBatch, SequenceBatch

LogpsOf = Callable[[Inputs], Tensor]
"""[N] log-probabilities of the wanted targets."""


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
            logps = spread(logps_of(batch), batch).cpu().numpy()
        for row, (i, side) in zip(logps, members, strict=True):
            found[i][side] = row[: len(items[i].sequences[side].mask)].copy()
        start = end
    return Reference([tuple(sides) for sides in found])


def _length(items: Sequence[Item], at: tuple[int, int]) -> int:
    return len(items[at[0]].sequences[at[1]].ids)


def group_rewards(items: Sequence[Item]) -> dict[int, list[float]]:
    """Rewards of every group's members, in the order of the items."""
    found: dict[int, list[float]] = {}
    for item in items:
        if item.group_id >= 0:
            found.setdefault(item.group_id, []).append(item.reward)
    return found


def micro_loss(
    members: Sequence[int],
    *,
    items: Sequence[Item],
    step: Step,
    reference: Reference | None,
    groups: dict[int, list[float]],
    logps_of: LogpsOf,
    objective: Callable[[Any], Loss],
    device: str,
) -> Loss:
    """The objective's loss of one micro-batch, the gradient still attached."""
    chosen = [items[i] for i in members]
    weights = torch.tensor([item.weight for item in chosen], dtype=torch.float32, device=device)
    if len(chosen[0].sequences) == 2:
        both = inputs([item.sequences[side] for side in (0, 1) for item in chosen], device)
        logps = spread(logps_of(both), both)
        n = len(chosen)
        margins = torch.tensor([item.margin for item in chosen], dtype=torch.float32, device=device)
        sums = [
            None
            if reference is None
            else torch.tensor([float(reference.logps[i][side].sum()) for i in members], device=device)
            for side in (0, 1)
        ]
        return objective(
            PairBatch(
                chosen_logps=logps[:n],
                chosen_mask=both.mask[:n],
                rejected_logps=logps[n:],
                rejected_mask=both.mask[n:],
                weights=weights,
                margins=margins,
                step_pairs=step.sequences,
                step_chosen_tokens=step.tokens,
                reference_chosen=sums[0],
                reference_rejected=sums[1],
            )
        )
    batch = inputs([item.sequences[0] for item in chosen], device)
    grouped = chosen[0].group_id >= 0
    width = batch.mask.shape[1]
    return objective(
        SequenceBatch(
            logps=spread(logps_of(batch), batch),
            mask=batch.mask,
            weights=weights,
            step_tokens=step.tokens,
            step_sequences=step.sequences,
            rewards=torch.tensor([item.reward for item in chosen], device=device) if grouped else None,
            group_ids=torch.tensor([item.group_id for item in chosen], device=device) if grouped else None,
            group_rewards=_padded([groups[item.group_id] for item in chosen], float("nan"), device)
            if grouped
            else None,
            behaviour_logps=None
            if any(item.behaviour_logps is None for item in chosen)
            else _padded([item.behaviour_logps for item in chosen], 0.0, device, width) * batch.mask,
            reference_logps=None
            if reference is None
            else _padded([reference.logps[i][0] for i in members], 0.0, device, width),
        )
    )


def _padded(rows: Sequence[Any], value: float, device: str, width: int = 0) -> Tensor:
    out = np.full((len(rows), width or max(len(row) for row in rows)), value, dtype=np.float32)
    for at, row in zip(out, rows, strict=True):
        at[: len(row)] = row
    return torch.from_numpy(out).to(device)
