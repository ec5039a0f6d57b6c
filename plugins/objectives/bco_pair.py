"""Binary classifier optimisation: tell good completions from bad ones, each by its own log-ratio.

L = -log sigmoid(beta D_chosen) - log sigmoid(-beta D_rejected), D = log pi - log pi_reference of the completion. It
bounds DPO's loss from above.

Source: Jung et al. 2024, 2404.04656, on pairs.
Left out: the reward shift delta (a running mean over batches) and the density ratio, as in TRL 1.16's pair loss.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class BcoPair(Config):
    """Configuration of `bco_pair`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""


@stage("objective", examples="pair", requires=("reference",))
def bco_pair(config: BcoPair, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    rewards = log_ratios(batch).of(lambda log_ratio: config.beta * log_ratio)
    return pair_loss(logistic(rewards.chosen) + logistic(-rewards.rejected), rewards.difference, batch)
