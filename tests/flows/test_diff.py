"""What `strop diff` finds between rounds whose difference is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import small_lake

from strop.flows import cli
from strop.flows.diff.compare import compare
from strop.flows.diff.examples import examples
from strop.flows.diff.rates import sign_test
from strop.storage.console import Console, open_console
from strop.storage.errors import LakeError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_lake.make(tmp_path_factory.mktemp("diff") / "lake")


@pytest.fixture
def console(root: Path):
    with open_console(root) as opened:
        yield opened


def test_pass_rates_are_paired_by_problem_and_leave_errors_out(console: Console) -> None:
    found = compare(console, "a@1", "a@2")
    whole, even, odd = found.pass_rates
    assert (whole.name, whole.n, whole.improved, whole.regressed) == ("heldout", 3, 1, 1)
    assert (whole.left, whole.right) == (0.5, pytest.approx(2 / 3))
    assert whole.low < whole.gain < whole.high
    assert whole.p == 1.0
    assert (even.name, even.n, even.left, even.right) == ("heldout/even", 2, 0.25, 0.5)
    assert (odd.name, odd.n, odd.gain, odd.low, odd.high) == ("heldout/odd", 1, 0.0, 0.0, 0.0)
    assert [(c.problem, c.left, c.right) for c in found.heldout] == [("key0", 0.0, 1.0), ("key2", 0.5, 0.0)]


def test_two_runs_are_paired_by_the_problems_key(console: Console) -> None:
    found = compare(console, "a@1", "b")
    assert [(c.problem, c.left, c.right) for c in found.heldout] == [("key0", 0.0, 1.0), ("key1", 1.0, 0.0)]
    assert [(c.left_id, c.right_id) for c in found.heldout] == [(1000, 2000), (1001, 2001)]
    assert {(s.where, s.name, s.left, s.right) for s in found.settings} == {
        ("run", "seed", "0", "1"),
        ("recipe", "base.steps", "3", "4"),
        ("reverify", "", "reverify 1", "-"),
    }
    assert [(p.change, p.origin, p.status, p.count) for p in found.problems] == [
        ("added", "weakness", "rejected", 1),
        ("gone", "weakness", "rejected", 1),
    ]
    assert [p.name for p in found.policies] == ["a/r1", "b/r1"]


def test_settings_versions_and_what_a_controller_asked_for_are_told(console: Console) -> None:
    found = compare(console, "a@1", "a@2")
    assert [(s.where, s.name, s.left, s.right) for s in found.settings] == [
        ("cool", "version", "1", "2"),
        ("generate", "temperature", "1.0", "0.5"),
        ("reverify", "", "reverify 1", "-"),
        ("cool (asked for)", "generate.temperature", "-", "0.5"),
    ]
    assert [(p.name, p.status, p.action, p.reason) for p in found.policies] == [
        ("a/r1", "champion", "promote", "because 1"),
        ("a/r2", "rejected", "keep", "because 2"),
    ]
    (metric,) = found.metrics
    assert (metric.left, metric.right, metric.right_interval) == (0.25, 0.5, (0.2, 1.0))
    assert {(c.name, c.slice): (c.left, c.right) for c in found.counts}["rollouts", "heldout"] == (9, 9)
    assert [(p.change, p.split, p.count) for p in found.problems] == [("added", "train", 1)]


def test_an_example_shows_a_completion_that_tells_the_difference(console: Console) -> None:
    gained, lost = examples(console, compare(console, "a@1", "a@2"), 5)
    assert (gained.left, gained.left_verdict, gained.right, gained.right_verdict) == (
        "fail 0",
        "fail",
        "pass 0",
        "pass",
    )
    assert (lost.left, lost.left_verdict, lost.right, lost.right_verdict) == ("pass 0", "pass", "fail 0", "fail")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a@7", "a has no round '7'; there is: 0, 1, 2"),
        ("c@1", "no run 'c'"),
        ("aa", "'aa' names no round: write RUN@K, or RUN for its newest; did you mean 'a'"),
        ("@1", "the lake has 2 runs: say which one, as in b@1"),
        ("1", "the lake has 2 runs"),
    ],
)
def test_a_round_that_is_not_there_is_said(console: Console, text: str, reason: str) -> None:
    with pytest.raises(LakeError, match=reason):
        compare(console, text, "a@1")


def test_the_sign_test_is_exact_and_goes_over_into_the_normal() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == sign_test(0, 5) == 2 / 32
    assert sign_test(7, 2) == pytest.approx(2 * (1 + 9 + 36) / 512)
    exact = sign_test(1050, 950)
    assert math.erfc(99 / math.sqrt(4000)) == pytest.approx(exact, rel=0.01)
    assert sign_test(1051, 950) == pytest.approx(math.erfc(100 / math.sqrt(2 * 2001)))


def test_the_command_prints_tables_and_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["diff", "a@1", "a", "--lake", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("from a@1 to a@2\n")
    assert max(map(len, out.splitlines())) <= 80
    for line in ("  temperature           1.0         0.5", "a/r2: rejected; the gate said keep", "key0"):
        assert line in out
    assert "\x1b" not in out
    assert cli.invoke(["diff", "a@1", "a", "--lake", str(root), "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "problem 1000: solved 0.00 -> 1.00\n    1+1=\n  round 1 (fail)\n    fail 0\n  round 2 (pass)" in out
    assert cli.invoke(["diff", "a@1", "a", "--lake", str(root), "--show", "1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["right"] == {"run": "a", "round": 2}
    assert [example["right"] for example in made["examples"]] == ["pass 0", "fail 0"]
