"""What the run's own reward models think of each rollout: of every `train_reward` stage the newest trained before.

Several are an ensemble: the value is the mean of their scores, and `detail` keeps each one's and their spread. While
there is none, in the first round usually, a rollout gets no value and the reason, which is not a value of 0. Scores
tell completions of one prompt apart; of two prompts they need not be comparable.

A model with a score head is read at the last token; one that gives each token a number gives a completion their mean.
One that is a reward by its log-ratio to a reference (trained with `implicit_reward` or `dpo`; with `sft`, where beta is
1) gives beta times the ratio of the whole completion; the log-probabilities of all tokens, whose difference times beta
is the reward of a step, are left in `token_logps` under either policy.

Source: Ouyang et al. 2022, 2203.02155 (reward models); Coste et al. 2023, 2310.02743 (ensembles, and the mean less a
part of the spread as a guard against overoptimisation, there of the variance); Wang et al. 2024, 2401.06080 (an
ensemble's mean difference as the strength of a preference); Cui et al. 2025, 2502.01456 (implicit process rewards);
Zhang et al. 2025, 2510.21090 (the log-ratio of a policy tuned on demonstrations to its base).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence

from pydantic import NonNegativeFloat

from strop.core import engine
from strop.core.completions import loss_prompt
from strop.core.plugin import Config, stage
from strop.plugins.verify._asked import asked
from strop.plugins.verify._verdict import unfit, unknown
from strop.plugins.verify._weighed import weighed
from strop.storage.errors import PluginError, did_you_mean
from strop.storage.tables import Rollout, Score, TokenLogps

UNTRAINED = "there is no reward model yet: one must be trained in an earlier round, or earlier in this one"
Said = dict[int, float | str]
"""Rollout id -> a model's score, or why it has none."""


class RewardModel(Config):
    """Which models, and how they make one score."""

    models: list[str] | None = None
    """Names of the `train_reward` stages; null = all. Models of different kinds have different scales."""
    caution: NonNegativeFloat = 0.0
    """The spread of an ensemble's scores is taken from their mean so many times."""


@stage("verify", needs=("token_ids",))
def reward_model(
    config: RewardModel, *, rollouts: list[Rollout], reward_models: list[engine.RewardModel]
) -> list[Score | TokenLogps]:
    """One score a rollout, in their order, and log-probabilities of tokens that were not known."""
    models = _chosen(config, reward_models)
    made = [r for r in rollouts if r.finish_reason != "error"]
    said: list[Said] = []
    new: dict[tuple[str, int], TokenLogps] = {}
    for model in models:
        found, weights = _implicit(model, made) if model.reference else (_scored(model.scorer(), made), [])
        said.append(found)
        new |= {(row.policy_hash, row.rollout_id): row for row in weights}
    level = [_levels(rollouts, found) for found in said]
    rows: list[Score | TokenLogps] = []
    for rollout in rollouts:
        given = [found[rollout.rollout_id] for found in said] if rollout.finish_reason != "error" else []
        if (cannot := unfit(rollout, allow_truncated=True)) is not None:
            rows.append(cannot)
        elif not models:
            rows.append(Score(subject_id=rollout.rollout_id, problem_id=rollout.problem_id, reason=UNTRAINED))
        elif (why := next((w for w in given if isinstance(w, str)), None)) is not None:
            rows.append(unknown(rollout, why))
        else:
            values = [value for value in given if not isinstance(value, str)]
            centred = [v - at[rollout.problem_id] for v, at in zip(values, level, strict=True)]
            rows.append(_score(config, rollout, models, values, centred))
    return [*rows, *new.values()]


def _chosen(config: RewardModel, models: Sequence[engine.RewardModel]) -> list[engine.RewardModel]:
    """Raises PluginError for a stage that trained none, where others did."""
    if config.models is None:
        return sorted(models, key=lambda model: model.name)
    there = {model.stage: model for model in models}
    for name in config.models:
        if models and name not in there:
            raise PluginError(
                f"reward_model: no `train_reward` stage called {name!r} has trained a model before this "
                f"stage{did_you_mean(name, there)}"
            )
    return [there[name] for name in sorted(set(config.models)) if name in there]


def _score(
    config: RewardModel,
    rollout: Rollout,
    models: Sequence[engine.RewardModel],
    values: Sequence[float],
    centred: Sequence[float],
) -> Score:
    """`centred` are the values less each model's mean over the problem's rollouts: levels are arbitrary."""
    mean, middle = math.fsum(values) / len(values), math.fsum(centred) / len(centred)
    spread = math.sqrt(math.fsum((c - middle) ** 2 for c in centred) / len(centred))
    detail = {"models": [m.name for m in models], "scores": [round(v, 6) for v in values], "spread": round(spread, 6)}
    return Score(
        subject_id=rollout.rollout_id,
        problem_id=rollout.problem_id,
        value=mean - config.caution * spread,
        detail=json.dumps(detail),
    )


def _levels(rollouts: Sequence[Rollout], found: Said) -> dict[int, float]:
    """Problem id -> mean of a model's scores of its rollouts."""
    by_problem: dict[int, list[float]] = defaultdict(list)
    for rollout in rollouts:
        if isinstance(value := found.get(rollout.rollout_id), float):
            by_problem[rollout.problem_id].append(value)
    return {problem: math.fsum(values) / len(values) for problem, values in by_problem.items()}


def _scored(scorer: engine.Scorer, rollouts: Sequence[Rollout]) -> Said:
    pairs = [(loss_prompt(r), r.token_ids or r.completion) for r in rollouts]
    return dict(zip((r.rollout_id for r in rollouts), asked(scorer.scores, pairs), strict=True))


def _implicit(model: engine.RewardModel, rollouts: Sequence[Rollout]) -> tuple[Said, list[TokenLogps]]:
    """By the log-ratio to the reference; and the log-probabilities that had to be computed for it."""
    assert model.reference is not None
    ours, new = weighed(model.policy, rollouts)
    theirs, others = weighed(model.reference, rollouts)
    found: Said = {}
    for rollout in rollouts:
        a, b = ours[rollout.rollout_id], theirs[rollout.rollout_id]
        if isinstance(a, str) or isinstance(b, str):
            found[rollout.rollout_id] = a if isinstance(a, str) else str(b)
        else:
            found[rollout.rollout_id] = model.beta * math.fsum(x - y for x, y in zip(a, b, strict=True))
    return found, [*new, *others]
