"""The `gate` stage: candidate against champion on their held-out examinations."""

from __future__ import annotations

import time

from strop.core.events import Event, StepResult
from strop.core.execute import run_plugin
from strop.core.pass_rates import pass_rates
from strop.core.plugin import Examined, Verdict
from strop.core.recipe import Step
from strop.core.session import Session
from strop.storage.errors import PluginError
from strop.storage.tables import Decision, Metric, Policy, StageRun

ACTIONS = ("promote", "keep", "roll_back", "stop")
UNTRAINED = "nothing to train on: the round has no example"
"""Why a gate keeps the champion where the trainer had no work."""


def gate_step(session: Session, round: int, step: Step) -> StepResult:
    """Ask the gate, write its decision and the policies' new status in one transaction.

    Where the round had nothing to train on there is no candidate: the champion stays, and the gate is not asked.
    """
    if session.committed(round, step.label):
        return session.skipped(step, round)
    started = time.perf_counter()
    session.emit(Event("stage_start", session.run_id, round, step.label))
    run = session.stage_run(round, step, upstream=session.upstream(round, step))
    candidate, champion = session.candidate(round), session.champion()
    if session.untrained(round):
        verdict, status = Verdict("keep", UNTRAINED), {}
    else:
        verdict = _asked(session, run, step, candidate, champion)
        status = {candidate.policy_id: "champion" if verdict.action == "promote" else "rejected"}
    promoted = verdict.action == "promote"
    if promoted:
        status[champion.policy_id] = "retired"
    decision = Decision(
        run_id=session.run_id,
        round=round,
        stage_run_id=run.stage_run_id,
        decision_id=run.stage_run_id << 20,
        subject_kind="policy",
        subject_id=candidate.policy_id,
        decider=step.name,
        keep=promoted,
        action=verdict.action,
        reason=verdict.reason,
    )
    session.commit(
        run,
        counts={"decisions": 1},
        seconds=time.perf_counter() - started,
        rows={"decisions": [decision]},
        policy_status=status,
    )
    return session.finished(step, round, started)


def _asked(session: Session, run: StageRun, step: Step, candidate: Policy, champion: Policy) -> Verdict:
    handles = {
        "candidate": _examined(session, candidate),
        "champion": _examined(session, champion),
        "seed": run.seed,
        "round": run.round,
    }
    verdict = run_plugin(step.plugin, step.config, handles)
    if not isinstance(verdict, Verdict) or verdict.action not in ACTIONS:
        raise PluginError(
            f"gate {step.plugin.name!r} must return a Verdict with one of {', '.join(ACTIONS)}; it returned {verdict!r}"
        )
    return verdict


def rolled_back(session: Session, policy: Policy) -> bool:
    """Whether the gate said of this candidate that nothing may start from it."""
    return any(d.action == "roll_back" for d in session.read(Decision, "subject_id = ?", [policy.policy_id]))


def policy_called(session: Session, which: str) -> Policy:
    """The policy that a setting calls base, previous or champion; one that was rolled back is nobody's start."""
    policies = session.policies()
    if which == "base":
        return policies[0]
    return session.champion() if which == "champion" or rolled_back(session, policies[-1]) else policies[-1]


def stopped(session: Session) -> str | None:
    """The reason a gate gave for ending the run, if one did."""
    found = session.read(Decision, "subject_kind = 'policy' AND action = 'stop'")
    return found[-1].reason if found else None


def _examined(session: Session, policy: Policy) -> Examined:
    return Examined(
        policy.policy_id,
        session.read(Metric, "policy_id = ?", [policy.policy_id]),
        pass_rates(session, until=policy.round, split="heldout", policy_id=policy.policy_id),
    )
