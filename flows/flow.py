"""The loop as a Prefect flow: one flow run per `strop run` or per firing of a schedule, one task run per stage.

Prefect is the window, the lake's ledger is the truth: nothing is cached, retried or persisted here, arguments are small
references, and a run that died resumes from the ledger. Measured: a stage called directly as a task costs 2 ms, an
argument of 100k rows 4-5 s. Importing this module imports prefect: see `strop.flows.server.use`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.states import Crashed

from strop.flows import display
from strop.flows.server import ServerInfo, process_started, use

if TYPE_CHECKING:
    from strop.core.events import Event, RunSummary
    from strop.core.recipe import Recipe

FLOW = "strop"

_UNFINISHED = [StateType.RUNNING, StateType.CANCELLING, StateType.PENDING]

Listener = Callable[["Event"], None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Session:
    recipe: Recipe
    listener: Listener


_SESSION: ContextVar[_Session | None] = ContextVar("strop_session", default=None)
"""What `run_with_prefect` hands to the flow beside its parameters, which Prefect would copy to the server."""


@flow(name=FLOW, flow_run_name="{run_id}", retries=0, persist_result=False, log_prints=False)
def sharpen(
    recipe: str,
    lake: str,
    run_id: str,
    rounds: int | None = None,
    seed: int | None = None,
    overrides: list[str] | None = None,
    advance: int | None = None,
) -> Any:
    """Run a recipe to a number of rounds, or `advance` it by some.

    Args:
        recipe: name of a shipped recipe, or a file on the machine that runs it
        lake: folder of the lake
        run_id: the run to start or continue
        rounds: rounds in total; the recipe's own number when empty
        seed: seed of the run; the recipe's own when empty
        overrides: stage.key=value settings over the recipe's
        advance: instead of `rounds`, this many more than the lake has
    """
    from strop.core.recipe import load
    from strop.core.round import run_loop

    _claim()
    session = _SESSION.get()
    logger = get_run_logger()
    found = session.recipe if session else load(recipe, overrides=overrides or (), seed=seed)
    if advance is not None:
        from strop.flows.runs import rounds_done

        rounds = rounds_done(Path(lake), run_id, found) + advance
    listeners: list[Listener] = [display.throttled(logger.info)]
    if session:
        listeners.append(session.listener)

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return run_loop(found, lake=Path(lake), run_id=run_id, rounds=rounds, on_event=tell, call=_task_run(run_id))


def run_with_prefect(
    info: ServerInfo,
    recipe: Recipe,
    *,
    name: str,
    lake: Path,
    run_id: str,
    rounds: int | None,
    overrides: list[str],
    on_event: Listener,
) -> RunSummary:
    """The loop as a flow run on that server; what `run_loop` returns and raises."""
    with connected(info):
        quiet(info.home)
        reconcile()
        token = _SESSION.set(_Session(recipe, on_event))
        try:
            run_flow: Callable[..., RunSummary] = sharpen
            return run_flow(name, str(lake), run_id, rounds, recipe.seed, overrides)
        finally:
            _SESSION.reset(token)


def reconcile() -> list[str]:
    """Mark crashed what says it runs but whose process on this machine is gone (kill -9); the names of those runs."""
    gone: list[str] = []
    with get_client(sync_client=True) as client:
        unfinished = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED))),
            limit=200,
        )
        for run in unfinished:
            if _dead(run):
                _mark(client, run)
                gone.append(run.name)
    return gone


def quiet(home: Path) -> Path:
    """Send what Prefect logs to a file: the terminal belongs to the progress display. Returns the file."""
    path = home / ".prefect" / "strop-client.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, delay=True)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("prefect", "prefect._internal"):
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if isinstance(h, logging.StreamHandler)]:
            logger.removeHandler(handler)
            handler.close()
        logger.addHandler(to_file)
        logger.propagate = False
    root = logging.getLogger()
    for console in [h for h in root.handlers if type(h).__name__ == "PrefectConsoleHandler"]:
        root.removeHandler(console)
    return path


def _task_run(run_id: str) -> Callable[..., Any]:
    """How a step is called: as a task run of its own, in this thread."""

    def call(label: str, round: int, step: Callable[[], Any]) -> Any:
        @task(name=label, task_run_name=f"r{round} {label}", cache_policy=NO_CACHE, persist_result=False, retries=0)
        def stage(run_id: str, round: int, stage: str) -> Any:
            return step()

        return stage(run_id, round, label)

    return call


def _claim() -> None:
    """Write which process drives this flow run, so that a later start can tell whether it still lives."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    me: dict[str, bool | int | float | str] = {
        "strop.host": socket.gethostname(),
        "strop.pid": os.getpid(),
        "strop.started": process_started(os.getpid()) or 0.0,
    }
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(context.flow_run.id, me)


def _dead(run: FlowRun) -> bool:
    labels = run.labels or {}
    if labels.get("strop.host") != socket.gethostname():
        return False  # another machine's, or one that never got as far as claiming
    started = process_started(int(labels["strop.pid"]))
    return started is None or abs(started - float(labels["strop.started"])) > 1.0


def _mark(client: SyncPrefectClient, run: FlowRun) -> None:
    state: State[Any] = Crashed(
        message="its process is gone; the same command resumes it from the last committed stage"
    )
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNFINISHED))),
    )
    for task_run in tasks:
        client.set_task_run_state(task_run.id, state, force=True)
    client.set_flow_run_state(run.id, state, force=True)


@contextlib.contextmanager
def connected(info: ServerInfo) -> Iterator[None]:
    """Use the server, also where prefect was imported before the environment named it."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    use(info)
    settings: dict[Any, Any] = {PREFECT_API_URL: info.url}
    if info.pid is not None:
        # A heartbeat costs each flow a second at its end and serves automations, of which this server has none:
        # `reconcile` finds the dead.
        settings[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
    with temporary_settings(settings):
        yield
