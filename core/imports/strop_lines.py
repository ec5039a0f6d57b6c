"""Rollouts as `strop export rollouts strop` writes them, or by hand: one JSON object a line.

    {"problem": {"prompt": "2+3=", "reference": "5"}, "completion": "5", "scores": [{"scorer": "mine", "value": 1.0}]}

`problem` (text, or an object with `prompt`) and `completion` are required; every other column of `problems`,
`rollouts` and `scores` may be given. Ids tell which lines belong together and are given anew; what is a column of the
lake's own making (`run_id`, `stage_run_id`, `policy_id`, `context_id`, `plan_id`) is left behind.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.core.imports.lines import Wrong, compact, no_files, records, value
from strop.core.imports.sample import Complain, Format, Options, Sample
from strop.core.problems import content_key
from strop.storage.errors import did_you_mean
from strop.storage.tables import Problem, Rollout, Row, Score, columns

PROBLEM = {"task", "split", "category", "level", "prompt", "messages", "reference", "aux", "origin"}
_LEFT = {"run_id", "stage_run_id", "problem_id", "policy_id", "plan_id", "context_id", "group_id", "rollout_id"}
_LEFT |= {"round", "parent_rollout_id"}
ROLLOUT = {column.name for column in columns(Rollout)} - _LEFT
SCORE = {column.name for column in columns(Score)} - {"score_id", "subject_id", "problem_id", "supersedes"} - _LEFT
_BESIDE = {"problem", "scores", "policy", "context"}
TYPES: dict[type[Row], dict[str, str]] = {
    kind: {c.name: c.sql_type for c in columns(kind)} for kind in (Problem, Rollout, Score)
}


def find(folder: Path) -> list[Path]:
    """The .jsonl files of a folder. Raises DataError when there are none."""
    if found := sorted(folder.glob("*.jsonl")):
        return found
    raise no_files(folder, "*.jsonl")


def read(files: Sequence[Path], options: Options, complain: Complain) -> Iterator[Sample]:
    """Samples in the order of the files and lines."""
    for path in files:
        for number, found in records(path, complain):
            try:
                sample = _sample(found, options)
            except Wrong as error:
                complain(path, number, str(error))
                continue
            yield sample


def _sample(found: Mapping[str, Any], options: Options) -> Sample:
    strange = set(found) - ROLLOUT - _LEFT - _BESIDE
    if strange:
        name = sorted(strange)[0]
        raise Wrong(f"no field {name!r} is known{did_you_mean(name, ROLLOUT | _BESIDE)}; put it into `detail` as JSON")
    problem = _problem(found, options)
    if not isinstance(found.get("completion"), str):
        raise Wrong("a line needs `completion`, the sampled text")
    rollout = _row(Rollout, found, ROLLOUT)
    rollout = {"prompt": problem.prompt, "sample_index": -1, **rollout, "problem_id": 0, "split": problem.split}
    if found.get("context") is not None:
        rollout["detail"] = rollout.get("detail") or compact({"context": found["context"]})
    given = found.get("scores") or []
    if not isinstance(given, list) or not all(isinstance(score, dict) for score in given):
        raise Wrong("`scores` must be a list of objects")
    known = value(found.get("problem_id"), "BIGINT", "problem_id")
    origin = value(found.get("run_id"), "VARCHAR", "run_id") or ""
    policy = options.model or (value(found.get("policy"), "VARCHAR", "policy") or "external").removeprefix(f"{origin}/")
    ref: Hashable = ("id", known) if known else ("content", problem.task, content_key(problem))
    return Sample(
        problem_ref=ref,
        problem=problem,
        rollout=Rollout(**rollout),
        scores=tuple(_score(score) for score in given),
        policy=policy,
        round=_round(found),
        group=value(found.get("group_id"), "BIGINT", "group_id") or None,
        ref=value(found.get("rollout_id"), "BIGINT", "rollout_id"),
        parent=value(found.get("parent_rollout_id"), "BIGINT", "parent_rollout_id"),
    )


def _round(found: Mapping[str, Any]) -> int:
    given = value(found.get("round"), "INTEGER", "round")
    if given is not None and given < 0:
        raise Wrong(f"'round' counts from 0, got {given}")
    return 1 if given is None else int(given)


def _problem(found: Mapping[str, Any], options: Options) -> Problem:
    given = found.get("problem")
    if isinstance(given, str):
        given = {"prompt": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("prompt"), str):
        raise Wrong("a line needs `problem`: its text, or an object with `prompt`")
    strange = set(given) - PROBLEM
    if strange:
        raise Wrong(f"a problem has no field {sorted(strange)[0]!r}{did_you_mean(sorted(strange)[0], PROBLEM)}")
    fields = _row(Problem, given, PROBLEM)
    split = options.split or fields.get("split") or value(found.get("split"), "VARCHAR", "split") or "train"
    if split not in ("train", "heldout"):
        raise Wrong(f"'split' is 'train' or 'heldout', got {split!r}")
    return Problem(**{**fields, "task": options.task or fields.get("task") or "import", "split": split})


def _score(given: Mapping[str, Any]) -> Score:
    strange = set(given) - SCORE
    if strange:
        raise Wrong(f"a score has no field {sorted(strange)[0]!r}{did_you_mean(sorted(strange)[0], SCORE)}")
    fields = _row(Score, given, SCORE)
    if not fields.get("scorer"):
        raise Wrong("a score needs `scorer`, the name of what gave it")
    if fields.get("verdict") not in (None, "pass", "fail", "error"):
        raise Wrong(f"'verdict' is 'pass', 'fail' or 'error', got {fields['verdict']!r}")
    if fields.get("subject_kind", "rollout") not in ("rollout", "step", "token"):
        raise Wrong(f"'subject_kind' is 'rollout', 'step' or 'token', got {fields['subject_kind']!r}")
    return Score(**fields, subject_id=0)


def _row(kind: type[Row], given: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """The fields that are there and not null, each of its column's type."""
    found = {name: value(item, TYPES[kind][name], name) for name, item in given.items() if name in names}
    return {name: item for name, item in found.items() if item is not None}


FORMAT = Format("strop", "JSON lines of `strop export rollouts strop`, or by hand", find, read)
