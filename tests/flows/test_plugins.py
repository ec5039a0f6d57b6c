"""`strop plugins` and `strop init`: what they write works as written."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tiny_loop import clean_env

from strop.core import registry
from strop.core.plugin import STAGES
from strop.flows import cli, plugin_check, starter, templates


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_new_plugin_of_every_stage_keeps_its_contract(stage: str, tmp_path: Path) -> None:
    templates.write(templates.plugin_files(stage, "my_thing"), tmp_path)
    plugin = registry.find(stage, "./my_thing.py:my_thing", folder=tmp_path)
    assert plugin_check.complaints(plugin) == []


def test_the_test_of_a_new_plugin_passes(tmp_path: Path) -> None:
    for stage in ("verify", "generate", "engine"):
        templates.write(templates.plugin_files(stage, f"my_{stage}"), tmp_path)
    assert run_pytest(tmp_path).startswith("6 passed")


def test_new_writes_a_plugin_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(["plugins", "new", "filter", "brief"]) == 0
    assert cli.invoke(["plugins", "check", "filter", "./brief.py:brief"]) == 0
    assert "keeps the contract" in capsys.readouterr().out
    assert cli.invoke(["plugins", "new", "filter", "brief"]) == 2
    assert cli.invoke(["plugins", "new", "filter", "Not-A-Name"]) == 2


BAD = """
import vllm
from strop.core.plugin import Config, PerRollout, stage

class Bad(Config):
    cutoff: float = 1.0

@stage("verify")
def bad(config: Bad, *, rollouts):
    return []

class Worse(PerRollout):
    pass

@stage("verify", imports=["no_such_module"])
def worse(config: Worse, *, rollout):
    return None
"""


def test_check_says_everything_that_breaks_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    (tmp_path / "bad.py").write_text(BAD)
    found = plugin_check.complaints(registry.find("verify", "./bad.py:bad", folder=tmp_path))
    assert [text.split(":")[0] for text in found] == [
        "the module has no docstring",
        "setting 'cutoff' has no docstring under it",
        "imports vllm at the top level",
        "the function's return is not annotated (list[Score] or list[TokenLogps])",
    ]
    each = plugin_check.complaints(registry.find("verify", "./bad.py:worse", folder=tmp_path))
    assert each[-2:] == [
        "it imports no_such_module, which is not installed",
        "the function's return is not annotated (Score)",
    ]


def test_list_reads_the_first_line_of_every_built_in_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["plugins", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"objective"} <= {row["stage"] for row in found}
    assert all(row["doc"] for row in found if row["origin"] == "built-in")


def test_show_explains_settings_and_handles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    templates.write(templates.plugin_files("filter", "brief"), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(["plugins", "show", "filter", "./brief.py:brief"]) == 0
    out = capsys.readouterr().out
    assert "max_tokens = 512" in out
    assert "Longest completion to keep, in tokens." in out
    assert "rollouts: list[Rollout]: this round's" in out


def test_init_writes_a_project_whose_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(["init", "my-loop"]) == 0
    assert {path.name for path in (tmp_path / "my-loop").iterdir()} == set(starter.files("x"))
    assert run_pytest(tmp_path / "my-loop").startswith("9 passed")
    assert cli.invoke(["plugins", "check", "verify", "my-loop/near_match.py:near_match"]) == 0


def test_the_problems_of_init_are_distinct_and_right() -> None:
    rows = [json.loads(line) for line in starter.problems().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == starter.PROBLEMS
    for row in rows:
        assert str(eval(row["prompt"].rstrip("="))) == row["reference"]


def run_pytest(folder: Path) -> str:
    """The last line of a plain pytest run in a folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=folder, env=clean_env(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]
