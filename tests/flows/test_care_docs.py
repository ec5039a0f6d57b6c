"""Every command of docs/care.md is typed in a folder with a finished run; the page says what is measured and tested."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from strop.flows import cli

PAGE = (Path(__file__).parents[2] / "docs" / "care.md").read_text()
LINES = [line for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(smoke: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("care")
    shutil.copytree(smoke.lake, home / "lake")
    return home


@pytest.mark.parametrize("line", LINES)
def test_the_command_answers(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.invoke(shlex.split(line)[1:]) == 0
    said = capsys.readouterr().out
    assert (
        "no damage" in said or '"damaged": false' in said or "gone" in said or "would go" in said or "nothing" in said
    )
