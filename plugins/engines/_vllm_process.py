"""Starts, asks and ends the process that holds vLLM, and finds an interpreter that has it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from strop.plugins.engines._group import GRACE_S, end_group, lines_of, quoted
from strop.storage.errors import StageError

FOLDER = ".venv-vllm"
TAIL = 12
"""Lines of the process's output that an error quotes."""


def find_python(given: str) -> str:
    """The interpreter to run vLLM with.

    `given`, else `$STROP_VLLM_PYTHON`, else this one where it has vllm, else that of `.venv-vllm`, in the working
    folder or beside this interpreter's environment. Raises StageError when there is none.
    """
    for name, value in (("python", given), ("STROP_VLLM_PYTHON", os.environ.get("STROP_VLLM_PYTHON", ""))):
        if value:
            if not os.access(value, os.X_OK) or not Path(value).is_file():
                raise StageError(f"{name} of the engine vllm must be a Python interpreter, got {value!r}")
            return str(Path(value).absolute())  # not resolved: a link into an environment must stay one
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.origin:  # a folder that happens to be called vllm has none
        return sys.executable
    places = [folder / FOLDER / "bin" / "python" for folder in (Path.cwd(), Path(sys.prefix).parent)]
    for place in places:
        if place.is_file():
            return str(place)
    raise StageError(
        "the engine vllm found no vLLM: install it beside Strop (`pip install 'strop[vllm]'`, CUDA), make an "
        f"environment for its CPU build (`make vllm`, which makes {FOLDER}), or name an interpreter that has it "
        "as `python` in the engine's settings or in STROP_VLLM_PYTHON"
    )


class VllmProcess:
    """One child process with a model loaded, and the process group that ends with it."""

    def __init__(self, python: str, arguments: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Returns at once; the first answer says that it is ready."""
        ours, theirs = os.pipe(), os.pipe()  # its answers; its messages
        with tempfile.NamedTemporaryFile(prefix="strop-vllm-", suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            script = Path(__file__).with_name("_vllm_child.py")
            self.process = subprocess.Popen(
                [python, str(script), str(theirs[0]), str(ours[1])],
                pass_fds=(theirs[0], ours[1]),
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(theirs[0])
        os.close(ours[1])
        self.answers = Connection(ours[0], writable=False)
        self.messages = Connection(theirs[1], readable=False)
        self._end = Finalize(self, _end, (self.process, self.messages, self.log), exitpriority=10)
        self.tell(dict(arguments))

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message. Raises StageError when the process is gone."""
        try:
            self.messages.send(message)
        except (OSError, ValueError):
            raise self._gone() from None

    def receive(self) -> tuple[Any, ...]:
        """The next answer. Raises StageError when it is an error, or when the process is gone."""
        try:
            answer: tuple[Any, ...] = self.answers.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if answer[0] == "error":
            raise StageError(f"vLLM failed: {answer[1]}; its last output:\n{self._output()}")
        return answer

    def close(self) -> None:
        """End it, and every process it started; their memory is free when this returns."""
        self._end()

    def _gone(self) -> StageError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        code = self.process.returncode
        how = "has closed its pipe"
        if code is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return StageError(f"the process of vLLM {how}{hint}; its last output:\n{self._output()}")

    def _output(self) -> str:
        return quoted(lines_of(self.log)[-TAIL:])


def _end(process: subprocess.Popen[bytes], messages: Connection, log: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    end_group(process)
    with contextlib.suppress(OSError):
        messages.close()
    log.unlink(missing_ok=True)


def ask(
    processes: Sequence[VllmProcess],
    messages: Sequence[dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """Send each process its message and wait for every answer; `progress` gets totals over all of them."""
    for process, message in zip(processes, messages, strict=True):
        process.tell(message)
    return answers(processes, progress)


def answers(processes: Sequence[VllmProcess], progress: Callable[[int, int], None] | None = None) -> list[Any]:
    """One answer of each process, whatever order they come in."""
    found: dict[int, Any] = {}
    totals = dict.fromkeys(range(len(processes)), (0, 0))
    for index, answer in _arriving(processes):
        if answer[0] == "done":
            found[index] = answer[1]
        else:
            totals[index] = answer[1:]
            if progress is not None:
                rollouts, tokens = map(sum, zip(*totals.values(), strict=True))
                progress(rollouts, tokens)
    return [found[index] for index in range(len(processes))]


def _arriving(processes: Sequence[VllmProcess]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    waiting = {process.answers: index for index, process in enumerate(processes)}
    while waiting:
        for ready in wait(list(waiting)):
            assert isinstance(ready, Connection)
            index = waiting[ready]
            answer = processes[index].receive()
            if answer[0] == "done":
                del waiting[ready]
            yield index, answer
