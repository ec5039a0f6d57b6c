"""Every command of docs/sql.md is typed in a folder with a finished run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from strop.flows.sql.commands import COMMANDS
from strop.storage import as_of

PAGE = (Path(__file__).parent.parent / "docs" / "sql.md").read_text()
LINES = [line for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in text.strip().splitlines()]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smoke):
    home = tmp_path_factory.mktemp("reader")
    (home / "lake").symlink_to(smoke.lake)
    return home


@pytest.mark.parametrize("line", LINES)
def test_the_command_answers(line, folder):
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout or (folder / "rollouts.parquet").stat().st_size


def test_the_page_names_every_command_and_the_number_of_hostile_statements():
    hostile = (Path(__file__).parent / "storage" / "hostile.json").read_text().count('"sql":')
    assert f"{hostile} hostile statements" in PAGE
    for name in COMMANDS:
        assert f"`\\{name}" in PAGE, name
    for unit in as_of.UNITS:
        assert f"`{unit}`" in PAGE
