"""What a command prints of a run: its rounds, its plan, and what to try next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from strop.flows import display, output
from strop.flows.runs import Round, RunState, pass_at_most

if TYPE_CHECKING:
    from strop.core.plan import Plan
    from strop.core.recipe import Recipe

SAID = {"promote": "new champion", "keep": "kept the old", "roll_back": "rolled back", "stop": "stopped the run"}
UNTRAINED = "nothing to train on"


def print_rounds(state: RunState) -> None:
    """A table of the run's rounds, on the held-out problems; columns that no round has are left out."""
    rounds = [state.rounds[r] for r in sorted(state.rounds)]
    names = metric_names(rounds)
    columns: dict[str, list[str]] = {"round": ["base" if row.round == 0 else str(row.round) for row in rounds]}
    for name in names:
        columns[name] = [metric(row, name) for row in rounds]
        if name == "pass@1":
            columns["95 % interval"] = [interval(row, name) for row in rounds]
    columns["kept"] = ["" if row.kept is None else f"{row.kept:,} of {row.judged:,}" for row in rounds]
    columns["gate"] = [UNTRAINED if untrained(row) else SAID.get(row.action or "", "") for row in rounds]
    columns["time"] = [display.duration(row.seconds) for row in rounds]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    right = [i for i, name in enumerate(shown) if name not in {"round", "gate"}]
    output.table(list(shown), list(zip(*shown.values(), strict=True)), right=right)


def untrained(row: Round) -> bool:
    """Whether the round came as far as training and had no example: it made no policy."""
    return row.policy is None and any(stage.split(".")[0] == "train" for stage in row.stages)


def metric_names(rounds: list[Round]) -> list[str]:
    """The metrics to show: pass@1, the pass@k of the largest k, diversity, and at most three more."""
    there = list(dict.fromkeys(name for row in rounds for name in row.metrics))
    first = [name for name in ("pass@1", pass_at_most(rounds), "diversity") if name in there]
    others = [name for name in there if name not in first and not name.startswith("pass@")]
    return [name for name in first if name is not None] + others[:3]


def interval(row: Round, name: str) -> str:
    """The 95 % interval of a metric, empty where it has none."""
    _, low, high = row.metrics.get(name, (None, None, None))
    return "" if low is None or high is None else f"{low:.3f} - {high:.3f}"


def metric(row: Round, name: str) -> str:
    """A metric of a round in three digits, empty where it has none."""
    value = row.metrics.get(name, (None, None, None))[0]
    return "" if value is None else f"{value:.3f}"


def print_hints(state: RunState, lake: Path) -> None:
    """Three commands worth trying now."""
    at = "" if lake == Path("lake") else f" --lake {shlex.quote(str(lake))}"
    champion = state.champion or ""
    output.say(
        f"""
champion: {champion}
try next:
  strop status{at}
  strop sql{at} "SELECT round, verdict, count(*) FROM scores GROUP BY ALL ORDER BY ALL"
  strop lineage{at} {shlex.quote(champion)}"""
    )


def print_plan(recipe: Recipe, plan: Plan) -> None:
    """What `strop run` would do."""
    problems = ", ".join(f"{n:,} {split}" for split, n in plan.problems.items())
    print(f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name)
    print(f"run {plan.run_id}: {plan.rounds} rounds, {plan.committed_rounds} of them in the lake already")
    print(f"problems: {problems}\n")
    lines = [
        [s.label, s.plugin, "" if s.rollouts is None else f"{s.rollouts:,}", f"{s.committed_rounds}/{plan.rounds}"]
        for s in plan.stages
    ]
    output.table(["stage", "plugin", "rollouts a round", "rounds done"], lines, right=[2, 3])
    rollouts = "as many as its plan says" if plan.rollouts is None else f"{plan.rollouts:,}"
    tokens = "" if plan.tokens is None else f", {display.number(plan.tokens)} tokens ({plan.tokens_basis})"
    time = "not known yet: this lake has no round of it" if plan.estimated_seconds is None else ""
    print(f"\nto sample: {rollouts} rollouts{tokens}")
    print(f"time: {time or 'about ' + display.duration(plan.estimated_seconds or 0.0)}")
