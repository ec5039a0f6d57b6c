"""The `control` stage: what it proposes in one round overrides the recipe in the next."""

from __future__ import annotations

import json
import time

from strop.core.events import Event, StepResult
from strop.core.execute import run_plugin
from strop.core.plugin import Returned
from strop.core.recipe import Step
from strop.core.session import Session
from strop.core.steps import round_data
from strop.storage.errors import PluginError
from strop.storage.tables import PluginState


def control_step(session: Session, round: int, step: Step) -> StepResult:
    """Ask the controller and store its overrides, with its state, as one row."""
    if session.committed(round, step.label):
        return session.skipped(step, round)
    started = time.perf_counter()
    session.emit(Event("stage_start", session.run_id, round, step.label))
    run = session.stage_run(round, step, upstream=session.upstream(round, step))
    kept = session.state_of(step, round) or {}
    handles = {**round_data(session, round, step), "seed": run.seed, "round": round, "state": kept.get("state")}
    result = run_plugin(step.plugin, step.config, handles)
    overrides, state = (result.rows, result.state) if isinstance(result, Returned) else (result, None)
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise PluginError(
            f"control {step.plugin.name!r} must return a dict of overrides such as {{'generate.temperature': 0.8}}, "
            f"or Returned of one and its state; it returned {type(result).__name__}"
        )
    try:
        texts = [f"{key}={json.dumps(value)}" for key, value in sorted(overrides.items())]
    except (TypeError, ValueError) as error:
        raise PluginError(f"control {step.plugin.name!r}: overrides must be plain JSON values: {error}") from error
    session.recipe.override(texts)  # refused here, in the round that proposes it, not in the next
    row = session.state_row(run, step, {"overrides": texts, "state": state})
    session.commit(run, counts={"plugin_state": 1}, seconds=time.perf_counter() - started, rows={"plugin_state": [row]})
    return session.finished(step, round, started)


def overrides_for(session: Session, round: int) -> list[str]:
    """What the controllers of the round before proposed for this one."""
    found = []
    for step in session.recipe.round:
        if step.kind == "control":
            for row in session.read(PluginState, "stage = ? AND round = ?", [step.label, round - 1]):
                found.extend(json.loads(row.state_json)["overrides"])
    return found
