"""Exports: which rows, in which order and shape; whole or not at all; the same bytes every time."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from exchange_rows import CHAT, fill
from lake_rows import ledger
from lake_rows import rollouts as many_rollouts

from strop.storage.console import Console, open_console
from strop.storage.errors import LakeError
from strop.storage.exchange import selection as selecting
from strop.storage.exchange.export import export
from strop.storage.exchange.place import MANIFEST, fresh, manifest_of
from strop.storage.exchange.selection import Selection
from strop.storage.lake import open_lake


@pytest.fixture(scope="module")
def filled(empty_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    root = tmp_path_factory.mktemp("filled") / "lake"
    shutil.copytree(empty_lake, root)
    with open_lake(root) as lake:
        fill(lake)
    return root


@pytest.fixture
def console(filled: Path) -> Any:
    with open_console(filled) as opened:
        yield opened


def lines(console: Console, what: str, format: str, path: Path, **asked: Any) -> list[dict[str, Any]]:
    export(console, what, format, path, Selection(**asked), force=True)
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(console: Console, out: Path, what: str = "rollouts", **asked: Any) -> list[int]:
    key = {"rollouts": "rollout_id", "problems": "problem_id", "examples": "example_id", "scores": "score_id"}[what]
    return [row[key] for row in lines(console, what, "rows", out / "x.jsonl", **asked)]


def test_every_condition_narrows(console: Console, tmp_path: Path) -> None:
    assert ids(console, tmp_path) == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    assert ids(console, tmp_path, rounds=(2, 5)) == [19]
    assert ids(console, tmp_path, split="heldout") == [16, 19]
    assert ids(console, tmp_path, policy="t-s0/r1") == [19]
    assert ids(console, tmp_path, where="verdict = 'pass'") == [10, 14, 16]
    assert ids(console, tmp_path, where="verdict = 'pass'", scorer="answer") == [10, 12, 14, 16]
    assert ids(console, tmp_path, where="verdict = 'fail'", scorer="answer") == [11, 17], "36 is superseded by 37"
    assert ids(console, tmp_path, where="category = 'easy' OR context = 'no' -- a remark", split="train") == [
        10,
        11,
        14,
        15,
    ]
    assert ids(console, tmp_path, limit=3) == [10, 11, 12]
    assert ids(console, tmp_path, "examples", policy="t-s0/r1") == [50, 51]
    assert ids(console, tmp_path, "problems", where="rate BETWEEN 0.5 AND 0.9") == [1], "2 of 3, the failed one aside"
    assert ids(console, tmp_path, "scores", where="policy = 't-s0/r0' AND verdict IS NULL") == [39]


def test_the_order_is_fixed_and_a_shuffle_is_by_its_seed(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        assert sorted(ids(console, tmp_path, shuffle_seed=seed)) == ids(console, tmp_path), "none is lost"
    whole = ids(console, tmp_path, shuffle_seed=1)
    monkeypatch.setattr(selecting, "PART", 2)
    monkeypatch.setattr(selecting, "BATCH", 1)
    assert sorted(whole) == ids(console, tmp_path), "parts keep the order"
    assert whole != sorted(whole)
    assert ids(console, tmp_path, shuffle_seed=1) == whole, "and so do parts of a shuffle"
    assert ids(console, tmp_path, shuffle_seed=2) != whole
    assert ids(console, tmp_path, shuffle_seed=1, limit=4) == whole[:4]


def test_conversations_are_the_messages_before_any_template(console: Console, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    made = lines(console, "sft", "trl-chat", out)
    assert [row["prompt"] for row in made] == [
        [{"role": "user", "content": "1+1="}],
        CHAT,
        [{"role": "user", "content": "Count.\n\n1+1="}],
        [{"role": "user", "content": "hinted"}],
        [{"role": "user", "content": "free"}],
    ]
    assert [row["completion"] for row in made][:2] == [
        [{"role": "assistant", "content": "2"}],
        [{"role": "assistant", "content": "6"}],
    ]
    assert [row["prompt"] for row in lines(console, "sft", "trl", out)][1:4] == [
        "<s>Be brief.<u>3+3=<a>",
        "Count.\n\n1+1=",
        "hinted",
    ]
    assert lines(console, "sft", "chat", out)[1] == {"messages": [*CHAT, {"role": "assistant", "content": "6"}]}
    assert lines(console, "prompts", "trl-chat", out) == [
        {"prompt": [{"role": "user", "content": "1+1="}]},
        {"prompt": CHAT},
        {"prompt": [{"role": "user", "content": "9+9="}]},
    ]
    hinted = lines(console, "rollouts", "trl-chat", out, where="rollout_id = 18")[0]
    assert hinted["prompt"] == [{"role": "user", "content": "hinted"}], "the prompt the loss uses"
    assert lines(console, "rollouts", "trl", out, where="rollout_id = 18")[0]["prompt"] == "hinted"


def test_labels_and_pairs(console: Console, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    labels = lines(console, "unpaired", "trl", out, scorer="answer", split="train")
    assert [(row["completion"], row["label"]) for row in labels] == [
        ("2", True),
        ("3", False),
        ("6", True),
        ("2", True),
        ("12", False),
    ]
    assert lines(console, "pairs", "trl", out)[0] == {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    assert lines(console, "pairs", "trl-chat", out)[1] == {
        "prompt": CHAT,
        "chosen": [{"role": "assistant", "content": "6"}],
        "rejected": [{"role": "assistant", "content": "7"}],
    }
    failed = lines(console, "rollouts", "trl", out, where="problem_id = 1")
    assert [row["completion"] for row in failed] == ["2", "3", "2"], "the one that failed has nothing to learn from"


def test_rows_keep_every_column_and_type(console: Console, tmp_path: Path) -> None:
    from strop.storage.parquet import schema
    from strop.storage.tables import Rollout

    export(console, "rollouts", "rows", tmp_path / "r.parquet", Selection())
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.schema.equals(schema(Rollout))
    assert table.column("token_ids").to_pylist()[0] == [10, 1]
    assert table.column("logps").to_pylist()[0] == [-0.5, -0.25]


def test_load_dataset_reads_a_folder_with_its_splits(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from strop.storage.exchange import export as exporting

    monkeypatch.setattr(exporting, "ROWS_PER_FILE", 3)
    monkeypatch.setattr(selecting, "BATCH", 2)
    done = export(console, "rollouts", "rows", tmp_path / "set", Selection())
    assert done.rows == {"train": 8, "heldout": 2}
    assert len(done.files) > 2, "several files of a split"
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: list(part["rollout_id"]) for name, part in loaded.items()} == {
        "train": [10, 11, 12, 13, 14, 15, 17, 18],
        "heldout": [16, 19],
    }
    chat = export(console, "prompts", "trl-chat", tmp_path / "chat", Selection(split="train"))
    loaded = datasets.load_dataset(str(chat.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[1]["prompt"] == CHAT
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(str(tmp_path / "set" / "README.md"), ignore_metadata_errors=False)
    assert card.data.license == "unknown"
    assert "| t-s0 | tiny | h | 3 | 10 |" in card.text
    assert f"snapshot {console.snapshot} " in card.text


def test_the_manifest_says_what_was_taken(console: Console, tmp_path: Path) -> None:
    asked = Selection(run_id="t-s0", where="verdict = 'pass'", limit=2)
    done = export(console, "rollouts", "strop", tmp_path / "r.jsonl", asked)
    about = json.loads(manifest_of(done.path).read_text())
    assert about["selection"] == {"run_id": "t-s0", "where": "verdict = 'pass'", "limit": 2}
    assert (about["rows"], about["snapshot"]) == ({"all": 2}, console.snapshot)
    assert about["runs"][0]["recipe_hash"] == "h"
    assert console.query(f"SELECT count(*) FROM ({about['query']})").rows == [(3,)], "the query runs as it stands"


def test_the_same_export_gives_the_same_bytes(console: Console, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(console, "rollouts", "rows", tmp_path / name, Selection(shuffle_seed=7))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_an_old_snapshot_is_exported_as_it_was(filled: Path, console: Console, tmp_path: Path) -> None:
    with open_console(filled, snapshot=console.snapshot - 1) as before:
        assert ids(before, tmp_path)[-1] == 18


def test_nothing_is_replaced_unasked(console: Console, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("mine")
    with pytest.raises(LakeError, match=r"x\.jsonl exists already; --force replaces it"):
        export(console, "sft", "trl", path, Selection())
    assert path.read_text() == "mine"
    export(console, "sft", "trl", path, Selection(), force=True)
    assert path.read_text() != "mine"
    strange = tmp_path / "home"
    strange.mkdir()
    (strange / "thesis.tex").write_text("years of work")
    with pytest.raises(LakeError, match="a folder that no export made"):
        export(console, "sft", "trl", strange, Selection(), force=True)
    assert (strange / "thesis.tex").is_file()
    folder = tmp_path / "set"
    for _ in range(2):
        export(console, "sft", "trl", folder, Selection(), force=True)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "data", MANIFEST]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "set", "x.jsonl", f"x.jsonl.{MANIFEST}"]


def test_an_interrupted_export_leaves_what_was_there(console: Console, tmp_path: Path) -> None:
    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    for path in (tmp_path / "x.jsonl", tmp_path / "set"):
        export(console, "sft", "trl", path, Selection())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in (tmp_path / "x.jsonl", tmp_path / "set"):
        with pytest.raises(KeyboardInterrupt):
            export(console, "rollouts", "rows", path, Selection(), force=True, progress=stop)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_killed_export_is_swept_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "set"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom strop.storage.exchange.place import fresh\n"
        "with fresh(Path(sys.argv[1]), force=False) as work:\n"
        "    (work / 'half').write_text('x')\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)
    assert [p.name for p in tmp_path.iterdir()] != []
    assert not path.exists()
    with fresh(path, force=False) as work:
        (work / "whole").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("what", "format", "asked", "said"),
    [
        ("pair", "trl", {}, "did you mean 'pairs'"),
        ("pairs", "tlr", {}, "did you mean 'trl'"),
        ("pairs", "verl", {}, "is for prompts, not for pairs; pairs can be written as trl, trl-chat, rows"),
        ("pairs", "trl", {"run_id": "t-s1"}, "no run 't-s1'; did you mean 't-s0'"),
        ("pairs", "trl", {"policy": "t-s0/r9"}, "has no policy 't-s0/r9'"),
        ("rollouts", "rows", {"scorer": "answers"}, "no scorer 'answers'; did you mean 'answer'"),
        ("prompts", "trl", {"policy": "t-s0/r1"}, "prompts belong to no policy"),
        ("pairs", "trl", {"rounds": (4, 4)}, "holds no pairs.*run.*has 2 pairs, 5 sft|lake has 2 pairs, 5 sft"),
        ("pairs", "trl", {"where": "verdct = 1"}, "verdct"),
        ("pairs", "trl", {"where": "1 = 1) UNION (SELECT * FROM read_csv('/etc/passwd')"}, "read_csv"),
    ],
)
def test_what_cannot_be_exported_is_said(
    console: Console, tmp_path: Path, what: str, format: str, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(LakeError, match=said):
        export(console, what, format, tmp_path / "x", Selection(**asked))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(empty_lake: Path, tmp_path: Path) -> None:
    """Three times the rows, 64 MB of text more, in the memory of one part."""
    import shutil

    shutil.copytree(empty_lake, tmp_path / "lake")
    with open_lake(tmp_path / "lake") as lake:
        for shard in range(24):
            rows = many_rollouts(2048, first=1 + 2048 * shard, run_id="t-s0", round=1, stage_run_id=100 + shard)
            long = [dataclasses.replace(row, completion=f"{row.rollout_id:02048d}") for row in rows]
            lake.commit(ledger(f"k{shard}", shard=shard), rows={"rollouts": long})
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from strop.storage.console import open_console\n"
        "from strop.storage.exchange.export import export\nfrom strop.storage.exchange.selection import Selection\n"
        "with open_console(Path(sys.argv[1])) as c:\n"
        "    export(c, 'rollouts', 'strop', Path(sys.argv[2]), Selection(limit=int(sys.argv[3])))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for limit in (16384, 32768 + 16384):
        out = tmp_path / f"{limit}.jsonl"
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "lake", out, str(limit)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ},
        )
        assert out.read_bytes().count(b"\n") == limit
        peaks.append(int(done.stdout.splitlines()[-1]))  # DuckDB takes `python -c` for a person and shows its progress
    assert peaks[1] - peaks[0] < 48, peaks  # 25 to 32 where DuckDB has both cores to itself
