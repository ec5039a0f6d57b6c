"""One user's questions to one lake: the statement at hand, how its result is shown, and which moment it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from strop.flows import formats
from strop.flows.sql.screen import Screen
from strop.flows.sql.text import Statement, bind
from strop.flows.sql.work import cancellable, stuck
from strop.storage.catalog import newest_snapshot
from strop.storage.console import TIMEOUT_S, Console, Stream, open_console
from strop.storage.errors import LakeError

if TYPE_CHECKING:
    from strop.storage.as_of import Snapshot


@dataclass(slots=True)
class Session:
    """What the user has set, and the open console."""

    lake: Path
    screen: Screen = field(default_factory=Screen)
    form: str = "table"
    expanded: bool | None = False
    """Rows as lines of `column | value`; None where the screen is too narrow for a table."""
    pinned: Snapshot | None = None
    """The moment every statement sees; None = the newest at that statement."""
    output: Path | None = None
    """File of the next result."""
    force: bool = False
    """`output` may replace a file."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Values of `$name` in statements."""
    timing: bool = False
    timeout_s: float = TIMEOUT_S
    memory_gb: float | None = None
    _console: Console | None = None

    def console(self) -> Console:
        """The console on the pinned snapshot, or on the newest as it is now. Raises LakeError."""
        wanted = self.pinned.id if self.pinned else None
        if self._console is not None and self._console.snapshot != (wanted or newest_snapshot(self.lake)):
            self.close()
        if self._console is None:
            self._console = open_console(self.lake, snapshot=wanted, memory_gb=self.memory_gb)
        return self._console

    def close(self) -> None:
        """Close the console."""
        if self._console is not None:
            self._console.close()
            self._console = None

    def run(self, statement: Statement) -> None:
        """Run one statement or command. Raises LakeError, Cancelled, or Quit (the user asked to leave)."""
        if statement.is_command:
            from strop.flows.sql.commands import command

            command(self, statement.text)
            return
        sql = bind(statement.text, self.values)
        console = self.console()
        cancellable(lambda: self._ask(console, sql), console.cancel, elsewhere=lambda: self.screen.paging)

    def _ask(self, console: Console, sql: str) -> None:
        target, self.output = self.output, None
        form = self.form
        if target is not None and self.form == "table":
            form = formats.SUFFIXES.get(target.suffix.lower(), form)
        if form == "parquet" and target is None:
            raise LakeError("parquet is no text: name a file for it (-o FILE, or \\o FILE in the console)")
        if target is not None:
            self._write(console, sql, form, target)
            return
        with console.stream(sql, timeout_s=self.timeout_s, stuck=stuck) as found:
            self.screen.show(self._shown(found, form))

    def _write(self, console: Console, sql: str, form: str, target: Path) -> None:
        from strop.flows.replacing import replacing

        with (
            replacing(target, force=self.force, outside=self.lake) as path,  # first: a long query must not be in vain
            console.stream(sql, timeout_s=self.timeout_s, stuck=stuck) as found,
        ):
            if form == "parquet":
                formats.parquet(found, path)
            else:
                with path.open("w", encoding="utf-8", newline="") as file:
                    file.writelines(formats.text(found, form, expanded=bool(self.expanded)))
        if self.timing:
            self.screen.show([f"{_rows(found)} to {target}, {found.seconds * 1000:,.0f} ms\n"])

    def _shown(self, found: Stream, form: str) -> Iterator[str]:
        yield from formats.text(found, form, width=self.screen.width, expanded=self.expanded)
        if self.timing:
            yield f"{_rows(found)}, {found.seconds * 1000:,.0f} ms\n"
        elif self.screen.is_terminal and form == "table":
            yield f"{_rows(found)}\n"

    def show(self, found: formats.Fixed) -> None:
        """Show rows that are no query's result."""
        self.screen.show(formats.text(found, "table", width=self.screen.width, expanded=None))


def _rows(found: Stream) -> str:
    return f"{found.fetched:,} row{'s' * (found.fetched != 1)}"
