"""What a reader makes of a file: samples, each with its problem and its scores, in the order they are to be stored."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strop.storage.tables import Example, Problem, Rollout, Score

Complain = Callable[[Path, int, str], None]
"""complain(file, line, what is wrong): raises DataError, or notes the line as skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout of a file, without ids."""

    problem_ref: Hashable
    """Samples with the same one answer the same problem."""
    problem: Problem
    rollout: Rollout
    """Its `problem_id` is 0; a negative `sample_index` is filled in by counting."""
    scores: tuple[Score, ...] = ()
    """Their `subject_id` is 0."""
    policy: str = "external"
    """The model that sampled it, as the file names it."""
    round: int = 1
    group: Hashable = None
    """Samples of a problem that stand in different groups; None = one group a problem and policy."""
    ref: int | None = None
    """The rollout's id in the file, where others refer to it."""
    parent: int | None = None
    """`ref` of the rollout it continues or refines."""


Item = Sample | Example


class Read(Protocol):
    """Reads the files, in a fixed order; called twice, and must give the same both times."""

    def __call__(self, files: Sequence[Path], options: Any, complain: Complain) -> Iterator[Item]: ...


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may say about the files; None = as the files say, or the format's default."""

    task: str | None = None
    """Label of the task; default: the files' folder, or what they say themselves."""
    model: str | None = None
    """The model that sampled the rollouts, where the files do not name it."""
    split: str | None = None
    """'train' or 'heldout'; default: as the files say, else 'train'."""
    pass_threshold: float | None = None
    """Least total reward that passes (verifiers)."""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file."""

    name: str
    doc: str
    find: Callable[[Path], list[Path]]
    """The format's files in a folder."""
    read: Read
