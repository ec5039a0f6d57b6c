"""Every scored completion of a prompt, with its reward: what policy-gradient objectives learn from.

Source: Shao et al. 2024, 2402.03300 (groups); leaving out groups of one reward as in Yu et al. 2025, 2503.14476 (DAPO,
there refilled with further prompts); strata by answer as in COPO (2508.04138), by turns as in Stratified GRPO
(2510.06214); weights of difficulty on whole groups as in NFT (2505.18116: linear and root) and OREAL (2502.06781:
bands, there prompts repeated 6, 4 and 2 times by an earlier policy's solve rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import PositiveInt

from strop.core.completions import dropped_by, loss_prompt
from strop.core.plugin import LATER, Config, stage
from strop.core.problems import key_of
from strop.core.verdicts import groups, of_rollouts, pending, values
from strop.storage.tables import Decision, Example, Problem, Rollout, Score

EDGE = 0.02
"""Solve rates are kept this far from 0 and 1 where they decide a weight."""

BANDS = ((0.2, 1.0), (0.6, 2 / 3), (0.8, 1 / 3))
"""Weights by upper ends of solve rates."""


class Grouped(Config):
    """Which groups."""

    scorer: str | None = None
    """Label of the verify stage whose value is the reward; without it the mean over all of them."""
    contrast: bool = False
    """Leave out groups whose rewards are all equal: they teach nothing where the baseline is the group's mean."""
    least: PositiveInt = 1
    """Smallest group that is used."""
    stratum: Annotated[Literal["answer", "turns"] | None, LATER] = None
    """What makes completions of a group one kind, for objectives that compare within it: an equal answer, as verifiers
    extracted it, or an equal number of turns. null = no strata."""
    difficulty: Annotated[Literal["linear", "root", "bands"] | None, LATER] = None
    """Weight of the examples of a group whose mean reward is p: 1 - p, or sqrt((1 - p) / p), which both make hard
    prompts count for more under any objective; bands: 1 for p below .2, 2/3 below .6, 1/3 below .8, and such groups
    alone. null = all alike."""


@stage("build")
def grouped(
    config: Grouped,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
) -> list[Example]:
    """Groups in order of problem key. Completions without a score, or that a filter dropped, are left out.

    Raises ValueError when no rollout has a score, unless a scorer says that it has none to give yet; when strata are
    wanted by answers and no score has one, or by turns and no rollout has any; when a weight is wanted and a mean
    reward lies outside 0 and 1.
    """
    value = values(scores, config.scorer)
    if rollouts and not value and not pending(scores, config.scorer):
        raise ValueError("grouped learns from rewards, and no rollout has a score: put a `verify` before it")
    dropped = dropped_by(decisions)
    kinds = _kinds(config, rollouts, scores)
    found = []
    for group in sorted(groups(rollouts), key=lambda g: key_of(problems[g[0].problem_id])):
        members = [
            r for r in group if r.rollout_id in value and r.rollout_id not in dropped and r.finish_reason != "error"
        ]
        flat = len({value[r.rollout_id] for r in members}) < 2
        if len(members) < config.least or (config.contrast and flat):
            continue
        weight = _weight(config.difficulty, [value[r.rollout_id] for r in members])
        if weight != 0:
            strata = _numbered([kinds[r.rollout_id] for r in members]) if kinds else [None] * len(members)
            found += [
                _member(rollout, value[rollout.rollout_id], stratum, weight)
                for rollout, stratum in zip(members, strata, strict=True)
            ]
    return found


def _kinds(config: Grouped, rollouts: list[Rollout], scores: list[Score]) -> dict[int, str]:
    """Of each rollout; empty where there are to be no strata. A completion without an answer has the kind ''."""
    if config.stratum is None or not rollouts:
        return {}
    if config.stratum == "turns":
        if all(rollout.turn_offsets is None for rollout in rollouts):
            raise ValueError("grouped is to tell completions apart by turns, and no rollout has any: stratum: answer")
        return {rollout.rollout_id: str(len(rollout.turn_offsets or [])) for rollout in rollouts}
    given = of_rollouts(scores, config.scorer)
    found = {
        rollout.rollout_id: next(
            (s.answer.strip() for s in sorted(given.get(rollout.rollout_id, []), key=_by_scorer) if s.answer), ""
        )
        for rollout in rollouts
    }
    if not any(found.values()):
        raise ValueError(
            "grouped is to tell completions apart by their answers, and no score has one: verify with `answer` or "
            "`math`, which extract it, or name the verifier that does as `scorer`"
        )
    return found


def _by_scorer(score: Score) -> str:
    return score.scorer


def _numbered(kinds: Sequence[str]) -> list[int]:
    """From 0 in order of appearance."""
    number = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    return [number[kind] for kind in kinds]


def _weight(difficulty: str | None, rewards: Sequence[float]) -> float | None:
    if difficulty is None:
        return None
    rate = sum(rewards) / len(rewards)
    if not 0 <= rate <= 1:
        raise ValueError(f"grouped weighs prompts by mean rewards between 0 and 1, got {rate:g}: leave difficulty out")
    if difficulty == "bands":
        return next((weight for below, weight in BANDS if rate < below), 0.0)
    rate = min(max(rate, EDGE), 1 - EDGE)
    return 1 - rate if difficulty == "linear" else math.sqrt((1 - rate) / rate)


def _member(rollout: Rollout, reward: float, stratum: int | None, weight: float | None) -> Example:
    return Example(
        kind="group",
        problem_id=rollout.problem_id,
        prompt=loss_prompt(rollout),
        completion=rollout.completion,
        rollout_id=rollout.rollout_id,
        group_id=rollout.group_id,
        reward=reward,
        weight=weight,
        stratum=stratum,
        loss_spans=rollout.loss_spans,
    )
