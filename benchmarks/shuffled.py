"""Keeps rollouts by another rollout's verdict, so that what is left of a gain owes nothing to the verifier.

Source: the usual control of self-training claims, e.g. Shao et al. 2025, 2506.10947 (random rewards).
"""

from __future__ import annotations

import random

from strop.core.plugin import Config, stage
from strop.storage.tables import Decision, Rollout, Score


class Shuffled(Config):
    """Nothing to set."""


@stage("filter")
def shuffled(config: Shuffled, *, rollouts: list[Rollout], scores: list[Score], seed: int) -> list[Decision]:
    """As many rollouts kept as passed, but others."""
    passed = {score.subject_id for score in scores if score.verdict == "pass"}
    verdicts = [rollout.rollout_id in passed for rollout in rollouts]
    random.Random(seed).shuffle(verdicts)
    return [
        Decision(subject_id=rollout.rollout_id, keep=keep, reason="shuffled verdict")
        for rollout, keep in zip(rollouts, verdicts, strict=True)
    ]
