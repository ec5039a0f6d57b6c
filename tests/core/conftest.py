"""Loops that take a second: see `tiny_run`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def tiny(monkeypatch):
    """`tiny_run`, with every worker and the trainer in this process."""
    import tiny_run

    tiny_run.inline(monkeypatch)
    return tiny_run
