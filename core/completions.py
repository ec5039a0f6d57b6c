"""What builders ask of the rollouts of a group before they make examples of them."""

from __future__ import annotations

from collections.abc import Iterable

from strop.storage.tables import Decision, Example, Rollout


def loss_prompt(rollout: Rollout) -> str:
    """The prompt the loss uses: the sampler's own, where no other is named."""
    return rollout.prompt if rollout.train_prompt is None else rollout.train_prompt


def sft_row(rollout: Rollout, text: str) -> Example:
    """An SFT row of a rollout, with this text for its completion."""
    return Example(
        kind="sft",
        problem_id=rollout.problem_id,
        prompt=loss_prompt(rollout),
        completion=text,
        rollout_id=rollout.rollout_id,
        loss_spans=rollout.loss_spans,
    )


def distinct(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """The first of each text, in the order given."""
    first: dict[str, Rollout] = {}
    for rollout in rollouts:
        first.setdefault(rollout.completion, rollout)
    return list(first.values())


def dropped_by(decisions: Iterable[Decision]) -> set[int]:
    """Ids of the rollouts that a filter dropped."""
    return {d.subject_id for d in decisions if d.subject_kind == "rollout" and not d.keep}
