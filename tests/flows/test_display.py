"""What a run shows, line by line, and on a terminal."""

from __future__ import annotations

import io
import json

import pytest

from strop.core.events import Event
from strop.flows import display, output
from strop.flows.runs import Round, RunState, complete, pass_at_most, worked


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Event("run_start", "a", total=5), "run a: 5 rounds"),
        (Event("stage_start", "a", 3, "generate"), "r3 generate ..."),
        (
            Event("progress", "a", 3, "generate", 512, 2048, 10_240, 4.0),
            "r3 generate 512/2048, 128 rows/s, 2560 tokens/s, 12.0 s left",
        ),
        (
            Event("stage_done", "a", 3, "generate", 0, 0, 62_000, 2.0, {"rows": {"rollouts": 2048, "scores": 0}}),
            "r3 generate done in 2.0 s: 2048 rollouts, 1024 rows/s, 31.0k tokens/s",
        ),
        (Event("stage_done", "a", 1, "select", seconds=0.01, detail={"rows": {}}), "r1 select done in 0.0 s: no rows"),
        (Event("stage_skipped", "a", 1, "select"), "r1 select already in the lake"),
        (
            Event(
                "round_done", "a", 2, seconds=65.2,
                detail={"metrics": {"pass@1": [0.5, 0.45, 0.55, 600], "x": [None, None, None, 0]}, "policy": "a/r2",
                        "status": "champion"},
            ),
            "round 2 done in 1 min 05 s, pass@1 0.500 [0.450, 0.550]: a/r2 is champion",
        ),
        (Event("run_done", "a", 5, seconds=7260, detail={"stopped": "enough"}), "run a done in 2 h 01 min: enough"),
    ],
)  # fmt: skip
def test_an_event_is_one_line(event: Event, expected: str) -> None:
    assert display.line(event) == expected


def test_progress_is_not_written_at_every_event() -> None:
    lines: list[str] = []
    listen = display.throttled(lines.append)
    for done in range(100):
        listen(Event("progress", "a", 1, "generate", done, 100, 0, 1.0))
    listen(Event("stage_done", "a", 1, "generate", seconds=1.0))
    assert lines == ["r1 generate done in 1.0 s: 0"]


def test_json_mode_writes_one_object_a_line() -> None:
    out = io.StringIO()
    with display.listening("json", out) as listen:
        listen(Event("progress", "a", 1, "generate", 1, 2))
    assert json.loads(out.getvalue())["done"] == 1


def test_lines_are_written_where_there_is_no_terminal_and_nothing_when_quiet() -> None:
    out = io.StringIO()
    for mode in ("quiet", "auto"):
        with display.listening(mode, out) as listen:
            listen(Event("stage_skipped", "a", 1, "select"))
    assert out.getvalue() == "r1 select already in the lake\n"


def test_a_terminal_shows_the_stages_of_the_round_and_keeps_finished_rounds() -> None:
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with display.Board(out, console) as board:
        board(Event("stage_done", "a", 1, "select", seconds=0.5, detail={"rows": {"plans": 64}}))
        board(Event("progress", "a", 1, "generate", 512, 2048, 10_240, 4.0))
        with console.capture() as captured:
            console.print(board.render())
        shown = captured.get()
        board(Event("round_done", "a", 1, seconds=3.0))
    assert "round 1" in shown
    assert "64 plans" in shown
    assert "12.0 s left" in shown
    assert "round 1 done in 3.0 s" in out.getvalue()
    assert "[green]" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.97, "1 min 00 s"), (3600, "1 h 00 min")]
)
def test_durations_read_well_at_their_edges(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def test_a_long_cell_is_cut_and_stays_on_one_line() -> None:
    assert output.cell("a\nb") == "a⏎b"
    assert len(output.cell("x" * 500)) == output.CELL


def test_a_round_with_a_missing_shard_or_stage_is_not_complete() -> None:
    run = RunState("a", rounds={1: Round(1, stages={"s": (2, 2), "g": (1, 1)}), 2: Round(2, stages={"s": (1, 2)})})
    assert complete(run, ["s", "g"]) == 1
    run.rounds[2].stages.update({"s": (2, 2)})
    assert complete(run, ["s", "g"]) == 1
    run.rounds[2].stages.update({"g": (1, 1)})
    assert complete(run, ["s", "g"]) == 2


def test_the_time_of_a_round_counts_overlaps_once_and_pauses_not_at_all() -> None:
    assert worked([(0.0, 4.0), (1.0, 5.0), (6.0, 7.0)]) == 7.0  # side by side, then a second between two stages
    assert worked([(0.0, 4.0), (3600.0, 3602.0)]) == 6.0  # killed, and resumed an hour later
    assert worked([(0.0, 4.0), (1.0, 2.0)]) == 4.0


def test_the_largest_k_is_shown() -> None:
    rounds = [
        Round(1, metrics={"pass@1": (0.5, None, None), "pass@2": (0.6, None, None), "pass@16": (0.9, None, None)})
    ]
    assert pass_at_most(rounds) == "pass@16"
    assert pass_at_most([]) is None
