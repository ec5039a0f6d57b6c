"""`strop run | serve | plan | validate`: what a recipe does, would do, and does on a schedule."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from strop.flows import display, options, output, server
from strop.flows.output import say
from strop.storage.errors import is_interrupt

if TYPE_CHECKING:
    from strop.core.events import RunSummary
    from strop.core.recipe import Recipe

REFUSED, INTERRUPTED = 3, 130


def run(
    recipe: options.Recipe = "default",
    run_id: options.RunId = None,
    lake: options.Lake = options.LAKE,
    rounds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--rounds", min=1, help="Rounds in total, instead of the recipe's."),
    ] = None,
    seed: options.Seed = None,
    overrides: options.Set = None,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="Run without a Prefect server.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print every event as a line of JSON.")] = False,
    fail_if_not_promoted: Annotated[
        bool, typer.Option("--fail-if-not-promoted", help="Exit with 3 when the last round's gate kept the champion.")
    ] = False,
) -> int:
    """Run a recipe, or continue the run where it stopped.

    Committed work is never done again: the same command after a crash, a kill or Ctrl-C goes on from there.
    """
    from strop.core.recipe import default_run_id, load

    overrides = overrides or []
    found = load(recipe, overrides=overrides, seed=seed)
    run_id = run_id or default_run_id(found)
    total = rounds or found.rounds
    if not (quiet or json):
        say(f"{found.name}: run {run_id}, {total} round{'s' * (total != 1)}, lake {lake}")
    drive = _plainly if no_prefect else _under_prefect
    mode = "json" if json else "quiet" if quiet else "auto"
    try:
        with term_interrupts(), display.listening(mode) as listen:
            drive(found, name=recipe, lake=lake, run_id=run_id, rounds=rounds, overrides=overrides, on_event=listen)
    except (KeyboardInterrupt, Exception) as error:
        if not is_interrupt(error):
            raise
        say(f"\ninterrupted; what was committed stays. To go on:\n  {again(run_id)}")
        return INTERRUPTED
    return _finish(lake, run_id, show=not json, hints=not quiet, strict=fail_if_not_promoted)


def _plainly(
    recipe: Recipe,
    *,
    name: str,
    lake: Path,
    run_id: str,
    rounds: int | None,
    overrides: list[str],
    on_event: Callable[[Any], None],
) -> RunSummary:
    """The loop in this process alone; `name` and `overrides` are in the recipe already."""
    from strop.core.round import run_loop

    return run_loop(recipe, lake=lake, run_id=run_id, rounds=rounds, on_event=on_event)


def _under_prefect(recipe: Recipe, *, lake: Path, **more: Any) -> RunSummary:
    home = server.home_of(lake)
    if server.given() is None and server.find(home) is None:
        say("starting this project's Prefect server (once; some seconds) ...")
    info = server.ensure(home)
    say(f"Prefect: {info.ui}" + ("   (stop it with: strop server stop)" if info.pid else ""))
    server.use(info)
    from strop.flows.flow import run_with_prefect

    return run_with_prefect(info, recipe, lake=lake, **more)


def _finish(lake: Path, run_id: str, *, show: bool, hints: bool, strict: bool) -> int:
    """Show the run's rounds as the lake has them, and what to try next."""
    from strop.flows import report, runs

    state = next((s for s in runs.states(lake) if s.run_id == run_id), runs.RunState(run_id))
    if show:
        report.print_rounds(state)
        if hints:
            report.print_hints(state, lake)
    last = state.rounds.get(state.round)
    if strict and (last is None or last.action != "promote"):
        say(f"the gate did not promote round {state.round}: {last.reason if last else 'no round is done'}")
        return REFUSED
    return 0


@contextlib.contextmanager
def term_interrupts() -> Iterator[None]:
    """TERM ends a run like Ctrl-C: workers are stopped, and the message says how to go on."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def again(run_id: str) -> str:
    """The command line that continues this run."""
    words = ["strop", *sys.argv[1:]]
    if "--run-id" not in words:
        words += ["--run-id", run_id]
    return shlex.join(words)


def validate(
    recipe: options.Recipe = "default",
    overrides: options.Set = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipe files, for an editor, and exit.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Check a recipe without running it.

    Plugins are found, settings are right, and what a stage reads is written before it.
    """
    from strop.core.recipe import load

    if schema:
        from strop.core.recipe_schema import json_schema

        print(output.as_json(json_schema()))
        return
    found = load(recipe, overrides=overrides or [])
    if json:
        print(output.as_json(found.canonical()))
        return
    print(f"{found.path}: {found.name} is valid")
    steps = [[step.label, step.plugin.name, step.plugin.doc] for step in found.round]
    output.table(["stage", "plugin", "what it does"], [[output.cell(v) for v in row] for row in steps])


def plan(
    recipe: options.Recipe = "default",
    run_id: options.RunId = None,
    lake: options.Lake = options.LAKE,
    rounds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--rounds", min=1, help="Rounds in total, instead of the recipe's."),
    ] = None,
    seed: options.Seed = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """Say what a run would do and how long it takes.

    Stages, rollouts, tokens, and what the lake already has. Runs nothing.
    """
    import dataclasses

    from strop.core.plan import plan as make_plan
    from strop.core.recipe import default_run_id, load
    from strop.flows import report

    found = load(recipe, overrides=overrides or [], seed=seed)
    run_id = run_id or default_run_id(found)
    made = make_plan(found, lake if lake.exists() else None, run_id, rounds)
    if json:
        print(output.as_json(dataclasses.asdict(made)))
    else:
        report.print_plan(found, made)


def serve(
    recipe: options.Recipe,
    cron: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--cron", help='When to add a round, as a cron line: "0 3 * * *".'),
    ] = None,
    every: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--every", metavar="DURATION", help="Add a round at this interval: 90s, 15m, 6h, 1d."),
    ] = None,
    lake: options.Lake = options.LAKE,
    run_id: options.RunId = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Name of the schedule in Prefect; the run id when left out."),
    ] = None,
    collision: Annotated[
        str,
        typer.Option("--collision", help="A firing while one still runs: 'cancel' the new one, or 'enqueue' it."),
    ] = "cancel",
    seed: options.Seed = None,
    overrides: options.Set = None,
) -> int:
    """Add a round to a run on a schedule.

    Stays in the foreground until Ctrl-C. Two firings never overlap; each has a process of its own.
    """
    from strop.core.recipe import default_run_id, load
    from strop.flows import schedule

    when = schedule.parse(cron, every)
    strategy = schedule.strategy(collision)
    found = load(recipe, overrides=overrides or [], seed=seed)
    run_id = run_id or default_run_id(found)
    info = server.ensure(server.home_of(lake))
    server.use(info)
    from strop.flows.serve import serve_recipe

    return serve_recipe(
        info,
        recipe=str(found.path or recipe),
        lake=lake.resolve(),
        run_id=run_id,
        name=name or run_id,
        when=when,
        strategy=strategy,
        seed=seed,
        overrides=overrides or [],
    )
