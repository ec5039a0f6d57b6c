"""From one micro-batch to its loss: log-probabilities under the policy, those of the reference, and the objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from strop.core.trainer.batches import Step, runs
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.logps import Reader
from strop.core.trainer.objective import Loss, PairBatch, SequenceBatch, StepRows
from strop.core.trainer.ranks import Ranks
from strop.core.trainer.score import ScoreReader, scored_loss
from strop.core.trainer.token_score import TokenReader

if TYPE_CHECKING:
    from strop.core.trainer.known import Known


class Numbers(Protocol):
    """A model, and how it gives each token a number."""

    @property
    def packed(self) -> bool:
        """Whether it reads sequences one after the other, without padding."""
        ...

    @property
    def ranks(self) -> Ranks:
        """The processes that share the work out."""
        ...

    def numbers(self, sequences: Sequence[Encoded]) -> Tensor:
        """[B, T] zero where the mask is zero."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """What a frozen policy makes of every item, computed once: log-probabilities, or another number a target."""

    logps: list[tuple[np.ndarray[Any, Any], ...]]
    """Per item and side: [T] zero where the loss covers nothing."""


def reference_logps(items: Sequence[Item], read: Numbers, *, micro_batch_tokens: int) -> Reference:
    """One pass over the items, longest last, in the order of their lengths."""
    found: list[list[Any]] = [[None] * len(item.sequences) for item in items]
    flat = [(i, side) for i, item in enumerate(items) for side in range(len(item.sequences))]
    flat.sort(key=lambda at: (len(items[at[0]].sequences[at[1]].ids), at))
    sequences = [items[i].sequences[side] for i, side in flat]
    parts = runs([len(s.ids) for s in sequences], micro_batch_tokens, packed=read.packed)
    own: dict[int, np.ndarray[Any, Any]] = {}
    for number, _ in read.ranks.mine(len(parts)):
        run = parts[number]
        with torch.no_grad():
            logps = read.numbers(sequences[run.start : run.stop]).cpu().numpy()
        own.update({at: row[: len(sequences[at].mask)].copy() for row, at in zip(logps, run, strict=True)})
    for (i, side), values in zip(flat, read.ranks.collected(own), strict=True):
        found[i][side] = values
    return Reference([tuple(sides) for sides in found])


def step_rows(
    chosen: Sequence[Item],
    *,
    old: Sequence[Any] | None,
    reference: Sequence[Any] | None,
    old_values: Sequence[Any] | None,
    mismatched: Sequence[float] | None,
    entropy: Sequence[Any] | None,
    logps: Sequence[Any] | None,
    token_scores: Sequence[Any] | None,
    device: str,
) -> StepRows:
    """The sequences of one optimiser step; `old` and `reference` are log-probabilities of each, [T], like `entropy`,
    `old_values` and `token_scores`."""
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
        old_values=known(old_values),
        mismatched=None if mismatched is None else each(mismatched),
        entropy=known(entropy),
        logps=known(logps),
        token_scores=known(token_scores),
        targets=_targets(chosen, width, device),
        strata=_strata(chosen, device),
    )


def _strata(items: Sequence[Item], device: str) -> Tensor:
    return torch.tensor([item.stratum for item in items], dtype=torch.int64, device=device)


def _targets(chosen: Sequence[Item], width: int, device: str) -> Tensor:
    out = np.zeros((len(chosen), width), dtype=np.int64)
    for row, item in zip(out, chosen, strict=True):
        ids = item.sequences[0].ids[item.sequences[0].prompt_length :]
        row[: len(ids)] = ids
    return torch.from_numpy(out).to(device)


def micro_loss(
    members: Sequence[int],
    *,
    items: Sequence[Item] | Mapping[int, Item],
    step: Step,
    whole: tuple[StepRows, dict[int, int]] | None,
    known: Known,
    read: Reader | ScoreReader | TokenReader,
    objective: Callable[[Any], Loss],
    progress: float,
    history: Sequence[Mapping[str, float]],
    held_back: bool = False,
) -> Loss:
    """The objective's loss of one micro-batch, the gradient still attached. `whole` is None for pairs."""
    if isinstance(read, ScoreReader):
        return scored_loss(members, items, step, read, objective)
    if isinstance(read, TokenReader):
        return read.loss(members, items, step, objective)
    if whole is None:
        return objective(_pairs(members, items, step, known, read, progress))
    rows, place = whole
    seen = read([items[i].sequences[0] for i in members])
    at = torch.tensor([place[i] for i in members], device=read.device)
    return objective(
        SequenceBatch(
            logps=seen.logps,
            mask=seen.mask,
            weights=rows.weights[at],
            step_tokens=step.tokens,
            step_sequences=step.sequences,
            step=rows,
            rows=at,
            entropy=seen.entropy,
            held_back=held_back,
            head_values=seen.values,
            progress=progress,
            history=history,
        )
    )


def _pairs(
    members: Sequence[int],
    items: Sequence[Item] | Mapping[int, Item],
    step: Step,
    known: Known,
    read: Reader,
    progress: float,
) -> PairBatch:
    chosen, device = [items[i] for i in members], read.device
    both = read([item.sequences[side] for side in (0, 1) for item in chosen])
    n, width = len(chosen), both.mask.shape[1]

    def sides(policy: Reference) -> tuple[Tensor, Tensor]:
        first, second = (_padded([policy.logps[i][side] for i in members], 0.0, device, width) for side in (0, 1))
        return first, second

    return PairBatch(
        chosen_logps=both.logps[:n],
        chosen_mask=both.mask[:n],
        rejected_logps=both.logps[n:],
        rejected_mask=both.mask[n:],
        weights=torch.tensor([item.weight for item in chosen], dtype=torch.float32, device=device),
        margins=torch.tensor([item.margin for item in chosen], dtype=torch.float32, device=device),
        step_pairs=step.sequences,
        step_chosen_tokens=step.tokens,
        reference_logps=None if known.reference is None else sides(known.reference),
        old_logps=None if known.old is None else sides(known.old),
        strata=_strata(chosen, device),
        step_strata=_strata([items[i] for micro in step.micro for i in micro], device),
        behind={name: sides(policy) for name, policy in known.behind.items()},
        progress=progress,
    )


def _padded(rows: Sequence[Any], value: float, device: str, width: int = 0) -> Tensor:
    out = np.full((len(rows), width or max(len(row) for row in rows)), value, dtype=np.float32)
    for at, row in zip(out, rows, strict=True):
        at[: len(row)] = row
    return torch.from_numpy(out).to(device)
