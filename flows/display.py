"""What a run shows while it runs: a live display on a terminal, plain lines elsewhere, JSON lines for a script.

Rich is imported only where a terminal is there to use it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live

    from strop.core.events import Event

Listener = Callable[["Event"], None]
LINE_EVERY_S = 10.0
"""How often plain output reports progress within a stage."""


@contextlib.contextmanager
def listening(mode: str, out: TextIO | None = None) -> Iterator[Listener]:
    """The listener for `mode`: 'quiet', 'json', 'lines', or 'auto' (live on a terminal, else lines)."""
    out = out or sys.stdout
    if mode == "quiet":
        yield lambda event: None
    elif mode == "json":
        yield lambda event: print(as_json(event), file=out, flush=True)
    elif mode == "auto" and out.isatty():
        with Board(out) as board:
            yield board
    else:
        yield throttled(lambda text: print(text, file=out, flush=True))


def throttled(write: Callable[[str], object]) -> Listener:
    """A listener that writes a line per stage and round, and progress at most every `LINE_EVERY_S`."""
    last = [time.monotonic()]

    def listen(event: Event) -> None:
        now = time.monotonic()
        if event.kind == "stage_start" or (event.kind == "progress" and now - last[0] < LINE_EVERY_S):
            return
        last[0] = now
        write(line(event))

    return listen


def as_json(event: Event) -> str:
    """The event as one line of JSON."""
    return json.dumps(dataclasses.asdict(event), default=str, separators=(",", ":"))


def line(event: Event) -> str:
    """The event as one line of text."""
    where = f"r{event.round} {event.stage}"
    match event.kind:
        case "run_start":
            return f"run {event.run_id}: {event.total} round{'s' * (event.total != 1)}"
        case "stage_start":
            return f"{where} ..."
        case "progress":
            left = _eta(event)
            return f"{where} {_count(event)}{_rates(event)}" + (f", {duration(left)} left" if left else "")
        case "stage_done":
            return f"{where} done in {duration(event.seconds)}: {_count(event)}{_rates(event)}"
        case "stage_skipped":
            return f"{where} already in the lake"
        case "stage_reused":
            return f"{where} re-used{_sources(event)}: {_count(event)}"
        case "round_done":
            return f"round {event.round} done in {duration(event.seconds)}{_examined(event)}"
        case _:
            stopped = event.detail.get("stopped")
            return f"run {event.run_id} done in {duration(event.seconds)}" + (f": {stopped}" if stopped else "")


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float) -> str:
    """A count with a unit: 512, 31.2k, 4.1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.0f}"


def _count(event: Event) -> str:
    rows = event.detail.get("rows")
    if isinstance(rows, dict):  # what a finished stage wrote, by table
        return ", ".join(f"{number(n)} {table}" for table, n in rows.items() if n) or "no rows"
    return f"{number(event.done)}/{number(event.total)}" if event.total else number(event.done)


def _sources(event: Event) -> str:
    """The runs that did the work of a re-used stage."""
    return f" from {', '.join(event.detail['sources'])}" if event.detail.get("sources") else ""


def _rates(event: Event) -> str:
    """Rows and tokens a second; a finished stage's rows are those of its largest table."""
    if event.seconds < 0.2:
        return ""
    rows = event.detail.get("rows")
    done = max(rows.values(), default=0) if isinstance(rows, dict) else event.done
    parts = [f"{number(done / event.seconds)} rows/s"] if done > 10 else []
    if event.tokens:
        parts.append(f"{number(event.tokens / event.seconds)} tokens/s")
    return "".join(f", {part}" for part in parts)


def _examined(event: Event) -> str:
    """The metrics of the round's policy and what became of it."""
    metrics: dict[str, list[Any]] = event.detail.get("metrics", {})
    order = sorted(metrics, key=lambda name: (not name.startswith("pass@"), len(name), name))
    parts = [f"{name} {_value(*metrics[name][:3])}" for name in order if metrics[name][0] is not None]
    status = event.detail.get("status")
    return "".join(f", {part}" for part in parts) + (f": {event.detail['policy']} is {status}" if status else "")


def _value(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def _eta(event: Event) -> float | None:
    if not event.done or event.total <= event.done or event.seconds <= 0:
        return None
    return event.seconds * (event.total - event.done) / event.done


class Board:
    """The live display: finished rounds scroll up as lines, the current round's stages stay below with a bar."""

    def __init__(self, out: TextIO, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = console or Console(file=out)
        self._stages: dict[str, Event] = {}
        self._round = 0
        self._live: Live = Live(console=self.console, refresh_per_second=8, transient=True, get_renderable=self.render)

    def __enter__(self) -> Board:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if event.kind in {"run_start", "round_done", "run_done"}:
            self._stages.clear()
            self._live.console.print(line(event), highlight=False, markup=False)
            return
        if event.round != self._round:
            self._stages.clear()
            self._round = event.round
        self._stages[event.stage] = event

    def render(self) -> Group:
        """What stands on the terminal now."""
        from rich.console import Group
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for event in self._stages.values():
            table.add_row(*self._row(event))
        title = [f"round {self._round}"] if self._stages else []
        return Group(*title, table)

    def _row(self, event: Event) -> tuple[RenderableType, ...]:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.text import Text

        if event.kind == "stage_done":
            return Text("✓", style="green"), event.stage, "", f"{_count(event)}{_rates(event)}", duration(event.seconds)
        if event.kind in {"stage_skipped", "stage_reused"}:
            what = f"re-used{_sources(event)}" if event.kind == "stage_reused" else "already in the lake"
            return Text("=", style="dim"), event.stage, "", Text(what, style="dim"), ""
        left = _eta(event)
        bar = ProgressBar(total=event.total or None, completed=event.done, width=24, pulse=not event.total)
        rates = f"{_count(event)}{_rates(event)}" if event.done or event.total else ""
        return _spinner(Spinner), event.stage, bar, rates, f"{duration(left)} left" if left else ""


_SPINNERS: dict[str, Any] = {}


def _spinner(kind: Callable[[str], Any]) -> Any:
    """One spinner for the process: a new one at every refresh would never turn."""
    return _SPINNERS.setdefault("dots", kind("dots"))
