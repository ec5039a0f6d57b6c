"""Direct Nash optimisation: a pair is won with the probability that its win rates say, not for certain.

L = -p log sigmoid(m) - (1 - p) log sigmoid(-m), p = sigmoid(r_chosen - r_rejected), m = eta (D_chosen - D_rejected),
D = log pi - log pi_reference of the completion, the reference being the policy that wrote them (`reference: init`
where training starts from it). r is a completion's expected win rate against that policy; the pair's `margin` column is
the difference of the two.

Source: Rosset et al. 2024, 2404.03715. Its practical form, DNO-Prct, is `dpo` on the pairs of a large margin
(`build: best_worst` with `min_margin`) with the same reference.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from strop.core.algebra.pairs import log_ratios, pair_loss, soft_logistic
from strop.core.plugin import Config, stage
from strop.core.trainer.objective import Loss, PairBatch


class Dno(Config):
    """Configuration of `dno`."""

    eta: PositiveFloat = 0.1
    """Scale of the difference of log-ratios."""


@stage("objective", examples="pair", needs=("margin",), requires=("reference",))
def dno(config: Dno, *, batch: PairBatch) -> Loss:
    """Mean over pairs; metrics as `dpo`."""
    margin = config.eta * log_ratios(batch).difference
    return pair_loss(soft_logistic(margin, batch.margins.sigmoid()), margin, batch)
