"""NeMo-Skills evaluation output: `output-rs0.jsonl`, `output-rs1.jsonl`, ...: one file a sample, one line a problem.

Source: NeMo-Skills (NVIDIA), `nemo_skills/evaluation/metrics`. Line i of every file is problem i, as its own metrics
read them. Verdicts: `symbolic_correct`, `is_correct` and the like are theirs; `judgement` passes where it says
"Judgement: Yes" and fails otherwise, unreadable judgements included, as NeMo-Skills counts them; `proof_status` passes
where it is 'completed'. `reward_model_score` is a graded score. A file without problem texts gets `line i` for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from strop.core.imports.lines import Wrong, compact, no_files, record, text, value
from strop.core.imports.sample import Complain, Format, Options, Sample
from strop.storage.ids import digest
from strop.storage.tables import Problem, Rollout, Score

NUMBERED = re.compile(r"rs(\d+)")
VERDICTS = ("symbolic_correct", "is_correct", "is_correct-plus", "correct")
"""Boolean fields that are verdicts, each a scorer of that name."""
_PROBLEM = ("problem", "question")
_TAKEN = frozenset(
    {*_PROBLEM, *VERDICTS, "expected_answer", "generation", "predicted_answer", "judgement", "proof_status"}
    | {"reward_model_score", "num_generated_tokens", "subset_for_metrics", "finish_reason"}
)


def find(folder: Path) -> list[Path]:
    """The output files of a folder, or of the benchmark folders in it. Raises DataError when there are none."""
    for pattern in ("output-rs*.jsonl", "output.jsonl", "*/output-rs*.jsonl", "*/output.jsonl"):
        if found := sorted(folder.glob(pattern)):
            return found
    raise no_files(folder, "output-rs*.jsonl")


def read(files: Sequence[Path], options: Options, complain: Complain) -> Iterator[Sample]:
    """Samples, those of one problem side by side."""
    folders = sorted({path.parent for path in files}, key=lambda folder: str(folder))
    for folder in folders:
        members = sorted((p for p in files if p.parent == folder), key=lambda p: (_index(p) or 0, p.name))
        numbers = [_index(path) for path in members]
        if None in numbers or len(set(numbers)) < len(numbers):
            numbers = list(range(len(members)))
        task = options.task or folder.resolve().name
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(path.open("rb")) for path in members]
            for number, lines in enumerate(zip_longest(*streams), start=1):
                yield from _line(task, number, list(zip(members, numbers, lines, strict=True)), options, complain)


def _line(
    task: str, number: int, lines: list[tuple[Path, int | None, bytes | None]], options: Options, complain: Complain
) -> Iterator[Sample]:
    """The samples of one problem: the same line of every file."""
    first: tuple[Path, str, Problem] | None = None
    for path, index, line in lines:
        if line is None or not line.strip():
            if any(other is not None and other.strip() for _, _, other in lines):
                complain(path, number, "no line here, where another file has one: all files must hold all problems")
            continue
        found = record(path, number, line, complain)
        if found is None:
            continue
        try:
            problem, rollout, scores = _parsed(found, number, task, options)
        except Wrong as error:
            complain(path, number, str(error))
            continue
        same = digest(problem.prompt, problem.reference)
        if first is None:
            first = (path, same, problem)
        elif first[1] != same:
            complain(path, number, f"another problem or expected answer than line {number} of {first[0]}")
            continue
        yield Sample(
            problem_ref=(task, number),
            problem=first[2],
            rollout=dataclasses.replace(rollout, sample_index=index or 0),
            scores=scores,
            policy=options.model or "external",
        )


def _parsed(
    found: dict[str, Any], number: int, task: str, options: Options
) -> tuple[Problem, Rollout, tuple[Score, ...]]:
    split = options.split or "train"
    problem = Problem(
        task=task,
        split=split,
        category=text(found, "subset_for_metrics"),
        prompt=text(found, *_PROBLEM) or f"line {number}",
        reference=text(found, "expected_answer"),
        origin="import",
    )
    length = found.get("finish_reason") == "length"
    rollout = Rollout(
        problem_id=0,
        sample_index=0,
        split=split,
        prompt=problem.prompt,
        completion=text(found, "generation", default="") or "",
        n_tokens=value(found.get("num_generated_tokens"), "INTEGER", "num_generated_tokens") or 0,
        finish_reason="length" if length else "stop",
        detail=compact({key: item for key, item in found.items() if key not in _TAKEN}),
    )
    return problem, rollout, tuple(_scores(found))


def _scores(found: dict[str, Any]) -> Iterator[Score]:
    answer = text(found, "predicted_answer")
    for name in VERDICTS:
        if (said := value(found.get(name), "BOOLEAN", name)) is not None:
            yield _verdict(name, said, answer)
    if (judgement := text(found, "judgement")) is not None:
        said = judgement.rpartition("Judgement:")[2].strip().lower() if "Judgement:" in judgement else ""
        clear = said.startswith(("yes", "no"))
        reason = None if clear else "the judge's reply says neither 'Judgement: Yes' nor 'Judgement: No'"
        yield _verdict("judge_correct", said.startswith("yes"), answer, reason, compact({"judgement": judgement}))
    if (status := text(found, "proof_status")) is not None:
        yield _verdict("lean4_correct", status == "completed", answer, None if status == "completed" else status)
    graded = value(found.get("reward_model_score"), "DOUBLE", "reward_model_score")
    if graded is not None:
        yield Score(subject_id=0, scorer="reward_model_score", scorer_version="import", value=graded)


def _verdict(
    scorer: str, passed: bool, answer: str | None, reason: str | None = None, detail: str | None = None
) -> Score:
    return Score(
        subject_id=0,
        scorer=scorer,
        scorer_version="import",
        verdict="pass" if passed else "fail",
        value=float(passed),
        answer=answer,
        reason=reason,
        detail=detail,
    )


def _index(path: Path) -> int | None:
    found = NUMBERED.search(path.name)
    return int(found.group(1)) if found else None


FORMAT = Format("nemo-skills", "NeMo-Skills output-rs*.jsonl", find, read)
