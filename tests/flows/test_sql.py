"""`strop sql`: what it prints and writes, when it refuses, which moment it sees."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_lake
from tiny_loop import Strop

from strop.flows import cli, formats
from strop.flows.sql.complete import Vocabulary, candidates
from strop.flows.sql.text import bind, is_finished, statements
from strop.storage.errors import LakeError

ODD = """SELECT 1.5::DECIMAL(4,2) AS d, 'NaN'::FLOAT AS n, [1, 2] AS l, {'a': 'x|y'} AS s, NULL AS u,
'a' || chr(10) || chr(27) || '[31mb' AS t, 9007199254740993 AS big, 0.1::DOUBLE + 0.2 AS f,
TIMESTAMPTZ '2026-11-21 10:00:00.123456+00' AS ts"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_lake.make(tmp_path_factory.mktemp("sql") / "lake")


@pytest.fixture
def ask(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`strop sql` in this process: exit code, stdout and stderr."""
    monkeypatch.setenv("STROP_LAKE", str(root))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.invoke(["sql", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_json_and_jsonl_are_json_whatever_the_value(ask: Any) -> None:
    row = json.loads(ask(ODD, "--format", "json")[1])[0]
    assert row == json.loads(ask(ODD, "--format", "jsonl")[1])
    assert row["n"] is None
    assert (row["big"], row["f"], row["l"], row["s"]) == (9007199254740993, 0.30000000000000004, [1, 2], {"a": "x|y"})
    assert row["ts"] == "2026-11-21T10:00:00.123456+00:00"
    assert ask("SELECT 1 WHERE false", "--format", "json")[1] == "[]\n"


def test_csv_keeps_every_digit(ask: Any) -> None:
    (row,) = csv.DictReader(io.StringIO(ask(ODD, "--format", "csv")[1]))
    assert (row["big"], row["f"], row["n"], row["u"]) == ("9007199254740993", "0.30000000000000004", "", "")
    assert row["t"] == "a\n\x1b[31mb"
    assert json.loads(row["l"]) == [1, 2]


def test_a_table_shows_no_character_that_a_terminal_obeys(ask: Any) -> None:
    for form in (["--format", "table"], ["--format", "markdown"], ["-x"]):
        assert "\x1b" not in ask(ODD, *form)[1]
    table = ask("SELECT problem_key, prompt FROM problems WHERE run_id = 'a' AND problem_key = 'key2'")[1]
    assert table == "problem_key  prompt\n-----------  ---------\nkey2         3|␛[31m3=\n"
    assert ask("SELECT 'a|b' AS t, 1 AS n", "--format", "markdown")[1] == "| t | n |\n| --- | ---: |\n| a\\|b | 1 |\n"
    assert ask("SELECT 'a' || chr(10) || 'b' AS t, 1 AS n", "-x")[1] == "-[ 1 ]\nt | a\n  | b\nn | 1\n"


def test_a_table_fits_the_screen_and_never_cuts_a_number() -> None:
    found = formats.Fixed(["id", "text"], ["BIGINT", "VARCHAR"], [(10**18, "x" * 50), (2, "y")])
    lines = "".join(formats.text(found, "table", width=40)).splitlines()
    assert [len(line) for line in lines[1:3]] == [40, 40]
    assert lines[2] == f"{10**18}  {'x' * 18}…"
    assert "".join(formats.text(found, "table", width=20, expanded=None)).startswith("-[ 1 ]")
    assert "x" * 50 in "".join(formats.text(found, "table", width=None))


def test_more_than_a_batch_comes_in_order(ask: Any) -> None:
    lines = ask("SELECT range FROM range(5000)", "--format", "csv")[1].splitlines()
    assert lines[1:] == [str(i) for i in range(5000)]
    assert ask("SELECT range FROM range(5000)")[1].splitlines()[2:] == [f"{i:>5}".rjust(5) for i in range(5000)]


def test_parquet_keeps_types(ask: Any, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    sql = "SELECT range AS i, [range] AS l, now() AS at, {'x': 1} AS s, NULL::VARCHAR AS u FROM range(20000)"
    assert ask(sql, "-o", out)[:2] == (0, "")
    table = pq.read_table(out)
    assert table.num_rows == 20000
    assert pa.types.is_list(table.schema.field("l").type)
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    assert pa.types.is_struct(table.schema.field("s").type)
    assert table["i"].to_pylist() == list(range(20000))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_file_appears_whole_or_not_at_all(ask: Any, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    assert ask("SELECT 1 AS n", "-o", out)[0] == 0
    assert out.read_text() == "n\n1\n"
    for sql in ("SELECT 2 AS n", "SELECT CAST(range AS TINYINT) AS n FROM range(9999)"):
        code, _, err = ask(sql, "-o", out)
        assert (code, "exists; name another file, or replace it with --force" in err) == (1, True)
    code, _, err = ask("SELECT CAST(range AS TINYINT) AS n FROM range(9999)", "-o", out, "--force")
    assert (code, "failed" in err) == (1, True)
    assert out.read_text() == "n\n1\n"
    assert ask("SELECT 2 AS n", "-o", out, "--force", "--format", "jsonl")[0] == 0
    assert out.read_text() == '{"n": 2}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["SELECT 1", "-o", "{lake}/data/x.csv"], 1, "is inside the lake"),
        (["SELECT 1", "-o", "{link}/catalog.sqlite", "--force"], 1, "is inside the lake"),
        (["SELECT 1", "-o", "/no/such/folder/x.csv"], 1, "there is no folder /no/such/folder"),
        (["SELECT 1", "-o", "{lake}/.."], 1, "is a folder"),
        (["SELECT 1", "--format", "parquet"], 1, "parquet is no text"),
        (["SELECT INTERVAL 1 DAY AS i", "-o", "{out}/x.parquet"], 1, "cast the column"),
        (["SELECT 1; SELECT 2", "--format", "csv"], 1, "got 2 statements"),
        (["SELECT 1", "-f", "x.sql"], 2, "not both"),
        (["-f", "missing.sql"], 1, "cannot read the query"),
        (["SELECT $x"], 1, "give it a value: -p x=VALUE"),
        (["SELECT $ab", "-p", "ab=1", "-p", "abc=1"], 1, "no parameter $abc; did you mean 'ab'?"),
        (["SELECT 1", "-p", "x"], 2, "write NAME=VALUE"),
        (["SELECT 1", "--run", "a"], 2, "give --as-of round=K too"),
        (["SELECT 1", "--as-of", "round=9"], 1, "a has rounds 0-2; b has rounds 0-1"),
        (["\\dd"], 1, "no command \\dd; did you mean 'd'?"),
        (["\\d rolouts"], 1, "did you mean 'rollouts'?"),
        (["SELECT 1", "--timeout", "0"], 2, "--timeout"),
        ([""], 1, "got 0 statements"),
    ],
)
def test_a_mistake_is_said(ask: Any, root: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "link").symlink_to(root)
    places = {"{lake}": root, "{link}": tmp_path / "link", "{out}": tmp_path}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    found, out, err = ask(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert {path.name for path in tmp_path.iterdir()} == {"link"}


def test_queries_come_from_files_and_pipes(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "q.sql"
    file.write_text("-- two questions;\nSELECT ';' AS a;\n\\d v_rounds\nSELECT 2 AS b")
    out = ask("-f", file)[1]
    assert out.startswith("a\n-\n;\n\ncolumn ")
    assert out.endswith("\n\nb\n-\n2\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT 3 AS c"))
    assert ask()[1] == "c\n-\n3\n"


def test_a_parameter_is_a_value_and_nothing_else(ask: Any) -> None:
    sql = "SELECT $x AS x, '$x' AS y, $$ $x $$ AS z -- $x"
    row = json.loads(ask(sql, "-p", "x=a'b; DROP", "--format", "json")[1])[0]
    assert row == {"x": "a'b; DROP", "y": "$x", "z": " $x "}
    counted = "SELECT count(*) AS n FROM rollouts WHERE round = $round AND run_id = $run LIMIT $most"
    assert ask(counted, "-p", "round=1", "-p", "run=a", "-p", "most=5")[1] == "n\n-\n9\n"


def test_an_earlier_moment_is_seen_by_every_command(ask: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = "SELECT string_agg(status, ' ' ORDER BY policy_id) AS s FROM policies WHERE run_id = 'a'"
    assert ask(status)[1].split()[2:] == ["champion", "champion", "rejected"]
    code, out, err = ask(status, "--as-of", "round=1", "--run", "a")
    assert (code, out.split()[2:]) == (0, ["champion", "champion"])
    assert ": round 1 of a, cool\n" in err
    assert ask("SELECT max(round) AS r FROM metrics", "--as-of", "a@1")[1].split()[2] == "1"
    at = ["--lake", str(root), "--as-of", "a@1"]
    assert cli.invoke(["status", "--json", *at]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [(run["run_id"], run["round"]) for run in runs] == [("a", 1)]
    assert cli.invoke(["status", "a", "--json", "--lake", str(root), "--as-of", "round=1"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["round"] == 1  # of the run asked for, though b was there later
    assert cli.invoke(["show", "a/r2", *at]) == 1
    assert "no policy 'a/r2'" in capsys.readouterr().err
    assert cli.invoke(["lineage", "a/r1", "--format", "json", *at]) == 0
    assert "a/r2" not in capsys.readouterr().out


def test_snapshots_lists_what_can_be_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["snapshots", "--lake", str(root), "--run", "b", "--last", "2"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[-3:] for line in out.splitlines()[2:]] == [["b", "1", "generate"], ["b", "1", "cool"]]
    assert "the newest 2 of 3" in err
    assert cli.invoke(["snapshots", "--lake", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["run"] is None
    assert found[-1]["stage"] == "reverify"
    assert cli.invoke(["snapshots", "--lake", str(root), "--run", "c"]) == 1


def test_a_query_that_hears_no_interrupt_ends_the_process(root: Path, strop: Strop) -> None:
    started = time.monotonic()
    deaf = "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))"
    done = strop("sql", deaf, "--lake", root, "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not stop; ending this process" in done.stderr
    assert time.monotonic() - started < 60


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's data")
def test_texts_that_duckdb_does_not_count_meet_the_limit_of_the_process(root: Path, strop: Strop) -> None:
    bomb = "SELECT list_reduce(list_transform(range(40), x -> 'abcdefgh'), (a, b) -> a || a)"
    done = strop("sql", bomb, "--lake", root, "--memory-gb", "0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "too much memory" in done.stderr


def test_statements_end_where_they_end() -> None:
    text = "select ';' -- ;\n; /* ; */ select \"a;b\", $$;$$, e'\\';' ; \\d x\n;; select 'open ;"
    found = [(s.text, s.complete, s.is_command) for s in statements(text)]
    assert found == [
        ("select ';' -- ;", True, False),
        ("/* ; */ select \"a;b\", $$;$$, e'\\';'", True, False),
        ("\\d x", True, True),
        ("select 'open ;", False, False),
    ]
    for finished in ("", "  ", "\\d", "select 1;", "select 1; -- done", "-- only a comment"):
        assert is_finished(finished), finished
    for open_ in ("select 1", "select 1; select 2", "select ';", "select 1 -- ;", "select /* ;"):
        assert not is_finished(open_), open_


def test_a_value_for_nothing_is_an_error() -> None:
    assert bind("select $a, $ab", {"a": "1", "ab": "2"}) == "select '1', '2'"
    with pytest.raises(LakeError, match=r"no parameter \$c"):
        bind("select '$c'", {"c": "1"})


KNOWN = Vocabulary(
    {"rollouts": ["rollout_id", "completion"], "runs": ["run_id"], "v_rounds": ["round"]},
    ["select", "count", "rollup"],
    ["smoke-s0"],
)


@pytest.mark.parametrize(
    ("before", "after", "word", "offered"),
    [
        ("SELECT * FROM ro", "", "ro", ["rollouts"]),
        ("select * from runs r join ", "", "", ["rollouts", "runs", "v_rounds"]),
        ("select * from runs, r", "", "r", ["rollouts", "runs"]),
        ("select comp", " from rollouts", "comp", ["completion"]),
        ("select r.", " from rollouts r", "", ["rollout_id", "completion"]),
        ("select runs.", "", "", ["run_id"]),
        ("select x.", " from rollouts r", "", []),
        ("SEL", "", "SEL", ["SELECT"]),
        ("sel", "", "sel", ["select"]),
        ("select roll", " from rollouts", "roll", ["rollout_id", "rollouts", "rollup"]),
        ("with mine as (select 1) select * from m", "", "m", ["mine"]),
        ("select 'ro", "", "ro", []),
        ("select 1 -- ro", "", "ro", []),
        ("\\as", "", "\\as", ["\\asof"]),
        ("\\d v_", "", "v_", ["v_rounds"]),
        ("\\asof s", "", "s", ["snapshot=", "smoke-s0@"]),
        ("\\format p", "", "p", ["parquet"]),
    ],
)
def test_tab_offers_what_fits(before: str, after: str, word: str, offered: list[str]) -> None:
    assert candidates(before, after, KNOWN) == (word, offered)
