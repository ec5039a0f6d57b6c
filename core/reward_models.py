"""Which reward models a verify stage scores with: of every `train_reward` stage the newest that was trained before it.

Before is by round and by place in the round, whatever has been committed by now: a run that goes on after a kill, or
verifies again, finds the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from strop.core.engine import RewardModel
from strop.core.named_policy import stored_policy
from strop.core.recipe import Step
from strop.core.session import Session
from strop.core.visible import places, stage_of
from strop.storage.checkpoints import is_pruned
from strop.storage.errors import StageError
from strop.storage.tables import Policy, Rollout


def models_before(session: Session, round: int, step: Step) -> list[Policy]:
    """Their rows, in order of the stages' labels; none for a stage that does not ask for them."""
    if "reward_models" not in step.plugin.mark.handles:
        return []
    labels = [other.label for other in session.recipe.round]
    earlier = set(labels[: labels.index(stage_of(step.label))])
    place = places(session.ledger)
    newest: dict[str, Policy] = {}
    for model in session.reward_models():
        at, label, _ = place[model.stage_run_id]
        if at < round or (at == round and label in earlier):
            newest[label] = model
    return [newest[label] for label in sorted(newest)]


def keys_before(session: Session, round: int, step: Step) -> set[str]:
    """Keys of the stage runs that made them, for the key of a stage that scores with them."""
    return {key for model in models_before(session, round, step) for key in session.keys_of(model)}


def reward_models(session: Session, round: int, step: Step, rollouts: Sequence[Rollout]) -> list[RewardModel]:
    """As the plugin is handed them, with what is known of the rollouts. Raises StageError where weights were pruned."""
    return [_model(session, policy, rollouts) for policy in models_before(session, round, step)]


def _model(session: Session, policy: Policy, rollouts: Sequence[Rollout]) -> RewardModel:
    if is_pruned(policy.detail):
        raise StageError(f"the weights of the reward model {policy.name} were taken out by `strop gc`: train it again")
    detail = json.loads(policy.detail or "{}")
    implicit = detail.get("head") is None and policy.reference_policy_id is not None
    reference = session.policy(policy.reference_policy_id) if implicit and policy.reference_policy_id else None
    return RewardModel(
        policy.name,
        policy.name.rpartition("/")[2],
        stored_policy(session, policy, rollouts if implicit else ()),
        None if reference is None else stored_policy(session, reference, rollouts),
        float(detail.get("beta", 1.0)),
    )
