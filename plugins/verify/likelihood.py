"""How likely a policy finds each rollout: a reference, an earlier policy, or a teacher from outside.

The score is the mean log-probability of a token. The log-probabilities of all tokens are kept in `token_logps`, from
where objectives that need a reference or a teacher read them; what is there is not computed again.

Source: the quantity behind every reference and distillation term, e.g. Rafailov et al. 2023, 2305.18290, eq. 4.
Left out: teachers with another tokenizer, whose tokens are not the rollout's.
"""

from __future__ import annotations

from collections.abc import Sequence

from strop.core.engine import NamedPolicy
from strop.core.plugin import Config, stage
from strop.plugins.verify._verdict import unknown
from strop.storage.tables import Rollout, Score, TokenLogps


class Likelihood(Config):
    """Under which policy."""

    policy: str = "base"
    """base, previous, champion, or the directory of a checkpoint with the same tokenizer (`./teacher`)."""


@stage("verify", needs=("token_ids",), requires=("score",))
def likelihood(config: Likelihood, *, rollouts: list[Rollout], policy: NamedPolicy) -> list[Score | TokenLogps]:
    """One score a rollout, in their order, and log-probabilities of those that were not known."""
    asked = [r for r in rollouts if r.token_ids and not _known(policy, r)]
    found, why, name = _scored(policy, asked)
    rows: list[Score | TokenLogps] = []
    for rollout in rollouts:
        logps = policy.known[rollout.rollout_id] if _known(policy, rollout) else found.get(rollout.rollout_id)
        if logps:
            value = sum(logps) / len(logps)
            rows.append(Score(subject_id=rollout.rollout_id, problem_id=rollout.problem_id, value=value))
        else:
            rows.append(unknown(rollout, why.get(rollout.rollout_id, "it has no tokens")))
    for rollout in asked:
        if rollout.rollout_id in found:
            rows.append(
                TokenLogps(
                    rollout_id=rollout.rollout_id,
                    policy_hash=policy.hash,
                    policy_id=policy.policy_id,
                    logps=found[rollout.rollout_id],
                    engine=name,
                )
            )
    return rows


def _known(policy: NamedPolicy, rollout: Rollout) -> bool:
    return len(policy.known.get(rollout.rollout_id, ())) == len(rollout.token_ids or ()) > 0


def _scored(
    policy: NamedPolicy, rollouts: Sequence[Rollout]
) -> tuple[dict[int, list[float]], dict[int, str], str | None]:
    """Log-probabilities and, where there can be none, the reason, by rollout id; and the engine's name."""
    if not rollouts:
        return {}, {}, None
    engine = policy.engine()
    pairs = [(r.prompt, r.token_ids or []) for r in rollouts]
    try:
        return dict(zip((r.rollout_id for r in rollouts), engine.score(pairs), strict=True)), {}, engine.name
    except ValueError:  # one of them is too long for this policy, or has no prompt: which one?
        found: dict[int, list[float]] = {}
        why: dict[int, str] = {}
        for rollout, pair in zip(rollouts, pairs, strict=True):
            try:
                (found[rollout.rollout_id],) = engine.score([pair])
            except ValueError as error:
                why[rollout.rollout_id] = str(error)
        return found, why, engine.name
