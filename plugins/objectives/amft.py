"""Adaptive mixing: how much imitation and how much reinforcement, decided step by step. Experimental.

L = (1 - mu) L_RL + mu L_SFT; L_SFT is the token mean of -log pi over demonstrations, L_RL that of
-(r - mean) pi / pi_old over completions. After each step mu <- mu + rate g + entropy_rate (H - target), held within 0
and 1. H is the policy's entropy on its own completions: the less sure it is, the more it imitates. g is the slope by mu
of the utility after one plain gradient step, -lr grad U . (grad L_SFT - grad L_RL); U is -L_RL of prompts held back
(`train.validation`), the reward that it would gain there.

Source: He et al. 2025, 2508.06944 (AMFT), which was withdrawn; neither its code nor its formulas in full were at hand.
Changed: g goes by plain gradient descent whatever the optimiser; each training starts at `mu`, as the controller knows
the steps of its own training only. A demonstration is the member of its group without a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat

from strop.core.algebra.advantages import centred
from strop.core.algebra.entropies import entropy_of
from strop.core.algebra.ratios import log_ratio
from strop.core.algebra.schedules import steered
from strop.core.algebra.subsets import demonstrations, token_mean_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Amft(Config):
    """Configuration of `amft`."""

    mu: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of imitation in the first step."""
    rate: NonNegativeFloat = 0.0
    """Of the utility's slope; above 0 it needs `train.validation`, and a step costs about three."""
    entropy_rate: NonNegativeFloat = 0.05
    """Of the entropy's distance from its target."""
    target: NonNegativeFloat | None = None
    """Entropy a token, in nats; null = that of the training's first step."""


@stage("objective", examples="group", requires=("old", "entropy"), requires_if={"foresight": "rate"})
def amft(config: Amft, *, batch: SequenceBatch) -> Loss:
    """Metrics: `mu`, `entropy`, and the two losses `sft` and `rl`."""
    step = batch.step
    shown = demonstrations(step)
    advantage = batch.of(centred(step.rewards, step.group_ids))[:, None]
    ratio = log_ratio(batch.logps, batch.old_logps, batch.mask).exp()
    reinforced = token_mean_of(-advantage * ratio, batch, ~shown)
    imitated = token_mean_of(-batch.logps, batch, shown)
    mu = _share(config, batch.history)
    told = {
        "mu": mu * len(batch.rows) / batch.step_sequences,
        "entropy": float(token_mean_of(entropy_of(batch).detach(), batch, ~shown)),
        "sft": float(imitated.detach()),
        "rl": float(reinforced.detach()),
    }
    return Loss(reinforced if batch.held_back else (1 - mu) * reinforced + mu * imitated, told)


def _share(config: Amft, history: Sequence[Mapping[str, float]]) -> float:
    if not history:
        return config.mu
    last = history[-1]
    target = history[0]["entropy"] if config.target is None else config.target
    slope = last["lr"] * (last.get("sft_along", 0.0) - last.get("rl_along", 0.0))
    return steered(last["mu"], slope, last["entropy"] - target, config.rate, config.entropy_rate)
