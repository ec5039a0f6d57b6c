"""A schedule in the foreground: each firing adds one round to a run, in a process of its own, and no two overlap.

The schedule is a Prefect deployment with a concurrency limit of one; this process polls for its firings (Prefect's
Runner) and pauses it when it ends. Importing this module imports prefect: see `strop.flows.server.use`.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import time
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.types import DateTime
from prefect.types.entrypoint import EntrypointType

from strop.flows.flow import connected, reconcile, sharpen
from strop.flows.output import say
from strop.flows.schedule import When
from strop.flows.server import ServerInfo

POLL_S = 5.0
"""How often this process asks for firings; a firing starts at most this late."""
ENDING_S = 20.0
"""How long a firing has to end after TERM."""


def serve_recipe(
    info: ServerInfo,
    *,
    recipe: str,
    lake: Path,
    run_id: str,
    name: str,
    when: When,
    strategy: str,
    seed: int | None,
    overrides: list[str],
    poll_s: float = POLL_S,
) -> int:
    """Serve until Ctrl-C or TERM; 0 then. A firing in progress is stopped, and the next one resumes it."""
    with connected(info):
        reconcile()
        made = sharpen.to_deployment(
            name=name,
            interval=timedelta(seconds=when.every_s) if when.every_s else None,
            cron=when.cron,
            parameters={
                "recipe": recipe,
                "lake": str(lake),
                "run_id": run_id,
                "seed": seed,
                "overrides": overrides,
                "advance": 1,
            },
            description=f"Adds a round to run {run_id} of {recipe}, {when}.",
            tags=["strop"],
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy(strategy)),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        assert isinstance(made, RunnerDeployment)
        say(f"serving {name}: a round of run {run_id} {when}; stop with Ctrl-C\nPrefect: {info.ui}/deployments")
        asyncio.run(_serve(made, name, poll_s))
        reconcile()  # a firing that had to be killed could not say so itself
        say("stopped; the schedule is paused until it is served again")
        return 0


async def _serve(made: RunnerDeployment, name: str, poll_s: float) -> None:
    # The limit of the deployment, not of the runner, decides on overlap: a runner at its limit would leave a firing
    # scheduled, and start it late. No prefetch: a firing fetched early would take the slot of the one still running.
    runner = Runner(name=f"strop-{name}", query_seconds=poll_s, prefetch_seconds=0, limit=None)
    deployment_id = await runner.aadd_deployment(made)
    await _forget_missed(deployment_id)
    serving = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # it has installed its own handler for TERM, which would not wait for the schedule's pause
    ending: list[asyncio.Task[None]] = []

    def end(signum: int) -> None:
        if not ending:
            ending.append(asyncio.create_task(_end(serving, signum)))

    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, end, signum)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _end(serving: asyncio.Task[None], signum: int) -> None:
    """Let firings in progress end, so that they give their slot back, then the runner, which pauses the schedule."""
    if signum == signal.SIGINT:  # the terminal has sent it to the firing too
        await _no_children(ENDING_S / 2)
    for child in multiprocessing.active_children():
        child.terminate()
    await _no_children(ENDING_S)
    serving.cancel()


async def _no_children(timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while multiprocessing.active_children() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


async def _forget_missed(deployment_id: UUID) -> None:
    """Drop firings that came due while nobody served, as after a kill -9: the schedule goes on from now."""
    missed = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=DateTime.now("UTC")),
    )
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=missed, limit=200):
            await client.delete_flow_run(run.id)
