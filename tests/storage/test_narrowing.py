"""A console leaves out files by the catalog's bounds, and every answer stays what it is over all files."""

from __future__ import annotations

from pathlib import Path

import pytest
from lake_rows import ledger

from strop.storage import console as console_module
from strop.storage.console import Console, open_console
from strop.storage.lake import open_lake
from strop.storage.tables import Rollout, Score

FILES = 6
EACH = 10
ASOF = "FROM (SELECT 41 AS k) a {kind} JOIN rollouts r ON a.k >= r.rollout_id WHERE r.round = 2"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of ten rollouts, each with ids, a round and a run of its own, and scores."""
    root = tmp_path_factory.mktemp("narrow") / "lake"
    with open_lake(root, create=True) as lake:
        for i in range(FILES):
            ids = range(EACH * i, EACH * (i + 1))
            made = [
                Rollout(rollout_id=id, problem_id=id % 7, completion=f"text {id}", round=i // 2, run_id=f"run-{i}")
                for id in ids
            ]
            scores = [Score(score_id=id, subject_kind="rollout", subject_id=id, verdict="pass") for id in ids]
            lake.commit(ledger(f"k{i}"), rows={"rollouts": made, "scores": scores})
    return root


@pytest.fixture
def console(root: Path, monkeypatch: pytest.MonkeyPatch) -> Console:
    """Of a lake that counts as one of many files."""
    monkeypatch.setattr(console_module, "MANY", 2)
    return open_console(root)


def over_all_files(root: Path, sql: str) -> list[tuple[object, ...]]:
    with pytest.MonkeyPatch.context() as patch, open_console(root) as every:
        patch.setattr(console_module, "MANY", FILES)
        found = every.query(sql).rows
        assert not any(every._made.values())
    return found


@pytest.mark.parametrize(
    ("read", "sql"),
    [
        (1, "SELECT * FROM rollouts WHERE rollout_id = 25"),
        (1, "FROM rollouts WHERE 25 = Rollout_ID AND completion LIKE 'text%'"),
        (0, "SELECT count(*), max(completion) FROM rollouts WHERE rollout_id = 999"),
        (2, "SELECT rollout_id FROM rollouts WHERE round = 1 ORDER BY 1"),
        (1, "SELECT rollout_id FROM rollouts WHERE round = 1 AND run_id = 'run-3' ORDER BY 1"),
        (2, "SELECT rollout_id FROM rollouts WHERE rollout_id IN (3, 44) ORDER BY 1"),
        (3, "SELECT rollout_id FROM rollouts WHERE rollout_id BETWEEN 19 AND 30 ORDER BY 1"),
        (2, "SELECT x.rollout_id FROM rollouts x, rollouts y WHERE x.rollout_id = 5 AND y.rollout_id = 55"),
        (
            1,
            "SELECT s.verdict FROM rollouts r JOIN scores s ON subject_id = rollout_id WHERE r.rollout_id = 7",
        ),
        (
            2,
            "SELECT 1 FROM rollouts WHERE rollout_id = 1 UNION SELECT 2 FROM rollouts WHERE rollout_id = 12 ORDER BY 1",
        ),
        (1, "SELECT verdict FROM rollouts JOIN scores ON subject_id = rollout_id WHERE rollout_id = 7"),
        (2, "SELECT count(*) FROM rollouts JOIN scores USING (round) WHERE round = 2 AND subject_id = 8"),
        (1, "WITH a AS (SELECT * FROM rollouts WHERE rollout_id = 33) SELECT completion FROM a"),
        (1, "SELECT (SELECT completion FROM rollouts WHERE rollout_id = 33) AS c FROM scores WHERE subject_id = 3"),
    ],
)
def test_files_that_cannot_hold_the_answer_are_not_read(console: Console, root: Path, read: int, sql: str) -> None:
    assert console.query(sql).rows == over_all_files(root, sql)
    assert FILES - len(console._made["rollouts"]) == read


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM rollouts WHERE rollout_id = 5 OR round = 2",
        "SELECT count(*) FROM rollouts WHERE NOT rollout_id = 5",
        "SELECT count(*) FROM rollouts WHERE rollout_id NOT IN (5) AND rollout_id NOT BETWEEN 3 AND 4",
        "SELECT count(*) FROM rollouts WHERE rollout_id = 5.0",
        "SELECT count(*) FROM rollouts WHERE rollout_id = '5'",
        "SELECT count(*) FROM rollouts WHERE rollout_id IN (5, problem_id)",
        "SELECT count(*) FROM rollouts WHERE run_id = 'run-1' COLLATE NOCASE",
        "SELECT count(*) FROM rollouts WHERE rollout_id = 5 AND round = NULL OR true",
        "SELECT count(*), (SELECT count(*) FROM rollouts) FROM rollouts WHERE rollout_id = 5",
        "SELECT count(*) FROM rollouts r(a, rollout_id) WHERE rollout_id = 5",
        "WITH rollouts AS (SELECT 5 AS rollout_id) SELECT count(*) FROM rollouts WHERE rollout_id = 5",
        "SELECT count(*) FROM scores LEFT JOIN rollouts ON rollout_id = subject_id WHERE rollouts.rollout_id = 5",
        "SELECT count(*) FROM scores s JOIN rollouts r ON r.rollout_id = s.subject_id AND r.rollout_id = 5",
        f"SELECT r.rollout_id {ASOF.format(kind='ASOF')}",
        f"SELECT r.rollout_id {ASOF.format(kind='ASOF LEFT')}",
        "SELECT r.rollout_id, s.score_id FROM scores s POSITIONAL JOIN rollouts r WHERE r.rollout_id = 45",
        "SELECT count(*) FROM (FROM rollouts USING SAMPLE 100%) WHERE rollout_id = 5",
        "SELECT count(*) FROM rollouts TABLESAMPLE 100% WHERE rollout_id = 5",
        "SELECT count(*) FROM rollouts WHERE rollout_id = 5 USING SAMPLE 100%",
        "SELECT count(*) FROM v_rollouts, rollouts WHERE rollouts.rollout_id = 5",
    ],
)
def test_every_file_is_read_where_leaving_one_out_may_matter(console: Console, root: Path, sql: str) -> None:
    assert console.query(sql).rows == over_all_files(root, sql)
    assert not console._made.get("rollouts")


def test_a_query_is_not_narrowed_by_the_one_before(console: Console) -> None:
    assert len(console.query("SELECT 1 FROM rollouts WHERE rollout_id = 25").rows) == 1
    assert console.query("SELECT count(*) FROM rollouts").rows == [(FILES * EACH,)]
    assert len(console.query("SELECT 1 FROM rollouts WHERE rollout_id = 25").rows) == 1
    assert console.query("SELECT count(*) FROM v_rollouts").rows == [(FILES * EACH,)]
