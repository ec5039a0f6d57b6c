"""Consistency-aware policy optimisation: where a prompt's completions agree, the prompt is compared with other prompts.

L = mean over completions of w L(A_local) + (1 - w) L(A_global), L(A) the mean over tokens of
-min(A rho, A clip(rho, 1 - low, 1 + high)). A_local is GRPO's; A_global is the group's mean reward, standardised over
the step's groups, the same for all its completions. w = sigmoid(gamma (H - threshold)), H = entropy of the group's
answers: a group that agrees, right or wrong, has nothing to compare within and learns from the global part.

Answers are the strata of the examples: `build: {use: grouped, stratum: answer}`.

Source: Han et al. 2025, 2508.04138 (COPO), from notes on it; its code was not at hand. H at most log G: with fewer than
5 completions a group the default threshold leaves the local part next to nothing.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from strop.core.algebra.advantages import standardised
from strop.core.algebra.aggregates import sequence_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.lazy import torch
from strop.core.algebra.strata import standardised_means, strata_entropy, strata_of
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Copo(Clip):
    """Configuration of `copo`."""

    gamma: PositiveFloat = 20.0
    """How sharply the local part gives way to the global."""
    threshold: NonNegativeFloat = 1.5
    """Entropy of a group's answers, in nats, at which both count alike."""


@stage("objective", examples="group", needs=("logps", "stratum"))
def copo(config: Copo, *, batch: SequenceBatch) -> Loss:
    """Metric `local`: the mean of w over completions."""
    rewards, groups = batch.step.rewards, batch.step.group_ids
    entropy = batch.of(strata_entropy(rewards, groups, strata_of(batch.step)))[:, None]
    local = torch.sigmoid(config.gamma * (entropy - config.threshold))
    loss = local * surrogate(config, batch.of(standardised(rewards, groups))[:, None], batch)
    loss = loss + (1 - local) * surrogate(config, batch.of(standardised_means(rewards, groups))[:, None], batch)
    return Loss(sequence_mean(loss, batch), {"local": float(local.sum()) / batch.step_sequences})
