"""Text for a terminal: straight to it while it fits, through the user's pager when it is longer than the screen."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable


class Screen:
    """Where results are shown."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.paging = False
        """A pager has the terminal now: Ctrl-C is for it."""

    @property
    def width(self) -> int | None:
        """Characters in a line; None where the output is no terminal."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    def show(self, chunks: Iterable[str]) -> None:
        """Print the text as it comes; a reader who leaves the pager early ends it without an error."""
        if not self.is_terminal:
            for chunk in chunks:
                sys.stdout.write(chunk)
            sys.stdout.flush()
            return
        size = shutil.get_terminal_size()
        waiting: list[str] = []
        lines = 0
        chunks = iter(chunks)
        for chunk in chunks:
            waiting.append(chunk)
            lines += sum(1 + max(len(line) - 1, 0) // size.columns for line in chunk.splitlines())
            if lines >= size.lines and (pager := _pager()):
                self._page(pager, waiting, chunks)
                return
            if lines >= size.lines:
                break
        for chunk in (*waiting, *chunks):
            sys.stdout.write(chunk)
        sys.stdout.flush()

    def _page(self, pager: list[str], waiting: list[str], chunks: Iterable[str]) -> None:
        import subprocess

        settings = {"LESS": "FRSX", "LESSCHARSET": "utf-8", **os.environ}
        self.paging = True
        try:
            with subprocess.Popen(pager, stdin=subprocess.PIPE, text=True, encoding="utf-8", env=settings) as process:
                assert process.stdin is not None  # PIPE was asked for
                with contextlib.suppress(BrokenPipeError):
                    for chunk in (*waiting, *chunks):
                        process.stdin.write(chunk)
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        finally:
            self.paging = False


def _pager() -> list[str]:
    """$PAGER, else less; empty when there is none, or when it is `cat`."""
    import shlex

    words = shlex.split(os.environ.get("PAGER", "less"))
    return words if words and words != ["cat"] and shutil.which(words[0]) else []
