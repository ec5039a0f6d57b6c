"""What a policy makes of the tokens of rollouts: what is known already, and the rest from the engine."""

from __future__ import annotations

from collections.abc import Sequence

from strop.core.engine import NamedPolicy
from strop.plugins.verify._asked import asked
from strop.storage.errors import PluginError
from strop.storage.tables import Rollout, TokenLogps


def weighed(policy: NamedPolicy, rollouts: Sequence[Rollout]) -> tuple[dict[int, list[float] | str], list[TokenLogps]]:
    """Log-probabilities, or the reason why there are none, by rollout id; and rows of those that were not known."""
    found: dict[int, list[float] | str] = {
        r.rollout_id: list(policy.known[r.rollout_id]) if _known(policy, r) else "it has no tokens" for r in rollouts
    }
    unknown = [r for r in rollouts if r.token_ids and not _known(policy, r)]
    if not unknown:
        return found, []
    engine = policy.engine()
    if "score" not in engine.capabilities:
        raise PluginError(f"the engine {engine.name!r} cannot score given tokens: take one that can, `engine: hf`")
    pairs = [(r.prompt, r.token_ids or []) for r in unknown]
    found.update(zip((r.rollout_id for r in unknown), asked(engine.score, pairs), strict=True))
    rows = []
    for rollout in unknown:
        if not isinstance(logps := found[rollout.rollout_id], str):
            rows.append(
                TokenLogps(
                    rollout_id=rollout.rollout_id,
                    policy_hash=policy.hash,
                    policy_id=policy.policy_id,
                    logps=logps,
                    engine=engine.name,
                )
            )
    return found, rows


def _known(policy: NamedPolicy, rollout: Rollout) -> bool:
    return len(policy.known.get(rollout.rollout_id, ())) == len(rollout.token_ids or ()) > 0
