"""Forks the processes that judge rollouts one at a time, deals rollouts out and sees to those that do not come back.

    python -m strop.core.judge_server FD

It loads a verifier once, with what it imports and the tasks it asks for, so that a process in place of one that died is
there in milliseconds. Processes are kept for the next shard: a library's caches are theirs. The server has one thread,
and ends, with all of them, when the process at the other end of FD does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

from strop.core.dealing import Dealer
from strop.core.execute import task_for
from strop.core.failures import what_failed
from strop.core.judges import Docket
from strop.core.judging import Bench
from strop.core.workers import portable
from strop.storage.errors import PluginError, StageError, StropError

MOST_VERIFIERS = 4
"""Verifiers whose processes are kept."""


DEALERS: dict[str, Dealer] = {}
"""By verifier, its settings and tasks; the one that came first goes first."""


@contextlib.contextmanager
def _told(client: Connection) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise
    except StropError as error:
        client.send(("failed", portable(error)))
    except Exception as error:
        client.send(("failed", StageError(what_failed(error))))


def bench_of(what: Docket) -> Bench:
    """Load the verifier. Raises PluginError when it, or what it needs, cannot be imported."""
    sys.path[:] = what.path
    plugin, config = what.ref.load()
    for module in plugin.mark.imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise PluginError(f"verify plugin {plugin.name!r} needs {module}: {error}; install it") from error
    wanted = "tasks" in plugin.mark.handles
    return Bench(plugin, config, {ref.name: task_for(ref, what.task_seed) for ref in what.tasks} if wanted else {})


def main(fd: int) -> None:
    """Serve the client until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what a verifier prints is no result of its caller's
    client = Connection(fd)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            what: Docket = client.recv()
            key = repr((what.ref, what.tasks, what.task_seed))
            with _told(client):
                if key not in DEALERS:
                    bench = bench_of(what)
                    gc.freeze()  # so that the collector of a child does not touch, and copy, what it shares
                    if len(DEALERS) >= MOST_VERIFIERS:
                        DEALERS.pop(next(iter(DEALERS))).end()
                    DEALERS[key] = Dealer(bench, client, DEALERS)
                DEALERS[key].judge(what)
    for dealer in DEALERS.values():
        dealer.end()


if __name__ == "__main__":
    main(int(sys.argv[1]))
