"""What the runs gave, as docs/methods.json keeps it: held-out figures of every method, seed and round."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from strop.core.recipe import METHODS, Recipe, default_run_id
from strop.core.round import Event, run_loop
from strop.storage.errors import StropError
from strop.storage.lake import open_lake
from strop.storage.tables import Decision, Metric

FAMILIES = {
    "right completions": ("star", "rest_em", "raft", "rft"),
    "pairs": ("dpo", "dpo_nll", "dpo_base", "dpo_champion", "simpo", "redi"),
    "groups, clipped ratio": ("grpo", "dr_grpo", "dapo", "rloo", "bnpo", "w_reinforce", "ppo"),
    "groups, others": ("nft", "kto", "topr", "opmd", "a_lol", "hpt", "prime", "oreal"),
}
"""The methods by what they learn from, in the order they are run in."""
NAMES = ("pass@1", "pass@8", "diversity")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a method. Each list has the base first, then a figure a round."""

    method: str
    seed: int
    recipe: str
    """Hash of the recipe."""
    figures: dict[str, list[float]]
    """By name of the metric: of the policy that the run would hand over after the round."""
    seconds: float
    stopped: str | None = None
    """Why the run ended before its last round."""

    @property
    def rounds(self) -> int:
        """Rounds after which the policy was examined, the base aside; -1 where not even that was."""
        return len(self.figures["pass@1"]) - 1


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} - {self.high:.2f})"


def measured(recipe: Recipe, lake: Path) -> Run:
    """Run the recipe, or go on with it, and read what it learnt. A stage that fails ends this run alone."""
    started = f"{recipe.name} seed {recipe.seed}"

    def show(event: Event) -> None:
        if event.kind == "round_done":
            value = event.detail.get("metrics", {}).get("pass@1", [float("nan")])[0]
            print(f"{started} round {event.round}: pass@1 {value:.3f}, {event.seconds:.0f} s", flush=True)

    stopped, run_id = None, default_run_id(recipe)
    try:
        run_loop(recipe, lake=lake, run_id=run_id, on_event=show)
    except StropError as error:
        stopped = str(error)
        print(f"{started} stopped: {stopped}", flush=True)
    with open_lake(lake, read_only=True) as opened:
        metrics = opened.rows(Metric, "run_id = ? AND slice = 'heldout'", [run_id])
        gates = opened.rows(Decision, "run_id = ? AND subject_kind = 'policy'", [run_id])
        [[seconds]] = opened.query("SELECT coalesce(sum(seconds), 0) FROM stage_runs WHERE run_id = ?", [run_id])
    found = {(m.name, m.round): m.value for m in metrics if m.value is not None}
    handed = _handed_over(max((at for _, at in found), default=-1), gates)
    figures = {name: [round(found[name, at], 4) for at in handed] for name in NAMES}
    return Run(recipe.name, recipe.seed, recipe.identity(), figures, round(float(seconds), 1), stopped)


def _handed_over(last: int, gates: list[Decision]) -> list[int]:
    """After each round, the round whose policy is the champion: the newest one where no gate decides."""
    promoted = {gate.round for gate in gates if gate.keep}
    found: list[int] = []
    for at in range(last + 1):
        found.append(at if at == 0 or not gates or at in promoted else found[-1])
    return found


def read(path: Path) -> list[Run]:
    """The runs a file keeps; none where there is no file."""
    return [Run(**row) for row in json.loads(path.read_text())] if path.is_file() else []


def write(path: Path, runs: list[Run]) -> None:
    """One run a line, so that a run added is a line added."""
    rows = [json.dumps(asdict(run)) for run in sorted(runs, key=lambda r: (place(r.method), r.seed))]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def methods() -> list[str]:
    """The shipped methods, family by family."""
    return sorted((path.stem for path in METHODS.glob("*.yaml")), key=place)


def place(method: str) -> tuple[int, str]:
    """Where a method stands."""
    names = [name for family in FAMILIES.values() for name in family]
    return (names.index(method) if method in names else len(names)), method


def over_seeds(runs: list[Run], method: str, name: str) -> list[Spread]:
    """A figure of the base and after each round, as far as every seed came."""
    curves = [run.figures[name] for run in runs if run.method == method and run.rounds >= 0]
    return [Spread(mean(values), min(values), max(values)) for values in zip(*curves, strict=False)]
