"""What a rerun takes from other runs: which of their shards stand for which stages of its rounds.

The shards of a stage before `--from` are not run again: the new run's ledger gets a row for each that names the stage
run whose rows stand for it (`reuses`), and every read of the run's rows follows it (see `visible`). Nothing is copied.
Round 0 (problems, base, examination) comes from the first source; the problems that re-used rollouts answer come along
under the label `problems`, from whichever run and round made them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from strop.core.recipe import Recipe, Step, canonical_json
from strop.core.stored import kind_of
from strop.core.visible import Ledger, made_by, stage_of
from strop.storage.lake import Lake
from strop.storage.tables import Run, StageRun

PROBLEMS = "problems"
"""Label in round 0 of the shards that made problems of re-used rollouts."""

ANSWERED = """
SELECT DISTINCT problem_id >> 20 FROM (
    SELECT problem_id, stage_run_id FROM plans UNION ALL SELECT problem_id, stage_run_id FROM rollouts
) WHERE stage_run_id IN (SELECT unnest(?::BIGINT[]))
"""


@dataclass(frozen=True, slots=True)
class SourceRound:
    """A round of a run."""

    run: str
    round: int


@dataclass(frozen=True, slots=True)
class Reuse:
    """Which rounds are re-used, and up to where."""

    start: str
    """Label of the first stage that runs afresh."""
    rounds: tuple[tuple[SourceRound, ...], ...]
    """What stands for each round of the new run, from 1; more than one where rounds are pooled."""

    @property
    def runs(self) -> list[str]:
        """The source runs, in the order they are first named."""
        return list(dict.fromkeys(source.run for pooled in self.rounds for source in pooled))

    def to_json(self) -> str:
        """As `runs.sources_json` keeps it."""
        rounds = [[{"run": source.run, "round": source.round} for source in pooled] for pooled in self.rounds]
        return canonical_json({"from": self.start, "rounds": rounds})

    @classmethod
    def of(cls, run: Run) -> Reuse | None:
        """What a run re-uses; None for one that is no rerun."""
        if run.parent_run_id is None or run.sources_json is None:
            return None
        found = json.loads(run.sources_json)
        rounds = (tuple(SourceRound(s["run"], s["round"]) for s in pooled) for pooled in found["rounds"])
        return cls(found["from"], tuple(rounds))

    def __str__(self) -> str:
        pooled = [" + ".join(f"{source.run}@{source.round}" for source in sources) for sources in self.rounds]
        return f"{', '.join(pooled)} from {self.start}"


@dataclass(frozen=True)
class SourceRun:
    """A run whose shards are re-used."""

    run: Run
    ledger: Ledger

    @cached_property
    def canonical(self) -> dict[str, Any]:
        """Its recipe."""
        found: dict[str, Any] = json.loads(self.run.recipe_json)
        return found

    @cached_property
    def stages(self) -> list[tuple[str, dict[str, Any]]]:
        """Labels and settings of its round."""
        return [(label, settings) for item in self.canonical.get("round", []) for label, settings in item.items()]

    def committed(self, round: int, label: str) -> bool:
        """Whether every shard of the stage is in the ledger."""
        found = self.ledger.get((round, label), {})
        return bool(found) and len(found) == next(iter(found.values())).shards

    def shards(self, round: int, label: str) -> dict[str, list[StageRun]]:
        """The shards of a stage, and of what verified it again, by label."""
        there = {name: self.ledger[round, name] for name in self._names.get((round, label), ())}
        return {name: [by[i] for i in sorted(by)] for name, by in there.items()}

    @cached_property
    def _names(self) -> dict[tuple[int, str], list[str]]:
        found: dict[tuple[int, str], list[str]] = {}
        for round, name in self.ledger:
            found.setdefault((round, stage_of(name)), []).append(name)
        return found


def ledger_of(lake: Lake, run_id: str) -> Ledger:
    """(round, label) -> shard -> its committed row."""
    found: Ledger = {}
    for run in lake.committed(run_id).values():
        found.setdefault((run.round, run.stage), {})[run.shard] = run
    return found


def source_run(lake: Lake, run: Run) -> SourceRun:
    """The run with its ledger as it stands."""
    return SourceRun(run, ledger_of(lake, run.run_id))


@dataclass(frozen=True)
class Reusing:
    """The sources of a rerun at hand, and which of their shards stand for what."""

    lake: Lake
    recipe: Recipe
    reuse: Reuse
    sources: dict[str, SourceRun]

    @property
    def first(self) -> SourceRun:
        """The run that gives round 0."""
        return self.sources[self.reuse.runs[0]]

    def shards(self, round: int, label: str) -> dict[str, list[StageRun]] | None:
        """The shards that stand for a stage of a round, by the label they get; None where the stage runs afresh."""
        if round == 0:
            return self._prepared(label)
        labels = [step.label for step in self.recipe.round]
        at = labels.index(label)
        if round > len(self.reuse.rounds) or at >= labels.index(self.reuse.start):
            return None
        found: dict[str, list[StageRun]] = {}
        for source in self.reuse.rounds[round - 1]:
            theirs = self.sources[source.run].stages[at][0]
            for name, shards in self.sources[source.run].shards(source.round, theirs).items():
                found.setdefault(label + name.removeprefix(theirs), []).extend(shards)
        return found

    def round_shards(self, round: int) -> list[StageRun]:
        """Every re-used shard of a round from 1 on."""
        found = [self.shards(round, step.label) or {} for step in self.recipe.round]
        return [run for by in found for shards in by.values() for run in shards]

    def problem_shards(self) -> list[StageRun]:
        """Shards that made problems of re-used plans and rollouts, and are re-used neither in round 0 nor earlier."""
        there = {made_by(run) for task in self.recipe.tasks for run in self._named(self.first, f"task.{task.name}")}
        wanted: set[int] = set()
        for number in range(1, len(self.reuse.rounds) + 1):
            ids = [made_by(run) for run in self.round_shards(number)]
            wanted |= {row[0] for row in self.lake.query(ANSWERED, [ids])} - there
            there |= set(ids)
        by_id = "stage_run_id IN (SELECT unnest(?::BIGINT[]))"
        found = self.lake.rows(StageRun, by_id, [sorted(wanted)]) if wanted else []
        return sorted(found, key=lambda run: (run.run_id, run.round, run.stage, run.shard))

    def _prepared(self, label: str) -> dict[str, list[StageRun]] | None:
        if label == PROBLEMS:
            return {PROBLEMS: self.problem_shards()}
        if label == "base" or label.startswith("task."):
            return {label: self._named(self.first, label)}
        return self._examined.get(label)

    @staticmethod
    def _named(source: SourceRun, label: str) -> list[StageRun]:
        return [run for shards in source.shards(0, label).values() for run in shards]

    @cached_property
    def _examined(self) -> dict[str, dict[str, list[StageRun]]]:
        """The base's examination, up to the first stage of it that would now say something else.

        A verifier that is run afresh in the rounds also judges the base afresh: the gate compares like with like.
        """
        found: dict[str, dict[str, list[StageRun]]] = {}
        for step in self.recipe.examine:
            theirs = next((name for name, settings in self.first.stages if _same(step, name, settings)), None)
            if theirs is None or not self.first.committed(0, theirs) or self._afresh(step, theirs):
                break
            shards = self.first.shards(0, theirs)
            found[step.label] = {step.label + n.removeprefix(theirs): runs for n, runs in shards.items()}
        return found

    def _afresh(self, step: Step, theirs: str) -> bool:
        versions = {run.plugin_version for run in self.first.ledger[0, theirs].values()}
        theirs_was = self.recipe.as_today(self.first.canonical)["engine"]
        engine = step.label == "heldout" and self.recipe.engine.settings() != theirs_was
        asked = step.label in {self.reuse.start, f"heldout.{self.reuse.start}"}
        return asked or engine or versions != {step.plugin.mark.version}


def _same(step: Step, label: str, settings: dict[str, Any]) -> bool:
    """Whether a stored stage is this one; its label may differ, as `verify` is `verify.answer` beside another."""
    heldout = (label.split(".")[0] == "heldout") == step.label.startswith("heldout")
    kind = kind_of(label.removeprefix("heldout.")) if label != "heldout" else "generate"
    return heldout and kind == step.kind and settings == json.loads(canonical_json(step.settings()))


def reusing(lake: Lake, recipe: Recipe, reuse: Reuse) -> Reusing:
    """The sources as the lake has them now."""
    runs: Sequence[Run] = lake.rows(Run, "run_id IN (SELECT unnest(?::VARCHAR[]))", [reuse.runs])
    return Reusing(lake, recipe, reuse, {run.run_id: source_run(lake, run) for run in runs})


def rows_of(lake: Lake, shards: Iterable[StageRun]) -> dict[str, int]:
    """Rows by table of the stage runs that wrote what these shards stand for."""
    ids = sorted({made_by(run) for run in shards})
    found = lake.query("SELECT rows_json FROM stage_runs WHERE stage_run_id IN (SELECT unnest(?::BIGINT[]))", [ids])
    counts: dict[str, int] = {}
    for (text,) in found:
        for table, n in json.loads(text).items():
            counts[table] = counts.get(table, 0) + n
    return counts
