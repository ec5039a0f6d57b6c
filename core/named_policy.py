"""Which policy a stage's setting `policy` names, and what the lake knows of rollouts under it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from strop.core.engine import NamedPolicy
from strop.core.gating import policy_called
from strop.core.recipe import Step
from strop.core.session import Session
from strop.storage.checkpoints import hash_directory
from strop.storage.errors import PluginError, StageError, did_you_mean
from strop.storage.tables import Policy, Rollout

NAMES = ("base", "previous", "champion")
KNOWN = """
SELECT rollout_id, arg_min(logps, stage_run_id) FROM token_logps
WHERE policy_hash = ? AND rollout_id IN (SELECT unnest(?::BIGINT[])) GROUP BY rollout_id"""


def named_policy(session: Session, step: Step, rollouts: Sequence[Rollout]) -> NamedPolicy:
    """The step's policy: one of `NAMES`, or the directory of a checkpoint. Raises StageError where it is neither."""
    name = getattr(step.config, "policy", None)
    if not isinstance(name, str):
        raise PluginError(
            f"{step.kind} plugin {step.plugin.name!r} asks for `policy`: its config needs a setting `policy: str`"
        )
    policy_id: int | None
    if name in NAMES:
        policy = policy_called(session, name)
        directory, found, policy_id = session.directory(policy), policy.content_hash, policy.policy_id
    else:
        directory = Path(name).expanduser()
        if not (directory / "config.json").is_file() and not (directory / "adapter_config.json").is_file():
            raise StageError(
                f"policy: {name!r} is neither {', '.join(NAMES)} nor the directory of a checkpoint (there is no "
                f"config.json in it){did_you_mean(name, NAMES)}"
            )
        directory = directory.resolve()
        found = _hash_of(directory)
        policy_id = next((policy.policy_id for policy in session.policies() if policy.content_hash == found), None)
    return NamedPolicy(directory, found, policy_id, known_logps(session, found, rollouts))


def stored_policy(session: Session, policy: Policy, rollouts: Sequence[Rollout]) -> NamedPolicy:
    """A policy of the lake, with what is known of the rollouts under it."""
    known = known_logps(session, policy.content_hash, rollouts)
    return NamedPolicy(session.directory(policy), policy.content_hash, policy.policy_id, known)


def known_logps(session: Session, policy_hash: str, rollouts: Sequence[Rollout]) -> dict[int, list[float]]:
    """Log-probabilities of the rollouts' tokens, by rollout id, as far as the lake has them under that policy."""
    return dict(session.lake.query(KNOWN, [policy_hash, [rollout.rollout_id for rollout in rollouts]]))


@cache
def _hash_of(directory: Path) -> str:
    """Once a process: a teacher's files may be large."""
    return hash_directory(directory)
