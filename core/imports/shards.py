"""The shards of an import: which rows they hold under which ids, and the commit of each."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import socket
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from strop.core.imports.sample import Item, Sample
from strop.core.problems import problem_key
from strop.core.recipe import canonical_json
from strop.core.seeds import derive
from strop.storage.errors import DataError
from strop.storage.ids import digest, shard_number, stamp
from strop.storage.lake import Lake
from strop.storage.tables import BY_NAME, Example, Policy, Problem, Row, Run, Score, StageRun

SHARD = 4096
"""Rollouts committed together: what a kill can cost."""
PROBLEMS_SHARD = 65536

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Seen:
    """What the first reading finds."""

    problems: dict[Hashable, Problem] = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)
    shards: list[tuple[int, int]] = field(default_factory=list)
    """(round, samples or examples) of each shard, in order."""
    refs: dict[int, tuple[int, int]] = field(default_factory=dict)
    """`Sample.ref` -> shard and place in it; only where a sample has a parent."""
    skipped: list[tuple[str, int, str]] = field(default_factory=list)
    scores: int = 0
    examples: int = 0


class Shards:
    """The shards of one import."""

    def __init__(self, lake: Lake, format: str, run_id: str, sources: str, seen: Seen) -> None:
        self.lake, self.format, self.run_id, self.sources, self.seen = lake, format, run_id, sources, seen
        self.fingerprint = digest(sources)
        self.ledger = lake.committed(run_id)
        self.new = self.done = 0
        self.policy_ids: dict[str, int] = {}
        self.problem_ids: dict[Hashable, int] = {}
        at: dict[int, int] = {}
        self.places: list[tuple[int, int]] = []
        """(round, shard of that round) of each shard of samples."""
        for round, _ in seen.shards:
            self.places.append((round, at.get(round, 0)))
            at[round] = at.get(round, 0) + 1
        self.totals = at

    def begin(self) -> None:
        """The rows of the run and its policies."""
        run = self._stage_run("run", 0, 0, 1)
        names = sorted(self.seen.policies, key=lambda name: name != "external")  # the last one is the champion
        policies = [
            Policy(
                name=f"{self.run_id}/{name}",
                status="champion" if i == len(names) - 1 else "retired",
                kind="external",
                path="",
                content_hash="",
            )
            for i, name in enumerate(names)
        ]
        row = Run(
            recipe=f"import:{self.format}",
            recipe_json=canonical_json({"name": f"import:{self.format}"}),
            recipe_hash=self.fingerprint[:16],
            seed=0,
            strop_version=metadata.version("strop"),
            created_at=datetime.datetime.now(datetime.UTC),
            sources_json=self.sources,
        )
        rows = stamp({"runs": [row], "policies": policies}, run_id=self.run_id, round=0, stage_run_id=run.stage_run_id)
        self.policy_ids = {
            name: policy.policy_id
            for name, policy in zip(names, rows["policies"], strict=True)
            if isinstance(policy, Policy)
        }
        self._commit(run, rows)

    def problems(self) -> None:
        """The problems, each once."""
        refs = list(self.seen.problems)
        shards = max(1, -(-len(refs) // PROBLEMS_SHARD))
        for shard in range(shards if refs else 0):
            run = self._stage_run("import.problems", 0, shard, shards)
            mine = refs[shard * PROBLEMS_SHARD : (shard + 1) * PROBLEMS_SHARD]
            problems = [self.seen.problems[ref] for ref in mine]
            keyed = [dataclasses.replace(p, problem_key=problem_key(p)) for p in problems]
            rows = stamp({"problems": keyed}, run_id=self.run_id, round=0, stage_run_id=run.stage_run_id)
            for ref, row in zip(mine, rows["problems"], strict=True):
                assert isinstance(row, Problem)
                self.problem_ids[ref] = row.problem_id
            self._commit(run, rows)

    def samples(self, items: Iterator[Item], progress: Progress | None) -> None:
        """The rollouts with their scores, or the examples, shard by shard."""
        counted: dict[tuple[Hashable, ...], int] = {}
        total = sum(n for _, n in self.seen.shards)
        finished = 0
        for index, (round, size) in enumerate(self.seen.shards):
            run = self._stage_run("import", round, self.places[index][1], self.totals[round])
            members = [item for _, item in zip(range(size), items, strict=False)]
            if len(members) != size or any(item.round != round for item in members if isinstance(item, Sample)):
                raise DataError("the files changed while they were read; run the same command again")
            rows = self._rows(run, members, counted)
            self._commit(run, rows)
            finished += size
            if progress is not None:
                progress("importing", finished, total)

    def _rows(
        self, run: StageRun, members: Sequence[Item], counted: dict[tuple[Hashable, ...], int]
    ) -> dict[str, list[Row]]:
        first = run.stage_run_id << 20
        rollouts: list[Row] = []
        scores: list[Row] = []
        for i, item in enumerate(member for member in members if isinstance(member, Sample)):
            problem_id, policy_id = self.problem_ids[item.problem_ref], self.policy_ids[item.policy]
            key = (item.problem_ref, policy_id, item.group, run.round)
            index = item.rollout.sample_index if item.rollout.sample_index >= 0 else counted.get(key, 0)
            counted[key] = counted.get(key, 0) + 1
            rollouts.append(
                dataclasses.replace(
                    item.rollout,
                    rollout_id=first + i,
                    problem_id=problem_id,
                    policy_id=policy_id,
                    sample_index=index,
                    group_id=derive(0, "group", self.run_id, run.round, policy_id, problem_id, item.group),
                    parent_rollout_id=self._parent(item.parent),
                )
            )
            scores += [self._score(score, first + i, problem_id) for score in item.scores]
        examples = [
            dataclasses.replace(item, builder=f"import:{self.format}") for item in members if isinstance(item, Example)
        ]
        return stamp(
            {"rollouts": rollouts, "scores": scores, "examples": examples},
            run_id=self.run_id,
            round=run.round,
            stage_run_id=run.stage_run_id,
            first=len(rollouts),
        )

    def _score(self, score: Score, rollout_id: int, problem_id: int) -> Score:
        return dataclasses.replace(score, subject_id=rollout_id, problem_id=problem_id)

    def _parent(self, ref: int | None) -> int | None:
        """The new id of a rollout that others refer to; None where the files do not hold it."""
        if ref is None or ref not in self.seen.refs:
            return None
        index, place = self.seen.refs[ref]
        round, shard = self.places[index]
        return (shard_number(self.run_id, round, "import", shard) << 20) + place

    def _stage_run(self, stage: str, round: int, shard: int, shards: int) -> StageRun:
        return StageRun(
            run_id=self.run_id,
            round=round,
            stage_run_id=shard_number(self.run_id, round, stage, shard),
            key=digest("import", self.run_id, self.fingerprint, stage, round, shard, shards),
            stage=stage,
            kind="import",
            shard=shard,
            shards=shards,
            plugin=self.format,
            plugin_version="1",
            config_json=canonical_json(json.loads(self.sources)["options"]),
            upstream=[],
            seed=0,
            rows_json="{}",
            started_at=datetime.datetime.now(datetime.UTC),
            host=socket.gethostname(),
        )

    def _commit(self, run: StageRun, rows: dict[str, list[Row]]) -> None:
        if run.key in self.ledger:
            self.done += 1
            return
        started = time.perf_counter()
        rows = {table: members for table, members in rows.items() if members}
        counts = {table: len(members) for table, members in rows.items()}
        files = {}
        from strop.storage.parquet import write_rows

        for table in list(rows):
            path = self.lake.staging / f"{run.key}-{os.getpid()}-{table}.parquet"
            files[table] = [write_rows(path, BY_NAME[table], rows[table])]
        run = dataclasses.replace(
            run, rows_json=canonical_json(counts), seconds=round(time.perf_counter() - started, 4)
        )
        if self.lake.commit(run, files=files) is None:
            self.done += 1
        else:
            self.new += 1
