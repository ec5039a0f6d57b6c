"""On-policy distillation: bring the policy to a teacher on what the policy itself writes.

L = mean over tokens of k2(pi, teacher) = (log pi - log teacher)^2 / 2, whose gradient, on samples of pi, is that of
KL(pi || teacher) at each token. The teacher is the reference policy; rewards play no part. The forward direction,
KL(teacher || pi), is `sft` on the teacher's samples.

Source: Agarwal et al. 2023, 2306.13649 (generalised knowledge distillation, its on-policy reverse case); Schulman
2020, "Approximating KL Divergence" (k2).
Changed: estimated at the sampled token, there exact over the vocabulary. As the examples must be the policy's own
samples, put `train.data_window` at 1 and build from this round's completions, right and wrong.
"""

from __future__ import annotations

from strop.core.algebra.aggregates import token_mean
from strop.core.algebra.divergences import k2
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, SequenceBatch


class ReverseKl(Config):
    """Nothing to set."""


@stage("objective", examples="group", requires=("reference",))
def reverse_kl(config: ReverseKl, *, batch: SequenceBatch) -> Loss:
    """Token mean of the squared difference; metric `k1`: the token mean of log pi - log teacher."""
    gap = (batch.logps - batch.reference_logps).detach()
    return Loss(token_mean(k2(batch.logps, batch.reference_logps), batch), {"k1": float(token_mean(gap, batch))})
