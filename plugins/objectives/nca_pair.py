"""Noise-contrastive alignment: each completion's own log-ratio is a reward, so chosen ones do not lose likelihood.

L = -log sigmoid(c) - log sigmoid(-c) / 2 - log sigmoid(-r) / 2, c = beta D_chosen, r = beta D_rejected,
D = log pi - log pi_reference. DPO sees c - r alone and may lower both.

Source: Chen et al. 2024, 2402.05369, the loss for pairs, as in TRL 1.16.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import log_ratios, logistic, pair_loss
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class NcaPair(Config):
    """Configuration of `nca_pair`."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger = closer."""


@stage("objective", examples="pair", requires=("reference",))
def nca_pair(config: NcaPair, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    rewards = log_ratios(batch).of(lambda log_ratio: config.beta * log_ratio)
    values = logistic(rewards.chosen) + logistic(-rewards.chosen) / 2 + logistic(-rewards.rejected) / 2
    return pair_loss(values, rewards.difference, batch)
