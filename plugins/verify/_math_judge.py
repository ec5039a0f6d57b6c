"""Math-Verify in a child process: an item that takes too long costs the child, not the run.

The child arms the kernel's timer with its default action before each item, which ends the process even in the middle
of a C call, and even when the parent is gone. The timer counts processor time, so that a verdict does not depend on
what else the machine does. The next item starts a new child.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO, Self

from strop.plugins.verify._answers import answer_tag, auto, boxed, hashes, marked
from strop.storage.errors import PluginError

_MOST_CHARACTERS = 2000
"""An extracted answer longer than this is no answer."""
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
"""Prose, which Math-Verify would read as a product of letters; LaTeX commands aside."""
_SHOWN = 500
"""Most characters of an answer or reason that are kept."""


class Judge:
    """judge(reference, completion) -> (verdict, answer, reason); a context manager that ends its child."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._child: subprocess.Popen[str] | None = None
        self._complaints: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def __call__(self, reference: str, completion: str) -> tuple[str, str | None, str | None]:
        """Ask the child, started where there is none. Raises PluginError when it cannot start."""
        if self._child is None:
            self._start()
        reply = self._exchange(json.dumps([reference, completion]))
        if reply:
            verdict, answer, reason = json.loads(reply)
            return verdict, answer, reason
        code = self._end()
        if code == -signal.SIGPROF:
            return "error", None, f"timed out after {self.timeout_s:g} s of processor time"
        return "error", None, f"the judge died (exit status {code})"

    def _start(self) -> None:
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the child)
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(self.timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
        )
        if not self._exchange(None):
            self._complaints.seek(0)
            said = self._complaints.read().strip()
            code = self._end()
            raise PluginError(f"verify: math could not start its judge (exit status {code}): {said[-500:]}")

    def _exchange(self, line: str | None) -> str:
        """Send a line and read the reply; empty when the child is gone."""
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            if line is not None:
                self._child.stdin.write(line + "\n")
                self._child.stdin.flush()
            return self._child.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return ""

    def _end(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        if self._complaints is not None:
            self._complaints.close()
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass
        try:
            return child.wait(timeout=self.timeout_s + 5)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


def judged(reference: str, completion: str) -> tuple[str, str | None, str | None]:
    """The verdict, in this process and without a time limit."""
    from math_verify import verify

    gold = _parsed(f"\\boxed{{{marked(reference).strip('$')}}}") or _parsed(reference)
    if not gold:
        return "error", None, f"the reference {reference!r} is not mathematics that Math-Verify can read"
    answer = next((a for way in (boxed, answer_tag, hashes) if (a := way(completion)) is not None), None)
    if answer is not None:
        target = _parsed(f"\\boxed{{{answer.strip('$')}}}") if len(answer) <= _MOST_CHARACTERS else []
    else:
        target = _parsed(completion)
        answer = auto(completion)
        if not target and answer and len(answer) <= _MOST_CHARACTERS and not _WORD.search(answer):
            target = _parsed(f"${answer.strip('$')}$")
    if not target:
        return "fail", (answer or "")[:_SHOWN] or None, "no mathematics found in the completion"
    shown = str(target[-1])[:_SHOWN]
    if verify(gold, target, timeout_seconds=None, raise_on_error=True):
        return "pass", shown, None
    return "fail", shown, f"expected {marked(reference)[:_SHOWN]}, got {shown}"


def _parsed(text: str) -> list[object]:
    from math_verify import parse

    found: list[object] = parse(text, parsing_timeout=None, fallback_mode="no_fallback")
    return found


def main(timeout_s: float) -> None:
    """Serve lines of stdin until it ends; every reply is one line of JSON."""
    import logging

    import math_verify  # noqa: F401  (slow to import: before the first item's clock starts)

    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing a library prints may pass for a reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        reference, completion = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        try:
            reply = judged(reference, completion)
        except Exception as error:
            reply = ("error", None, f"Math-Verify failed: {type(error).__name__}: {error}"[:_SHOWN])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
