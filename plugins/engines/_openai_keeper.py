"""Runs a server's command, and ends it with its process group when the pipe from its owner closes: even by kill -9.

Run as a script: `_openai_keeper.py FD COMMAND...`. It exits with the command's code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 3.0
"""Between TERM and KILL."""


def main() -> None:
    """Start the command and wait for its end, or the owner's."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"cannot run {command[0]!r}: {error.strerror or error}", file=sys.stderr)
        sys.exit(127)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only now: a command would inherit it
    threading.Thread(target=_end_with_owner, args=(pipe, child), daemon=True).start()
    code = child.wait()
    os.killpg(0, signal.SIGTERM)  # what it started and left behind
    sys.exit(code if code >= 0 else 128 - code)


def _end_with_owner(pipe: int, child: subprocess.Popen[bytes]) -> None:
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
