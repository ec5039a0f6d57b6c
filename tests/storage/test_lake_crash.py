"""kill -9 at any point of a commit leaves all of it or nothing, and the same commit made again is made once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_killed_commit_is_whole_or_absent_and_its_retry_is_equal(tmp_path: Path) -> None:
    driver = Path(__file__).with_name("crash_driver.py")
    done = subprocess.run([sys.executable, driver, tmp_path, "3"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for line in found:
        assert line["after"] in ("nothing", "everything"), line
        assert line["retried"], line
        assert line["registered_once"], line
        assert line["rollout_files"] == 1, line
        assert line["staged"] == 0, line
    outcomes = [line["after"] for line in found if line["what"].startswith("step")]
    assert len(outcomes) >= 12
    assert outcomes == sorted(outcomes, reverse=True), "nothing up to COMMIT, everything after it"
    assert set(outcomes) == {"nothing", "everything"}
