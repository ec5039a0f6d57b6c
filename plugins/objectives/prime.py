"""Tokens are paid by an implicit reward model, completions by the verifier: RLOO of both, whitened.

    r_t = x_t n / (n - 1) - (sum over the group of mean x) / (n - 1),  x_t = beta (log phi - log phi_ref) at token t
    A_t = sum of r from t on, plus outcome less the mean outcome of the others; then whitened over the step's tokens
    L = mean over tokens of -min(A rho, A clip(rho, 1 - low, 1 + high)), rho = pi / pi_behaviour

phi is trained in the same round with `train_reward: implicit_reward`, from the outcomes of the same completions, and
beta is its own; so nobody labels steps, and the reward model keeps up with the policy.

Source: Cui et al. 2025, 2502.01456 (PRIME), eq. 3 and 5, and its code (PRIME-RL/PRIME); n 4, learning rates 5e-7 and
1e-6 (of phi), prompts with a solve rate between .2 and .8.
Changed: the ratio's denominator is the distribution that was sampled from. Left out: the coefficient 5 of process
rewards, which the code has only where rewards are added up without a baseline.
"""

from __future__ import annotations

from strop.core.algebra.advantages import left_one_out
from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.lazy import torch
from strop.core.algebra.spread import left_one_out_tokens, reward_to_go, token_scores, whitened
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch


class Prime(Clip):
    """Configuration of `prime`."""


@stage("objective", examples="group", needs=("logps",), requires=("token_scores",), scored_by="implicit")
def prime(config: Prime, *, batch: SequenceBatch) -> Loss:
    """A completion that could not be scored has no part in the advantages.

    Metric `agreement`: of the completions that differ from their group, the share on whose side of it the reward model
    is, too.
    """
    step, scores = batch.step, token_scores(batch.step)
    mask = step.mask * ~step.rewards.isnan()[:, None]
    outcome = left_one_out(step.rewards, step.group_ids)
    process = reward_to_go(left_one_out_tokens(scores, mask, step.group_ids), mask)
    advantage = batch.of(whitened((process + outcome[:, None]) * mask, mask))
    value = token_mean(surrogate(config, advantage, batch), batch)
    whole = torch.where(step.rewards.isnan(), float("nan"), (scores * mask).sum(1))
    agree = left_one_out(whole, step.group_ids) * outcome > 0
    return Loss(value, {"agreement": float(batch.of(agree).sum()) / max(1.0, float((outcome != 0).sum()))})
