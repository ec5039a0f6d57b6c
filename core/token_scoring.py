"""Which stage's reward model scores the tokens for a training whose objective requires it, and what may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from strop.storage.errors import did_you_mean

if TYPE_CHECKING:
    from strop.core.recipe import Step

GIVES = {None: "implicit", "token": "token", "score": "score"}
"""Kind of reward model by the head of the objective that trained it."""
WANTED = {
    "implicit": "an implicit one, `train_reward: implicit_reward`",
    "token": "one that gives a number a token, `train_reward: token_outcome`",
}


def scored_by(step: Step, steps: Sequence[Step]) -> Step | None:
    """The `train_reward` stage among the round's; None where the step's objective requires no token scores.

    Raises ValueError: there is none, or more than one to choose from, or it gives something else.
    """
    mark = step.plugin.mark
    if step.kind != "train" or "token_scores" not in mark.required(step.objective):
        return None
    assert mark.scored_by is not None
    wanted = WANTED[mark.scored_by]
    stages = {other.name: other for other in steps if other.kind == "train_reward"}
    fitting = [name for name, other in stages.items() if GIVES[other.plugin.mark.head] == mark.scored_by]
    name = getattr(step.config, "reward_model", None)
    if name is None and len(fitting) == 1:
        return stages[fitting[0]]
    if name in fitting:
        return stages[name]
    who = f"objective {step.plugin.name!r} has tokens scored by a reward model"
    if name is None and not fitting:
        raise ValueError(f"{who}: put a stage before it that trains {wanted}")
    if name is None:
        raise ValueError(f"{who}, and there are {', '.join(fitting)}: write `reward_model: {fitting[0]}`")
    if name in stages:
        raise ValueError(f"{who}, {wanted}; {name!r} trains with {stages[name].plugin.name!r}")
    raise ValueError(f"{who}: there is no `train_reward` stage called {name!r}{did_you_mean(name, stages)}")
