"""`strop lineage` and `strop explain` on a finished run: trees, JSON, Mermaid, and the page about them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from strop.flows import cli
from strop.flows.lineage_text import mermaid
from strop.storage.console import open_console
from strop.storage.nodes import Node

PAGE = (Path(__file__).parents[2] / "docs" / "lineage.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [c for kind, text in BLOCKS if kind == "sh" for c in text.strip().splitlines() if c.split()[1] != "run"]
QUERIES = [query for kind, text in BLOCKS if kind == "sql" for query in text.strip().splitlines()]

BOX = re.compile(r'  n\d+(\["[^"\[\]<>&]*"\]|\(\["[^"\[\]<>&]*"\]\))')
ARROW = re.compile(r'  (n\d+) -->(\|"[^"|]*"\|)? (n\d+)')


def printed(arguments: list[str], lake: Path, capsys: pytest.CaptureFixture[str]) -> str:
    code = cli.invoke([*arguments, "--lake", str(lake)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_works(command: str, smoke: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(shlex.split(command)[1:], smoke.lake, capsys)


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_page_answers(query: str, smoke: Any) -> None:
    with open_console(smoke.lake) as console:
        assert console.query(query.rstrip(";")).rows


def test_up_and_down_show_one_direction(smoke: Any, capsys: pytest.CaptureFixture[str]) -> None:
    up = printed(["lineage", "smoke/r1", "--up"], smoke.lake, capsys)
    assert "\nmade from\n├─ started from policy smoke/r0" in up
    assert "trained on " in up
    assert "led to" not in up
    down = json.loads(printed(["lineage", "smoke/r1", "--down", "--format", "json"], smoke.lake, capsys))
    assert list(down) == ["down"]
    assert down["down"]["kind"] == "policy"


def check_grammar(chart: str) -> tuple[int, int]:
    """Boxes and arrows of a flowchart; every line is one of the few kinds that are written."""
    first, *lines = chart.splitlines()
    assert first == "flowchart LR"
    boxes = {line.split("[")[0].strip().rstrip("(") for line in lines if BOX.fullmatch(line)}
    arrows = [found for line in lines if (found := ARROW.fullmatch(line))]
    assert all(a[1] in boxes and a[3] in boxes for a in arrows)
    assert len(lines) == len(boxes) + len(arrows) + 1
    assert re.fullmatch(r"  style n0 stroke-width:3px", lines[-1])
    return len(boxes), len(arrows)


@pytest.mark.parametrize("id", ["smoke/r2", "smoke"])
def test_mermaid_is_a_flowchart(id: str, smoke: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boxes, arrows = check_grammar(printed(["lineage", id, "--format", "mermaid"], smoke.lake, capsys))
    assert boxes > 4
    assert arrows >= boxes - 1  # everything hangs together


def test_mermaid_escapes_what_it_would_take_for_its_own() -> None:
    child = Node("rollout", "2", 'a "b" [c] <i>|x|</i> & #quot; `d`;\nend', relation="sampled", reverse="sampled by")
    again = Node("rollout", "2", "the same row", relation="has", reverse="member of")
    chart = mermaid(None, Node("policy", "1", "p", children=(child, again)))
    assert check_grammar(chart) == (2, 2)
    assert "#34;b#34;" in chart
    origins = mermaid(Node("policy", "1", "p", children=(child,)), None)
    assert '  n1 -->|"sampled by"| n0' in origins  # origins point to the row asked for


def test_explain_tells_of_kept_and_dropped_rollouts(smoke: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with open_console(smoke.lake) as console:
        kept, dropped = (
            console.query(f"SELECT min(rollout_id) FROM v_rollouts WHERE split = 'train' AND {w}").rows[0][0]
            for w in ("rollout_id IN (SELECT rollout_id FROM examples)", "NOT kept")
        )
    told = printed(["explain", str(kept)], smoke.lake, capsys)
    assert "The filter correct kept it: correct.\nrft made SFT example " in told
    assert re.search(r"It trained smoke/r\d \(sft\) with \d+ other examples; the gate bootstrap_better ", told)
    told = printed(["explain", str(dropped)], smoke.lake, capsys)
    assert "The filter correct dropped it: wrong" in told
    assert told.endswith("No example was made of it, because it was dropped.\n")
    as_json = json.loads(printed(["explain", "smoke/r1", "--json"], smoke.lake, capsys))
    assert as_json["kind"] == "policy"
    assert as_json["lines"][0].startswith("smoke/r1 is ")


def test_an_unknown_id_fails_with_one_message(smoke: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["explain", "smoke/r9", "--lake", str(smoke.lake)]) == 1
    assert "did you mean 'smoke/r" in capsys.readouterr().err
