"""The difference between two rounds as tables for a person."""

from __future__ import annotations

from collections.abc import Sequence

from strop.flows import output
from strop.flows.diff.compare import Difference, Number
from strop.flows.diff.examples import Example
from strop.flows.diff.rates import Change

MOST = 5
"""Problems listed each way."""
INDENT = "    "


def show(found: Difference, examples: Sequence[Example]) -> None:
    """Print every part that has something to say."""
    print(f"from {found.left} to {found.right}")
    left, right = str(found.left), str(found.right)
    if found.left.run == found.right.run:
        left, right = f"round {found.left.round}", f"round {found.right.round}"
    _section("settings that differ", ["where", "setting", left, right], _settings(found), right=[])
    if not found.settings:
        print("\nsettings: the same")
    _show_policies(found)
    _section("metrics", ["metric", "slice", left, right, "change"], _metrics(found), right=[2, 3, 4])
    _section("counts", ["what", "split", left, right, "change"], _counts(found), right=[2, 3, 4])
    _section(
        "problems that one side alone has",
        ["", "split", "task", "category", "from", "status", "count"],
        _problems(found),
        right=[6],
    )
    _section(
        "pass rates over the problems of both",
        ["slice", "n", left, right, "change", "95 % interval", "up", "down", "p"],
        _rates(found),
        right=[1, 2, 3, 4, 5, 6, 7, 8],
    )
    head = ["problem", "category", left, right, "change", "prompt"]
    gained = [change for change in found.heldout if change.gain > 0]
    lost = [change for change in reversed(found.heldout) if change.gain < 0]
    if not examples:
        _section(
            f"held-out problems that gained most, of {len(gained)}",
            head,
            list(map(_change, gained[:MOST])),
            right=[2, 3, 4],
        )
        _section(
            f"held-out problems that lost most, of {len(lost)}", head, list(map(_change, lost[:MOST])), right=[2, 3, 4]
        )
    for example in examples:
        _example(example, left, right)


def _section(title: str, head: list[str], lines: Sequence[Sequence[str]], *, right: list[int]) -> None:
    if lines:
        print(f"\n{title}")
        output.table(head, lines, right=right)


def _settings(found: Difference) -> list[list[str]]:
    return [[s.where, s.name, output.cell(s.left), output.cell(s.right)] for s in found.settings]


def _show_policies(found: Difference) -> None:
    if found.policies:
        print("\npolicies, as they stand now")
    for policy in found.policies:
        print(f"  {policy.name}: {policy.status}" + (f"; the gate said {policy.action}" if policy.action else ""))
        if policy.reason:
            print(f"{INDENT}{policy.reason}")


def _metrics(found: Difference) -> list[list[str]]:
    return [
        [m.name, m.slice, _measured(m.left, m.left_interval), _measured(m.right, m.right_interval), _gain(m)]
        for m in found.metrics
    ]


def _measured(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else "")


def _gain(number: Number) -> str:
    return "" if number.left is None or number.right is None else f"{number.right - number.left:+.3f}"


def _counts(found: Difference) -> list[list[str]]:
    lines = []
    for number in found.counts:
        change = "" if number.left is None or number.right is None else _count(number.right - number.left, sign="+")
        lines.append([number.name, number.slice, _count(number.left), _count(number.right), change])
    return lines


def _count(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign},.1f}" if isinstance(value, float) else f"{value:{sign},}"


def _problems(found: Difference) -> list[list[str]]:
    return [[p.change, p.split, p.task, p.category or "", p.origin, p.status, f"{p.count:,}"] for p in found.problems]


def _rates(found: Difference) -> list[list[str]]:
    return [
        [
            s.name,
            f"{s.n:,}",
            f"{s.left:.3f}",
            f"{s.right:.3f}",
            f"{s.gain:+.3f}",
            f"{s.low:+.3f} to {s.high:+.3f}",
            f"{s.improved:,}",
            f"{s.regressed:,}",
            f"{s.p:.2g}" if s.p >= 1e-4 else "<1e-4",
        ]
        for s in found.pass_rates
    ]


def _change(change: Change) -> list[str]:
    prompt = output.cell(change.prompt)
    rates = [f"{change.left:.2f}", f"{change.right:.2f}", f"{change.gain:+.2f}"]
    return [change.problem[:12], change.category or "", *rates, prompt]


def _example(example: Example, left: str, right: str) -> None:
    change = example.change
    print(f"\nproblem {change.right_id}: solved {change.left:.2f} -> {change.right:.2f}")
    print(_indented(change.prompt or ""))
    for name, text, verdict in (
        (left, example.left, example.left_verdict),
        (right, example.right, example.right_verdict),
    ):
        print(f"  {name} ({verdict})\n{_indented(text)}")


def _indented(text: str) -> str:
    return "\n".join(INDENT + line for line in output.plain(text, keep_lines=True).splitlines() or [""])
