"""`strop rerun` and `strop reverify` on a copy of the smoke run; every line of docs/reuse.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_loop import clean_env

from strop.flows import cli
from strop.storage.console import open_console

PAGE = (Path(__file__).parents[2] / "docs" / "reuse.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.strip().splitlines()]
QUERIES = [text.strip() for language, text in BLOCKS if language == "sql"]


@pytest.fixture
def here(smoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `lake` is a copy of the smoke run's."""
    shutil.copytree(smoke.lake, tmp_path / "lake")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_rerun_tells_what_it_re_uses_does_it_and_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rerun", "smoke@2", "--from", "filter"]
    assert cli.invoke([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["from"], plan["to"], plan["rounds"]) == ("filter", "build", [[{"run": "smoke", "round": 2}]])
    stages = {(stage["round"], stage["stage"]): stage for stage in plan["stages"]}
    with open_console(here / "lake") as console:
        sampled = console.query("SELECT count(*) FROM rollouts WHERE round = 2 AND split = 'train'").rows[0][0]
    assert stages[1, "generate"]["rows"]["rollouts"] == sampled
    assert stages[1, "filter"]["shards"] == 0
    assert cli.invoke([*words, "--dry-run"]) == 0
    assert f"{sampled:,} rollouts" in capsys.readouterr().out
    assert cli.invoke(words) == 0
    out = capsys.readouterr()
    assert f"r1 generate re-used from smoke: {sampled} rollouts" in out.out
    assert plan["run_id"] in out.err
    assert cli.invoke(["status"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(plan["run_id"]))
    assert line.endswith("smoke@2 before filter")
    assert cli.invoke(["status", plan["run_id"], "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    assert state["champion"] == "smoke/r0"
    assert state["reuses"]["from"] == "filter"
    assert state["rounds"][1]["kept"] > 0


def test_reverify_says_when_there_is_nothing_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["reverify", "smoke", "--errors"]) == 0
    assert "no verdict of smoke is an error" in capsys.readouterr().out
    assert cli.invoke(["reverify", "smoke@1", "--scorer", "answer"]) == 0
    assert "every verdict is by answer version 1 with the same settings already" in capsys.readouterr().out
    assert cli.invoke(["reverify", "smoke"]) == 2
    assert "say --errors" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_with_the_way_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["rerun", "smoke", "--from", "filter", "--set", "verify.ignore_case=false"]) == 2
    assert "verify.ignore_case was True, now False" in (said := capsys.readouterr().err)
    assert "use --from verify" in said
    assert cli.invoke(["rerun", "smok", "--from", "filter"]) == 1
    assert "did you mean 'smoke'?" in capsys.readouterr().err
    assert cli.invoke(["reverify", "smoke@9", "--errors"]) == 1
    assert "'smoke' has no round 9; it has 0, 1, 2" in capsys.readouterr().err


@pytest.mark.slow
def test_every_line_of_the_page_runs(here: Path) -> None:
    for line in COMMANDS:
        command = line.replace("strop ", f"{sys.executable} -m strop.flows ", 1)
        done = subprocess.run(
            command, shell=True, cwd=here, env=clean_env(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    with open_console(here / "lake") as console:
        found = [console.query(query).rows for query in QUERIES]
        pooled = console.query("SELECT count(*) FROM policies WHERE run_id = 'pooled'").rows
    assert all(found)
    assert pooled == [(1,)]
    assert {was for _, _, _, was, _, _ in found[0]} == {"pass", "fail"}
