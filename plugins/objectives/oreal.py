"""Outcome rewards with a say for each token: what a reward model finds decisive is learnt, what is not is left alone.

    p_t = sigma(mean of z over the tokens up to t);  w+ = clamp((p - threshold) / (1 - threshold), 0, 1), w- so of 1 - p
    L = mean over tokens of right ones of -w+ A log pi  +  negative  mean over tokens of wrong ones of -w- A pi / sg(pi)
        + kl mean over tokens of k3,   A = r - mean of the others in the group, r = 1 or -1

z are the logits of a token reward model, `train_reward: token_outcome`. One right and one wrong completion of each
prompt are trained on; A knows all of them.

Source: Lyu et al. 2025, 2502.06781 (OREAL), and its code (InternLM/OREAL); K 16, learning rates 5e-7 and 2e-6 (of the
reward model). Its prompts come 6, 4 or 2 times by solve rate: `build: {use: grouped, difficulty: bands}`.
Changed: of each kind the completion of middle length is kept, there a random one. Left out: a policy that is frozen
while the reward model learns its first steps.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from strop.core.algebra.advantages import left_one_out
from strop.core.algebra.divergences import k3
from strop.core.algebra.lazy import torch
from strop.core.algebra.ratios import log_ratio
from strop.core.algebra.selectors import balanced
from strop.core.algebra.shaping import beyond
from strop.core.algebra.spread import running_mean, token_scores
from strop.core.algebra.subsets import binary, token_mean_of
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Oreal(Config):
    """Configuration of `oreal`."""

    pair: bool = True
    """Train on one right and one wrong completion of each prompt; false = on all of them. What is not kept is computed
    all the same, so it saves no time."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Up to this probability a token has no weight. A policy that is seldom right makes plain mistakes and uncertain
    successes: then 0.5 leaves right completions little weight against wrong ones, and 0 serves better."""
    negative: NonNegativeFloat = 0.5
    """Coefficient of wrong completions."""
    kl: NonNegativeFloat = 0.01
    """Coefficient of k3 to the reference policy."""


@stage(
    "objective",
    examples="group",
    requires=("token_scores",),
    requires_if={"reference": "kl"},
    scored_by="token",
)
def oreal(config: Oreal, *, batch: SequenceBatch) -> Loss:
    """Metrics `positive` and `negative`: the two parts before their coefficients.

    Raises ValueError where a reward is neither 0 nor 1.
    """
    step = batch.step
    right = binary(step.rewards) == 1
    advantage = left_one_out(2 * step.rewards - 1, step.group_ids)
    kept = advantage != 0
    if config.pair:
        kept = balanced(right, kept, step.group_ids, 2)
    chance = running_mean(batch.of(token_scores(step)), batch.mask).sigmoid()
    weight = beyond(torch.where(batch.of(right)[:, None], chance, 1 - chance), config.threshold)
    gain = weight * batch.of(advantage)[:, None]
    positive = token_mean_of(-gain * batch.logps, batch, kept & right)
    now = log_ratio(batch.logps, batch.logps.detach(), batch.mask).exp()
    negative = token_mean_of(-gain * now, batch, kept & ~right)
    value = positive + config.negative * negative
    if config.kl:
        value = value + config.kl * token_mean_of(k3(batch.logps, batch.reference_logps), batch, kept)
    return Loss(value, {"positive": float(positive.detach()), "negative": float(negative.detach())})
