"""`strop rerun | reverify`: stored rollouts under another verifier, filter or builder, without sampling them again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from strop.flows import cli_run, display, options, output
from strop.flows.output import say

if TYPE_CHECKING:
    from strop.core.rerun import Rerun, ReusedStage
    from strop.core.reverify import Reverified

RecipeFile = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--recipe", metavar="RECIPE", help="A recipe file or name, instead of the run's own as stored."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
TARGET = re.compile(r"(?P<run>.+)@(?P<first>\d+)(-(?P<last>\d+))?")


def rerun(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="RUN, RUN@3 or RUN@1-3; several are put one after the other."),
    ],
    start: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="First stage to run; those before it are re-used.")
    ],
    until: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--to", metavar="STAGE", help="Last stage to run; the last one before `train` when left out."),
    ] = None,
    recipe: RecipeFile = None,
    overrides: options.Set = None,
    pool: Annotated[bool, typer.Option("--pool", help="Make one round of all that is re-used.")] = False,
    run_id: options.RunId = None,
    lake: options.Lake = options.LAKE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is re-used and what would run; run nothing.")
    ] = False,
    quiet: Quiet = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print every event as a line of JSON (--dry-run: the plan).")
    ] = False,
) -> int:
    """Make a new run on the rollouts of others, from a stage on.

    Nothing is copied or sampled again. Killed, the same command goes on.
    """
    from strop.core.rerun import prepare, preview
    from strop.core.round import run_loop
    from strop.storage.lake import open_lake

    with open_lake(lake, read_only=True) as opened:
        made = prepare(
            opened, sources, start, until=until, recipe=recipe, overrides=overrides or [], run_id=run_id, pool=pool
        )
        stages = preview(opened, made) if dry_run else []
    for text in made.left_out:
        say(f"left out: {text}")
    if dry_run:
        _show(made, stages, as_json=json)
        return 0
    if not (quiet or json):
        say(f"{made.recipe.name}: run {made.run_id} re-uses {made.reuse}, up to {made.until}, lake {lake}")
    mode = "json" if json else "quiet" if quiet else "auto"
    try:
        with cli_run.term_interrupts(), display.listening(mode) as listen:
            run_loop(
                made.recipe,
                lake=lake,
                run_id=made.run_id,
                rounds=len(made.reuse.rounds),
                on_event=listen,
                reuse=made.reuse,
                until=made.until,
            )
    except KeyboardInterrupt:
        say(f"\ninterrupted; what was committed stays. To go on:\n  {cli_run.again(made.run_id)}")
        return cli_run.INTERRUPTED
    if not json:
        _report(lake, made, hints=not quiet)
    return 0


def _show(made: Rerun, stages: list[ReusedStage], *, as_json: bool) -> None:
    import dataclasses

    if as_json:
        rounds = [[dataclasses.asdict(source) for source in pooled] for pooled in made.reuse.rounds]
        plan = {"run_id": made.run_id, "from": made.reuse.start, "to": made.until, "rounds": rounds}
        print(output.as_json({**plan, "stages": [dataclasses.asdict(stage) for stage in stages]}))
        return
    print(f"run {made.run_id}: re-uses {made.reuse}, up to {made.until}\n")
    lines = []
    for stage in stages:
        rows = ", ".join(f"{n:,} {table}" for table, n in stage.rows.items() if n)
        what = f"re-used from {', '.join(stage.sources)}" if stage.shards else "run"
        lines.append([str(stage.round), stage.stage, what, f"{stage.shards:,}" if stage.shards else "", rows])
    output.table(["round", "stage", "what", "shards", "rows"], lines, right=[0, 3])


def _report(lake: Path, made: Rerun, *, hints: bool) -> None:
    import shlex

    from strop.flows import report, runs

    state = next(s for s in runs.states(lake) if s.run_id == made.run_id)
    report.print_rounds(state)
    if hints:
        at = "" if lake == options.LAKE else f" --lake {shlex.quote(str(lake))}"
        say(
            f"""
try next:
  strop status{at} {made.run_id}
  strop sql{at} "SELECT round, count(*) FROM examples WHERE run_id = '{made.run_id}' GROUP BY ALL ORDER BY ALL\""""
        )


def reverify(
    target: Annotated[str, typer.Argument(metavar="RUN[@ROUND]", help="A run, or rounds of it: RUN@3, RUN@0-2.")],
    errors: Annotated[
        bool, typer.Option("--errors", help="Only what could not be judged: time-outs, a judge that was down.")
    ] = False,
    scorer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--scorer",
            metavar="LABEL",
            help="Only this verify stage; without --errors, all it judged before its version or settings changed.",
        ),
    ] = None,
    recipe: RecipeFile = None,
    overrides: options.Set = None,
    lake: options.Lake = options.LAKE,
    quiet: Quiet = False,
    json: options.Json = False,
) -> int:
    """Judge stored rollouts of a run again, in that run.

    New verdicts take the place of the old ones, which stay in the lake. Repeat it as often as needed.
    """
    from strop.core.reverify import reverify as judge

    if not (errors or scorer):
        raise typer.BadParameter("say --errors, or name the verifier to run again with --scorer", param_hint="--errors")
    run_id, rounds = _target(target)
    mode = "quiet" if quiet or json else "auto"
    try:
        with cli_run.term_interrupts(), display.listening(mode) as listen:
            found = judge(
                lake,
                run_id,
                errors=errors,
                rounds=rounds,
                scorer=scorer,
                recipe=recipe,
                overrides=overrides or [],
                on_event=listen,
            )
    except KeyboardInterrupt:
        say("\ninterrupted; what was committed stays, and the same command goes on")
        return cli_run.INTERRUPTED
    if json:
        print(output.as_json([_plain(one) for one in found]))
        return 0
    _tell(found, run_id, errors=errors)
    return 0


def _target(text: str) -> tuple[str, range | None]:
    match = TARGET.fullmatch(text)
    if match is None:
        return text, None
    first = int(match["first"])
    return match["run"], range(first, int(match["last"] or first) + 1)


def _tell(found: list[Reverified], run_id: str, *, errors: bool) -> None:
    """What was judged again, what came of it, and what does not know yet."""
    done = [one for one in found if one.rollouts]
    if not done:
        versions = ", ".join(sorted({f"{one.scorer} version {one.version}" for one in found}))
        if errors:
            print(f"no verdict of {run_id} is an error: nothing to judge again")
        else:
            print(
                f"nothing to judge again: every verdict is by {versions} with the same settings already. Where the "
                "verifier says something else now, raise `version` in its @stage mark"
            )
        return
    lines = [
        [str(one.round), one.stage, one.version, f"{one.rollouts:,}", *(str(one.verdicts.get(v, "")) for v in VERDICTS)]
        for one in done
    ]
    output.table(["round", "stage", "version", "judged again", *VERDICTS], lines, right=[0, 3, 4, 5, 6])
    for one in done:
        if one.kept:
            say(
                f"round {one.round}: {', '.join(one.kept)} made something of the old verdicts and stay as they are; "
                f"`strop rerun {run_id}@{one.round} --from {one.kept[0]}` would use the new ones"
                if one.round
                else f"round 0: {', '.join(one.kept)} measured the base by the old verdicts and stay as they are"
            )


VERDICTS = ("pass", "fail", "error")


def _plain(one: Reverified) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(one)
