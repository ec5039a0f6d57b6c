"""Servers that Strop starts itself for a policy, and ends with everything they started."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.util import Finalize
from pathlib import Path

from strop.core.workers import SPIN
from strop.plugins.engines._group import end_group, lines_of, quoted
from strop.plugins.engines._openai_keeper import GRACE_S
from strop.storage.errors import StageError

TAIL = 8
"""Lines of a server's output that an error quotes, and as many that name errors before them."""
PLACES = ("policy", "base", "port", "replica")


def command_of(template: str, values: Mapping[str, object]) -> list[str]:
    """The words of a command with `{policy}`, `{base}`, `{port}` and `{replica}` filled in, after it is split."""
    words = shlex.split(template)
    for name in PLACES:
        words = [word.replace(f"{{{name}}}", str(values[name])) for word in words]
    return words


class Serving:
    """One server process, and the process group that ends with it."""

    def __init__(self, template: str, values: Mapping[str, object], threads: int) -> None:
        """Returns at once; whether it answers is for the pool to find out. `values` fill `PLACES`, but the port's."""
        self.port = _free_port()
        self.command = command_of(template, {**values, "port": self.port})
        self.line = shlex.join(self.command)
        self.began = time.monotonic()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        ours, theirs = os.pipe()
        with tempfile.NamedTemporaryFile(prefix="strop-serve-", suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            keeper = str(Path(__file__).with_name("_openai_keeper.py"))
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper, str(ours), *self.command],
                pass_fds=(ours,),
                env=_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(ours)
        self._end = Finalize(self, _end, (self.process, theirs, self.log), exitpriority=10)

    def ended(self) -> str | None:
        """Why it is no more, with its last output; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        number = -code if code < 0 else code - 128  # of the keeper, or told by it
        known = number in {s.value for s in signal.Signals}
        how = f"was ended by {signal.Signals(number).name}" if known else f"ended with code {code}"
        return f"the server `{self.line}` {how}; its last output:\n{self.output()}"

    def output(self) -> str:
        """Its last errors and lines."""
        lines = lines_of(self.log)
        errors = [line for line in lines[:-TAIL] if "Error:" in line][-TAIL:]
        return quoted([*dict.fromkeys(errors), *lines[-TAIL:]])

    def close(self) -> None:
        """End it, and every process it started; their memory is free when this returns."""
        self._end()


def check_template(template: str) -> str:
    """A command that says where policy and port go. Raises ValueError."""
    if template:
        words = shlex.split(template)
        if not any("{port}" in word for word in words) or not any(
            "{policy}" in word or "{base}" in word for word in words
        ):
            raise ValueError("name the policy and the port in the command: `vllm serve {policy} --port {port}`")
    return template


def check_adapter(template: str, policy: Path) -> None:
    """Raises StageError when the command has no place for the base of an adapter."""
    if "{base}" not in template or "{policy}" in template:
        raise StageError(
            f"the policy {policy} is an adapter: in `serve`, write {{base}} in place of {{policy}}, with --enable-lora "
            "and --max-lora-rank; Strop loads the adapter into the running server"
        )


def _environment(threads: int) -> dict[str, str]:
    """Of a server: what is set already wins. vLLM would tie the threads of several to the same cores."""
    found = {
        "OMP_NUM_THREADS": str(threads),
        SPIN[0]: SPIN[1],
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {**found, **os.environ}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes], pipe: int, log: Path) -> None:
    with contextlib.suppress(OSError):
        os.close(pipe)  # the keeper ends the group
    end_group(process, GRACE_S + 0.5)
    log.unlink(missing_ok=True)
