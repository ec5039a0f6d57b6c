"""How likely a policy finds each rollout: a reference, an earlier policy, or a teacher from outside.

The score is the mean log-probability of a token. The log-probabilities of all tokens are kept in `token_logps`, from
where objectives that need a reference or a teacher read them; what is there is not computed again.

Source: the quantity behind every reference and distillation term, e.g. Rafailov et al. 2023, 2305.18290, eq. 4.
Left out: teachers with another tokenizer, whose tokens are not the rollout's.
"""

from __future__ import annotations

from strop.core.engine import NamedPolicy
from strop.core.plugin import Config, stage
from strop.plugins.verify._verdict import unknown
from strop.plugins.verify._weighed import weighed
from strop.storage.tables import Rollout, Score, TokenLogps


class Likelihood(Config):
    """Under which policy."""

    policy: str = "base"
    """base, previous, champion, or the directory of a checkpoint with the same tokenizer (`./teacher`)."""


@stage("verify", needs=("token_ids",), requires=("score",))
def likelihood(config: Likelihood, *, rollouts: list[Rollout], policy: NamedPolicy) -> list[Score | TokenLogps]:
    """One score a rollout, in their order, and log-probabilities of those that were not known."""
    found, new = weighed(policy, rollouts)
    rows: list[Score | TokenLogps] = []
    for rollout in rollouts:
        logps = found[rollout.rollout_id]
        if isinstance(logps, str):
            rows.append(unknown(rollout, logps))
        else:
            value = sum(logps) / len(logps)
            rows.append(Score(subject_id=rollout.rollout_id, problem_id=rollout.problem_id, value=value))
    return [*rows, *new]
