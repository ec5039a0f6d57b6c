"""The interactive console: a prompt with history, completion and many-line statements around a session."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from strop.flows.output import say
from strop.flows.sql.complete import Vocabulary, candidates
from strop.flows.sql.session import Session
from strop.flows.sql.text import is_finished, statements
from strop.flows.sql.work import Cancelled, Quit
from strop.storage.errors import StropError

WORDS = """
SELECT lower(keyword_name) FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'column_name')
UNION SELECT lower(function_name) FROM duckdb_functions()
WHERE regexp_full_match(function_name, '[a-z][a-z0-9_]*') AND NOT function_name LIKE 'icu_%' ORDER BY ALL"""


def interact(session: Session) -> None:
    """Ask, answer, and go on after errors until the user leaves."""
    console = session.console()
    there = len(console.tables())
    say(f"Strop SQL on {session.lake}, {there} tables and views. Only reads. \\? for help, \\q to leave.")
    prompt: PromptSession[str] = PromptSession(
        history=_history(),
        completer=_Completer(session),
        complete_while_typing=False,
        enable_history_search=True,
        lexer=PygmentsLexer(SqlLexer),
        multiline=Condition(lambda: not is_finished(get_app().current_buffer.text)),
        prompt_continuation=lambda width, number, soft: "." * (width - 1) + " ",
    )
    while True:
        try:
            typed = prompt.prompt(_sign(session))
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            for statement in statements(typed):
                session.run(statement)
        except Quit:
            return
        except (Cancelled, KeyboardInterrupt):
            say("cancelled")
        except StropError as error:
            say(f"error: {error}")


def _sign(session: Session) -> str:
    """`lake> `; with the moment when one is pinned."""
    if session.pinned is None:
        return f"{session.lake.resolve().name}> "
    pinned = session.pinned
    return f"{session.lake.resolve().name}@{f'{pinned.run}@{pinned.round}' if pinned.run else pinned.id}> "


def _history() -> History:
    """Earlier statements, kept in the user's state folder; in memory where that cannot be written."""
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "strop" / "sql_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        say(f"history is not kept: {error}")
        return InMemoryHistory()
    return FileHistory(str(path))


class _Completer(Completer):
    def __init__(self, session: Session) -> None:
        self._session = session
        self._words: list[str] = []

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        try:
            known = self._vocabulary()
        except StropError:  # told when the statement runs
            return
        word, found = candidates(document.text_before_cursor, document.text_after_cursor, known)
        for name in found:
            yield Completion(name, start_position=-len(word))

    def _vocabulary(self) -> Vocabulary:
        if not self._words:
            with duckdb.connect() as core:
                self._words = [row[0] for row in core.execute(WORDS).fetchall()]
        console = self._session.console()
        tables = {table.name: [column.name for column in table.columns] for table in console.tables()}
        return Vocabulary(tables, self._words, list(self._runs()))

    def _runs(self) -> Iterator[str]:
        yield from (row[0] for row in self._session.console().query("SELECT run_id FROM runs ORDER BY created_at").rows)
