"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `kind` is one of run_start, stage_start, progress, stage_done, stage_skipped,
    stage_reused, round_done, run_done."""

    kind: str
    run_id: str
    round: int = 0
    stage: str = ""
    done: int = 0
    total: int = 0
    """Rows (rollouts, examples, steps) done and expected; 0 = unknown."""
    tokens: int = 0
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of one round did."""

    label: str
    round: int
    rows: dict[str, int]
    """Rows written, by table."""
    tokens: int
    seconds: float
    skipped: bool
    """It was committed before; nothing was done."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended."""

    run_id: str
    rounds: int
    """Rounds that are complete, base aside."""
    champion: str
    """Name of the champion policy."""
    champion_hash: str
    stopped: str | None
    """Why a gate ended the run early, if one did."""
    seconds: float
