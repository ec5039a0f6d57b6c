"""Which policies are champion, retired, rejected or candidate, told from what the gate of one run said of them.

The `status` a policy is stored with is that of the run which trained it. A rerun that starts from such a policy, or
examines it again, has a gate of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from strop.storage.tables import Decision, Policy


def standing(policies: Sequence[Policy], decisions: Iterable[Decision], *, gated: bool) -> dict[int, str]:
    """Status by policy id; `policies` oldest first, the base at their head. Without a gate the newest is champion."""
    said: dict[int, bool] = {}
    for decision in decisions:
        said[decision.subject_id] = said.get(decision.subject_id, False) or decision.keep
    status: dict[int, str] = {}
    champion: int | None = None
    for policy in policies:
        id = policy.policy_id
        if champion is None or said.get(id, not gated):
            if champion is not None:
                status[champion] = "retired"
            status[id], champion = "champion", id
        else:
            status[id] = "rejected" if id in said else "candidate"
    return status
