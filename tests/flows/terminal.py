"""A program in a real pseudo-terminal: type, wait for what it writes, read it without the escape sequences."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from types import TracebackType

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|\r")
UNFINISHED = re.compile(r"\x1b(\[[0-9;?]*|\][^\x07]*)?$")


class Terminal:
    """A session of `rows` by `columns`; what it wrote so far is `seen`."""

    def __init__(self, command: list[str], env: dict[str, str], *, rows: int = 24, columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal, as for a person
        )
        os.close(theirs)
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = ""
        """The beginning of an escape sequence whose end is still to come."""

    def type(self, text: str) -> None:
        """Keys, as a person would press them."""
        os.write(self._ours, text.encode())

    def until(self, text: str, *, timeout_s: float = 60) -> str:
        """What came up to and with `text`; it is then no longer in `seen`. Raises AssertionError when it does not."""
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"waited for {text!r}, saw {self.seen!r}"
            if select.select([self._ours], [], [], left)[0]:
                try:
                    data = os.read(self._ours, 1 << 16)
                except OSError:  # the program is gone
                    data = b""
                assert data, f"it ended before {text!r}: {self.seen!r}"
                came = self._begun + self._decoder.decode(data)
                cut = UNFINISHED.search(came)
                end_of_whole = cut.start() if cut else len(came)
                self._begun = came[end_of_whole:]
                self.seen += ESCAPES.sub("", came[:end_of_whole])
        found, _, self.seen = self.seen.partition(text)
        return found + text

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._ours)
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
