"""What the whole suite shares: a cache of its own for base policies, and one finished run of the smoke recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from strop.core.events import Event, RunSummary


@dataclass(frozen=True)
class FinishedRun:
    lake: Path
    run_id: str
    summary: RunSummary
    events: list[Event]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Base policies made by tests are kept for the session, away from the user's cache."""
    before = {name: os.environ.get(name) for name in ("STROP_CACHE", "STROP_LAKE")}
    os.environ["STROP_CACHE"] = os.environ.get("STROP_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("STROP_LAKE", None)
    yield Path(os.environ["STROP_CACHE"])
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, own_cache) -> FinishedRun:
    """The smoke recipe, run once without Prefect."""
    from strop.core.recipe import load
    from strop.core.round import run_loop

    lake = tmp_path_factory.mktemp("smoke") / "lake"
    events: list[Event] = []
    summary = run_loop(load("smoke"), lake=lake, run_id="smoke", on_event=events.append)
    return FinishedRun(lake, "smoke", summary, events)
