"""Which reward models a stage scores with: of every `train_reward` stage the newest that was trained before it.

Before is by round and by place in the round, whatever has been committed by now: a run that goes on after a kill, or
verifies again, finds the same. A verify stage has them judge completions, a training has one of them score tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from strop.core.engine import RewardModel
from strop.core.named_policy import stored_policy
from strop.core.recipe import Step
from strop.core.session import Session
from strop.core.token_scoring import scored_by
from strop.core.visible import places, stage_of
from strop.storage.checkpoints import is_pruned
from strop.storage.errors import StageError
from strop.storage.tables import Policy, Rollout


def models_before(session: Session, round: int, step: Step) -> list[Policy]:
    """Their rows, in order of the stages' labels; none for a stage that does not ask for them."""
    if "reward_models" not in step.plugin.mark.handles:
        return []
    newest = _newest(session, round, step)
    return [newest[label] for label in sorted(newest)]


def _newest(session: Session, round: int, step: Step) -> dict[str, Policy]:
    """By label of the stage that trained them."""
    labels = [other.label for other in session.recipe.round]
    earlier = set(labels[: labels.index(stage_of(step.label))])
    place = places(session.ledger)
    found: dict[str, Policy] = {}
    for model in session.reward_models():
        at, label, _ = place[model.stage_run_id]
        if at < round or (at == round and label in earlier):
            found[label] = model
    return found


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What scores the tokens of a training."""

    model: Policy
    reference: Policy | None
    """None: the model has a head that gives one number a token."""
    beta: float


def token_scores(session: Session, round: int, step: Step) -> TokenScores | None:
    """The newest model of the stage whose models score a training's tokens; None while there is none.

    Raises StageError where its weights were pruned.
    """
    stage = scored_by(step, session.recipe.round)
    model = None if stage is None else _newest(session, round, step).get(stage.label)
    if model is None:
        return None
    _check_weights(model)
    return TokenScores(model, _reference(session, model), _beta(model))


def keys_before(session: Session, round: int, step: Step) -> set[str]:
    """Keys of the stage runs that made them, for the key of a stage that scores with them."""
    return {key for model in models_before(session, round, step) for key in session.keys_of(model)}


def reward_models(session: Session, round: int, step: Step, rollouts: Sequence[Rollout]) -> list[RewardModel]:
    """As the plugin is handed them, with what is known of the rollouts. Raises StageError where weights were pruned."""
    return [_model(session, policy, rollouts) for policy in models_before(session, round, step)]


def _model(session: Session, policy: Policy, rollouts: Sequence[Rollout]) -> RewardModel:
    _check_weights(policy)
    reference = _reference(session, policy)
    return RewardModel(
        policy.name,
        policy.name.rpartition("/")[2],
        stored_policy(session, policy, rollouts if reference else ()),
        None if reference is None else stored_policy(session, reference, rollouts),
        _beta(policy),
    )


def _check_weights(model: Policy) -> None:
    if is_pruned(model.detail):
        raise StageError(f"the weights of the reward model {model.name} were taken out by `strop gc`: train it again")


def _reference(session: Session, model: Policy) -> Policy | None:
    """What an implicit reward model is held against; None for one with a head."""
    if model.reference_policy_id is None or json.loads(model.detail or "{}").get("head") is not None:
        return None
    return session.policy(model.reference_policy_id)


def _beta(model: Policy) -> float:
    return float(json.loads(model.detail or "{}").get("beta", 1.0))
