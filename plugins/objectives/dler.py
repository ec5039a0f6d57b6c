"""Shorter completions by the simplest penalty: beyond a cut-off the reward is 0, and the estimate bears the noise.

L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)) + kl k3, A = r - group mean, whitened over all
tokens of the step, r = 0 where the completion is longer than the cut-off. Many rewards cut to 0 make a group's own
deviation a poor scale, hence the step's. It is `reinforce_pp` with its baseline, over shaped rewards.

Source: Liu et al. 2025, 2510.15110 (DLER), and its code (NVlabs/DLER). Leave out groups of one reward, as the paper
does, with `build: {use: grouped, contrast: true}`.
Left out: a shorter cut-off for easy prompts.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt

from strop.core.algebra.advantages import centred
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.clip import ClipHigher, surrogate
from strop.core.algebra.divergences import k3
from strop.core.algebra.shaping import cut_off
from strop.core.algebra.spread import whitened
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Dler(ClipHigher):
    """Configuration of `dler`."""

    cutoff: PositiveInt = 4000
    """Tokens up to which a completion may earn its reward."""
    kl: NonNegativeFloat = 5e-4
    """Coefficient of k3 to the reference policy."""


@stage("objective", examples="group", needs=("logps",), requires_if={"reference": "kl"})
def dler(config: Dler, *, batch: SequenceBatch) -> Loss:
    """A completion that could not be scored has no part in the advantages; metric `cut`: the share cut off."""
    step = batch.step
    lengths = step.mask.sum(1)
    mask = step.mask * ~step.rewards.isnan()[:, None]
    advantage = centred(cut_off(step.rewards, lengths, config.cutoff), step.group_ids)
    advantage = batch.of(whitened(advantage[:, None] * mask, mask))
    loss = surrogate(config, advantage, batch)
    if config.kl:
        loss = loss + config.kl * k3(batch.logps, batch.reference_logps)
    cut = float((batch.of(lengths) > config.cutoff).sum()) / batch.step_sequences
    return Loss(token_mean(loss, batch), {"cut": cut})
