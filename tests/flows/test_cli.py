"""The command line: what it answers, with which exit code, and what it does not import to do so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_loop import Strop, clean_env, write_tiny

from strop.flows import cli

HEAVY = ("torch", "transformers", "prefect", "datasets", "pyarrow", "numpy", "pandas", "httpx", "rich.console")


def imported(arguments: list[str], cwd: Path) -> set[str]:
    """Heavy modules a command line has imported when it ends."""
    code = (
        "import sys\nfrom strop.flows import cli\n"
        f"code = cli.invoke({arguments!r})\n"
        f"print('\\n', code, *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=clean_env(), capture_output=True, text=True, timeout=60, check=True
    )
    code_text, *modules = done.stdout.splitlines()[-1].split()
    assert code_text == "0", done.stderr
    return set(modules)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tiny recipe has run for a round."""
    folder = tmp_path_factory.mktemp("ran")
    command = [
        sys.executable,
        "-m",
        "strop.flows",
        "run",
        "tiny.yaml",
        "--no-prefect",
        "--rounds",
        "1",
        "--run-id",
        "t",
    ]
    write_tiny(folder)
    done = subprocess.run(
        command, cwd=folder, env=clean_env(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the working directory."""
    monkeypatch.chdir(ran)
    return ran


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["status"],
        ["status", "t"],
        ["validate", "tiny.yaml"],
        ["plan", "tiny.yaml"],
        ["sql", "SELECT 1"],
        ["sql", "--as-of", "round=1", "--format", "csv", "SELECT count(*) FROM rollouts"],
        ["sql", "\\d"],
        ["snapshots"],
        ["plugins", "list"],
        ["server", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_light_command_imports_nothing_heavy(arguments: list[str], ran: Path) -> None:
    assert imported(arguments, ran) == set()


def test_no_command_shows_the_help_and_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke([]) == 2
    assert "Sharpen a language model" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rnu"], 2, "No such command 'rnu'"),
        (["run", "--no-such-option"], 2, "No such option"),
        (["run", "no-such-recipe"], 2, "error: no shipped recipe 'no-such-recipe'"),
        (["run", "missing.yaml"], 2, "error: there is no file missing.yaml"),
        (["run", "tiny.yaml", "--set", "generate.nn=3"], 2, "unknown key 'nn'; did you mean 'n'?"),
        (["run", "tiny.yaml", "--rounds", "0"], 2, "'--rounds'"),
        (["status", "--lake", "nowhere"], 1, "error: there is no lake in"),
        (["status", "tt"], 1, "has no run 'tt'; did you mean 't'?"),
        (["sql", "SELECT * FROM rolouts"], 1, "did you mean 'rollouts'?"),
        (["sql", "DROP TABLE rollouts"], 1, "error: the console only reads"),
        (["sql", "SELECT 1", "--format", "xml"], 2, "'xml'"),
        (["lineage", "t/r9"], 1, "did you mean 't/r0'?"),
        (["show", "t/r9"], 1, "has no policy 't/r9'; did you mean 't/r0'?"),
        (["show", "12"], 1, "has no row with the id 12"),
        (["plugins", "show", "verifi", "x"], 2, "no such stage 'verifi'; did you mean 'verify'?"),
        (["serve", "tiny.yaml"], 2, "give one of --cron"),
        (["serve", "tiny.yaml", "--every", "6"], 2, "'6': a number and one of s, m, h, d"),
        (["serve", "tiny.yaml", "--cron", "daily"], 2, "five fields"),
        (["serve", "tiny.yaml", "--every", "1h", "--collision", "queue"], 2, "did you mean 'enqueue'?"),
        (["init", "."], 1, "exists and is not empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_message_and_an_exit_code(
    arguments: list[str], code: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(arguments) == code
    out, err = capsys.readouterr()
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_an_unexpected_error_names_the_file_with_its_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from strop.flows import runs

    def broken(lake: Path, *, snapshot: int | None) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(runs, "states", broken)
    assert cli.invoke(["status"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ZeroDivisionError: division by zero\n")
    log = Path(err.rsplit(" ", 1)[1].strip())
    assert "in broken" in log.read_text()
    log.unlink()


def test_run_prints_a_line_a_stage_and_a_table_of_rounds(tiny: Path, strop: Strop) -> None:
    done = strop("run", tiny, "--no-prefect", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" done in")[0] for line in lines if line.startswith("r1 ")] == [
        "r1 select", "r1 generate", "r1 verify", "r1 filter", "r1 heldout", "r1 heldout.verify", "r1 evaluate",
    ]  # fmt: skip
    assert lines[-4].split() == ["round", "length", "kept", "time"]
    assert lines[-2].split()[:2] == ["base", "1.000"]
    assert lines[-1].split()[:5] == ["1", "1.000", lines[-1].split()[2], "of", "12"]
    assert done.stderr.count("  strop ") == 3


def test_run_json_prints_only_events(tiny: Path, strop: Strop) -> None:
    done = strop("run", tiny, "--no-prefect", "--rounds", "1", "--json", "--run-id", "j")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["kind"] == "run_start"
    assert events[-1]["kind"] == "run_done"
    assert {event["run_id"] for event in events} == {"j"}


def test_run_fails_with_3_when_no_gate_promoted_and_that_was_asked_for(here: Path) -> None:
    command = ["run", "tiny.yaml", "--no-prefect", "--rounds", "1", "--run-id", "t", "--quiet"]
    assert cli.invoke(command) == 0
    assert cli.invoke([*command, "--fail-if-not-promoted"]) == 3


def test_status_tells_the_runs_of_the_lake(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["status"]) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["run", "recipe", "seed", "round"]
    assert line.split()[:5] == ["t", "tiny", "0", "1", "evaluate"]
    assert line.endswith("nobody")


def test_status_json_has_every_round_with_its_metrics(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["status", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run["run_id"] == "t"
    assert run["champion"] == "t/r0"
    assert run["driver"] is None
    assert [r["round"] for r in run["rounds"]] == [0, 1]
    assert run["rounds"][1]["metrics"]["length"]["value"] == 1.0
    assert run["rounds"][1]["judged"] == 12


def test_the_lake_of_a_command_can_come_from_the_environment(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STROP_LAKE", str(ran / "lake"))
    assert cli.invoke(["status"]) == 0
    assert "tiny" in capsys.readouterr().out


VALUES = "SELECT * FROM (VALUES (1, 'a,b'), (2, NULL)) t(n, s) ORDER BY n"


@pytest.mark.parametrize(("form", "expected"), [("csv", 'n,s\n1,"a,b"\n2,\n'), ("table", "n  s\n-  ---\n1  a,b\n2\n")])
def test_sql_prints_the_format_asked_for(
    form: str, expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["sql", VALUES, "--format", form]) == 0
    assert capsys.readouterr().out == expected


def test_sql_prints_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["sql", VALUES, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 1, "s": "a,b"}, {"n": 2, "s": None}]


def test_show_and_lineage_find_a_rollout_and_a_policy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["sql", "SELECT min(rollout_id) FROM rollouts WHERE round = 1", "--format", "csv"]) == 0
    rollout = capsys.readouterr().out.split()[1]
    assert cli.invoke(["show", rollout]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"rollouts {rollout}\n")
    assert "  completion " in shown
    assert "  right " in shown  # what the verifier said of it
    assert cli.invoke(["lineage", rollout]) == 0
    tree = capsys.readouterr().out
    assert "problem" in tree
    assert "policy" in tree
    assert cli.invoke(["lineage", "t/r0", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["up"]["kind"] == "policy"


def test_plan_counts_what_is_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["plan", "tiny.yaml", "--run-id", "t", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["committed_rounds"] == 1
    assert made["rollouts"] == 28  # in the one round that is left 6 problems x 2, and 8 held-out ones x 2
    assert cli.invoke(["plan", "tiny.yaml", "--run-id", "t"]) == 0
    assert "2 rounds, 1 of them in the lake already" in capsys.readouterr().out


def test_validate_prints_the_schema_of_recipes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["validate", "--schema"]) == 0
    assert "round" in json.loads(capsys.readouterr().out)["properties"]


def test_doctor_finds_this_installation_sound_and_a_broken_lake(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from strop.flows import checks

    assert checks.versions().level == "ok", checks.versions().found
    assert checks.extensions(here / "lake").level == "ok"
    assert checks.lake_opens(here / "lake").found.endswith("1 run")
    (tmp_path / "catalog.sqlite").write_text("not a catalog")
    assert checks.lake_opens(tmp_path).level == "fail"
    assert checks.prefect_server(here / "lake").level == "ok"


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert cli.invoke(["--version"]) == 0
    assert capsys.readouterr().out == f"strop {version('strop')}\n"
