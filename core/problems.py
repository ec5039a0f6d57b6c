"""What makes two problems the same problem, in every run and every lake."""

from __future__ import annotations

from collections.abc import Iterable

from strop.storage.ids import digest
from strop.storage.tables import Problem


def problem_key(problem: Problem) -> str:
    """Hash of task label, prompt, messages and reference."""
    return digest("problem", problem.task, problem.prompt, problem.messages, problem.reference)


def content_key(problem: Problem) -> str:
    """The same without the task label: equal where two tasks hold one problem, which no policy can tell apart."""
    return digest("content", problem.prompt, problem.messages, problem.reference)


def key_of(problem: Problem) -> str:
    """The key a stored problem carries, or the one it will carry."""
    return problem.problem_key or problem_key(problem)


def by_key(problems: Iterable[Problem]) -> list[Problem]:
    """In order of key: the same in every run, where the order of ids depends on the run's name."""
    return sorted(problems, key=lambda p: (key_of(p), p.problem_id))
