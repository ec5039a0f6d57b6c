"""What makes two problems the same problem, in every run and every lake."""

from __future__ import annotations

from strop.storage.ids import digest
from strop.storage.tables import Problem


def problem_key(problem: Problem) -> str:
    """Hash of task label, prompt, messages and reference."""
    return digest("problem", problem.task, problem.prompt, problem.messages, problem.reference)
