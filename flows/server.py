"""One Prefect server per project, on loopback: started once, found again, stopped by name.

The project's home is the folder that holds the lake (see `home_of`); everything of the server lies in its `.prefect/`.
The server outlives the command that started it, because a Prefect server inside a command costs 8-12 s at each start
and loses the events still queued at its end. Only the standard library talks to it, so that `status` stays light.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from strop.storage.errors import StropError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})

_SERVER_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Batches of 100 cut the server's CPU per task from 21-35 ms to 5-7 ms; an interval under 1 pins a core.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # Leases in memory are lost with the server, and with them the slot of a schedule.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # The second version of the UI calls an outside analytics host, the first does not.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}


class ServerError(StropError):
    """The Prefect server does not start, answer or stop."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Where a server is reached; `pid`, `log` and `started` are None for one that the user named."""

    url: str
    """Address of the API, ending in /api."""
    home: Path
    pid: int | None = None
    started: float | None = None
    """Start time of the process, so that a later process with the same pid is not taken for it."""
    log: Path | None = None

    @property
    def ui(self) -> str:
        """Address a browser opens."""
        return self.url.removesuffix("/api")


def home_of(lake: Path) -> Path:
    """The project folder: the one that holds the lake. Its `.prefect/` is shared by every lake beside this one."""
    return lake.expanduser().resolve().parent


def state_file(home: Path) -> Path:
    """Where the address of the project's server is written."""
    return home / ".prefect" / "strop-server.json"


def log_file(home: Path) -> Path:
    """What the server prints."""
    return home / ".prefect" / "strop-server.log"


def given() -> str | None:
    """The server the user named in PREFECT_API_URL, if any."""
    return os.environ.get("PREFECT_API_URL") or None


def ensure(home: Path) -> ServerInfo:
    """The server to use: the one of PREFECT_API_URL, else this project's, started if need be. Raises ServerError."""
    url = given()
    if url is None:
        return start(home)
    if not healthy(url, timeout_s=5.0):
        raise ServerError(
            f"no Prefect server answers at PREFECT_API_URL={url}; start it, unset the variable to use a server of this "
            "project, or run with --no-prefect"
        )
    return ServerInfo(url=url, home=home)


def start(home: Path, *, timeout_s: float = START_TIMEOUT_S) -> ServerInfo:
    """The project's server, started if it does not run. Of two that call at once, one starts it and both return it.

    Raises ServerError with the tail of the log when it does not answer in time.
    """
    from filelock import FileLock

    folder = state_file(home).parent
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "strop-server.lock", timeout=timeout_s + 30):
        info = _alive(home)
        if info is None:
            info = _spawn(home, _port(home))
        _wait_healthy(info, timeout_s)
        return info


def use(info: ServerInfo) -> None:
    """Point this process, and those it starts, at the server. Call it before anything imports prefect."""
    os.environ["PREFECT_API_URL"] = info.url
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    if info.log is not None:
        os.environ["PREFECT_HOME"] = str(info.home / ".prefect")
    if urlsplit(info.url).hostname in _LOCAL:  # a proxy of the environment cannot reach this machine's loopback
        for name in ("NO_PROXY", "no_proxy"):
            there = [host for host in os.environ.get(name, "").split(",") if host]
            os.environ[name] = ",".join([*there, *sorted(_LOCAL - set(there))])


def find(home: Path) -> ServerInfo | None:
    """The project's server if it runs and answers; None otherwise, also when the state file is stale."""
    info = _alive(home)
    return info if info is not None and healthy(info.url) else None


def stop(home: Path) -> bool:
    """End the project's server; True when one ran. A stale state file is removed, no other process is touched."""
    import psutil

    info = _alive(home)
    if info is not None and info.pid is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(info.pid)
            _signal_group(info.pid, signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except psutil.TimeoutExpired:
                _signal_group(info.pid, signal.SIGKILL)
                process.wait(5)
    state_file(home).unlink(missing_ok=True)
    return info is not None


def status(home: Path) -> tuple[str, ServerInfo | None]:
    """One of 'given', 'unreachable', 'running', 'starting', 'stale', 'stopped', and the server it is about."""
    url = given()
    if url is not None:
        return ("given" if healthy(url, timeout_s=3.0) else "unreachable"), ServerInfo(url=url, home=home)
    info = _alive(home)
    if info is None:
        return ("stale" if state_file(home).exists() else "stopped"), None
    return ("running" if healthy(info.url) else "starting"), info


def healthy(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether an API answers there. An answer that refuses us (401, 403, 404) is an answer: it may want a key."""
    import urllib.error
    import urllib.request

    # A proxy of the environment cannot reach this machine's loopback.
    proxy = urllib.request.ProxyHandler({} if urlsplit(url).hostname in _LOCAL else None)
    try:
        with urllib.request.build_opener(proxy).open(f"{url.rstrip('/')}/health", timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def process_started(pid: int) -> float | None:
    """When the process with that pid started; None when there is none (a zombie counts as none)."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def _alive(home: Path) -> ServerInfo | None:
    """The server of the state file if its very process lives, answering or not."""
    try:
        raw = json.loads(state_file(home).read_text())
        url, pid, started = str(raw["url"]), int(raw["pid"]), float(raw["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    now = process_started(pid)
    same = now is not None and abs(now - started) < 1.0
    return ServerInfo(url, home, pid, started, log_file(home)) if same else None


def _port(home: Path) -> int:
    """The port of the project's last server if it is free, so that an open browser tab comes back; else any."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        last = int(json.loads(state_file(home).read_text())["port"])
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", last))
            return last
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spawn(home: Path, port: int) -> ServerInfo:
    """Start the process in a session of its own and write the state file, before it answers."""
    url = f"http://127.0.0.1:{port}/api"
    env = {
        **{k: v for k, v in os.environ.items() if k != "PREFECT_PROFILE"},
        **_SERVER_SETTINGS,
        "PREFECT_HOME": str(home / ".prefect"),
        "PREFECT_API_URL": url,  # with the port alone the UI would call :4200
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log_file(home).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = 0  # it is meant to outlive us: no ResourceWarning when the handle goes
    started = process_started(process.pid)
    info = ServerInfo(url, home, process.pid, started or time.time(), log_file(home))
    fields = {**dataclasses.asdict(info), "home": str(home), "log": str(info.log), "port": port}
    fresh = state_file(home).with_suffix(".tmp")
    fresh.write_text(json.dumps(fields, indent=1))
    fresh.replace(state_file(home))
    return info


def _wait_healthy(info: ServerInfo, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not healthy(info.url):
        gone = info.pid is not None and process_started(info.pid) is None
        if gone or time.monotonic() > deadline:
            what = "ended before it answered" if gone else f"does not answer after {timeout_s:g} s"
            stop(info.home)
            raise ServerError(
                f"the Prefect server at {info.url} {what}; its log {info.log} ends:\n{_tail(info.log)}\n"
                "run with --no-prefect to do without it"
            )
        time.sleep(0.1)


def _tail(log: Path | None, lines: int = 15) -> str:
    try:
        text = log.read_text(errors="replace") if log is not None else ""
    except OSError:
        text = ""
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines()[-lines:]) or "  (empty)"


def _signal_group(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signum)
