"""`strop lake init` and what docs/remote.md tells a reader to type, on real servers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from strop.flows.cli import invoke

PAGE = (Path(__file__).parents[2] / "docs" / "remote.md").read_text()
TYPED = [line for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in text.strip().splitlines()]


def test_what_the_page_says_works_on_two_machines(database, bucket, s3_server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [line for line in TYPED if line.startswith("strop ")]
    assert len(commands) == 4
    for folder in ("lake", "other"):
        for line in commands:
            if line.startswith("strop run "):  # see test_shared_loop for that
                continue
            line = line.replace("postgresql://strop@db.example/strop", database)
            line = line.replace("s3://my-bucket/strop", f"{bucket}/strop --endpoint {s3_server}")
            arguments = shlex.split(
                line.replace("init lake ", f"init {folder} ").replace("--lake lake", f"--lake {folder}")
            )
            assert invoke(arguments[1:]) == 0, line
        said = capsys.readouterr()
        assert ("made the lake" if folder == "lake" else "joined the lake") in said.out
        assert "has no runs yet" in said.out + said.err
    assert (tmp_path / "other/lake.toml").read_text() == (tmp_path / "lake/lake.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "say where: --catalog postgresql://user@host/database, --data s3://bucket/prefix, or both"),
        (["--catalog", "postgresql://u@127.0.0.1:1/x"], 1, "cannot reach the catalog postgresql://u@127.0.0.1:1/x"),
        (["--data", "/srv/data"], 1, "data = '/srv/data' is not understood; write it like s3://bucket/prefix"),
        (["--catalogue", "x"], 2, "--catalog"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line(arguments, code, message, tmp_path, capsys, credentials):
    assert invoke(["lake", "init", str(tmp_path / "lake"), *arguments]) == code
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).split())
    assert "Traceback" not in said.err
    assert not (tmp_path / "lake").exists()
