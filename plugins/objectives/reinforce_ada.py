"""The baseline knows all draws of a prompt, the gradient a balanced few of them.

L = mean over the kept completions' tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) - entropy H, A = r - mean of
the group over all its draws, kept or not. `keep` of each group are kept, half of them solved; where one kind is short
the other fills up. A group whose draws are all alike has A = 0; a kept part that is all alike has not.

Source: Xiong et al. 2025, 2510.04996 (Reinforce-Ada), and its code (RLHFlow/Reinforce-Ada).
Left out: sampling in rounds until a prompt has enough of both kinds; sample more of each instead. Of each kind those
are kept that stand at even spaces by length. What is not kept is computed all the same, so it saves no time.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from strop.core.algebra.advantages import centred
from strop.core.algebra.clip import ClipHigher, surrogate
from strop.core.algebra.entropies import with_bonus
from strop.core.algebra.selectors import balanced
from strop.core.algebra.subsets import token_mean_of
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ReinforceAda(ClipHigher):
    """Configuration of `reinforce_ada`."""

    keep: Annotated[int, Field(ge=2)] = 4
    """Completions of each group that are trained on."""
    above: float = 0.5
    """A completion is solved when its reward is above this."""
    entropy: NonNegativeFloat = 1e-4
    """Coefficient of the entropy, which is kept up."""


@stage("objective", examples="group", needs=("logps",), requires_if={"entropy": "entropy"})
def reinforce_ada(config: ReinforceAda, *, batch: SequenceBatch) -> Loss:
    """The entropy is the mean over the tokens of all draws."""
    rewards, groups = batch.step.rewards, batch.step.group_ids
    kept = balanced(rewards > config.above, ~rewards.isnan(), groups, config.keep)
    advantage = batch.of(centred(rewards, groups))[:, None]
    loss = Loss(token_mean_of(surrogate(config, advantage, batch), batch, kept))
    return with_bonus(loss, config.entropy, batch) if config.entropy else loss
