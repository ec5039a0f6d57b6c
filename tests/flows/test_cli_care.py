"""`strop fsck` and `strop gc` as a user or a script sees them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from strop.flows.cli import invoke
from strop.flows.cli_care import bytes_text

_spec = importlib.util.spec_from_file_location("old_lake", Path(__file__).parents[1] / "storage" / "old_lake.py")
old_lake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(old_lake)


@pytest.fixture
def lake(tmp_path, own_cache):
    return old_lake.unpack(1, tmp_path) / "lake"


def asked(capsys, *arguments):
    code = invoke([*map(str, arguments)])
    return code, capsys.readouterr().out


def test_gc_takes_out_what_a_dry_run_said_and_fsck_then_knows_every_file(lake, capsys):
    code, said = asked(capsys, "fsck", "--lake", lake)
    assert (code, "58 files have no checksum" in said, "no damage" in said) == (0, True, True)
    code, said = asked(capsys, "gc", "--lake", lake, "--older-than", "0", "--dry-run", "--json")
    assert code == 0
    would = json.loads(said)
    assert would["dry_run"]
    assert would["bytes"] > 100_000
    code, said = asked(capsys, "gc", "--lake", lake, "--older-than", "0", "--keep-snapshots", "30d")
    assert code == 0
    assert "together" in said
    assert asked(capsys, "gc", "--lake", lake, "--older-than", "0") == (0, "nothing to take out\n")
    code, said = asked(capsys, "fsck", "--lake", lake, "--json")
    assert code == 0
    assert json.loads(said)["findings"] == []


def test_fsck_names_what_is_damaged_and_fails(lake, capsys):
    path = next(lake.glob("data/main/rollouts/**/*.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in ([], ["--quick"]):
        code, said = asked(capsys, "fsck", "--lake", lake, *arguments)
        assert code == 1
        assert f"DAMAGED: data file {path.relative_to(lake)}: has " in said
        assert "put it back from a copy" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--older-than", "soon"], "write it like 30m, 12h or 1d"),
        (["--keep-snapshots", "0"], "write 1 or more"),
        (["--keep-snapshots", "3x"], "write it like"),
    ],
)
def test_an_age_that_is_none_is_explained(lake, capsys, arguments, said):
    assert invoke(["gc", "--lake", str(lake), *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_lake_that_is_not_there_is_an_error(tmp_path, capsys):
    assert invoke(["fsck", "--lake", str(tmp_path)]) == 1
    assert "there is no lake in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 bytes"), (1234, "1.2 kB"), (999_400_000, "999 MB"), (2e13, "20.0 TB")]
)
def test_bytes_are_said_as_people_say_them(number, text):
    assert bytes_text(number) == text
