"""Everything docs/exchange.md shows is typed here, in its order, in one folder with the lake of the smoke recipe."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from strop.flows import cli
from strop.storage.console import open_console

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "exchange.md").read_text(), re.DOTALL)
TRACES = ROOT / "tests" / "core" / "foreign" / "verifiers_traces.jsonl"


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture(scope="module")
def folder(smoke: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("exchange")
    shutil.copytree(smoke.lake, home / "lake")
    (home / "outputs" / "sums").mkdir(parents=True)
    shutil.copy(TRACES, home / "outputs" / "sums" / "traces.jsonl")
    (home / "eval-results" / "math").mkdir(parents=True)
    for sample in range(2):
        line = json.dumps({"problem": "p", "predicted_answer": "1", "symbolic_correct": sample == 0})
        (home / "eval-results" / "math" / f"output-rs{sample}.jsonl").write_text(line + "\n")
    (home / "mine.jsonl").write_text(blocks("json")[0])
    return home


def test_every_command_and_query_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for line in "".join(blocks("sh")).splitlines():
        assert cli.invoke(shlex.split(line)[1:]) == 0, line
    assert cli.invoke(["import", "strop", "mine.jsonl", "--run-id", "mine"]) == 0
    with open_console(folder / "lake") as console:
        for query in blocks("sql"):
            found = console.query(query).rows
            assert {row[0] for row in found} >= {"smoke", "math", "traces", "mine"}
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    code = blocks("python")[0].replace('split="train"', f'split="train", cache_dir={str(folder / "cache")!r}')
    exec(code, {"load_dataset": datasets.load_dataset})
    assert (folder / "round1.parquet").is_file()
