"""The end of a process that has a group of its own, and what it said."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 3.0
"""Between TERM and KILL."""


def end_group(process: subprocess.Popen[bytes], patience_s: float = GRACE_S) -> None:
    """Wait so long for a process that was told to end, kill what is left of its group, and wait until nothing is."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + GRACE_S
    while _lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def lines_of(log: Path) -> list[str]:
    """What it wrote; all of it goes to this process's own output too, which in a worker is the run's log."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return []
    print(text, file=sys.stderr, flush=True)
    return text.splitlines()


def quoted(lines: list[str]) -> str:
    """Lines as an error message shows them."""
    return "\n".join(f"  {line[:300]}" for line in lines) or "  (none)"
