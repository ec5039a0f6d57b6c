"""`strop import`: rollouts of other programs, as a run of the lake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from strop.flows import options, output

FORMATS = "strop, nemo-skills, verifiers or pairs"


def import_(
    form: Annotated[str, typer.Argument(help=FORMATS + ".", metavar="FORMAT")],
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders that hold them.", metavar="PATH...")],
    run_id: Annotated[str, typer.Option("--run-id", metavar="ID", help="Name of the imported run.")],
    lake: options.Lake = options.LAKE,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--task", help="Label of the task; else what the files say, or the name of their folder."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", help="The model that sampled, where the files do not say."),
    ] = None,
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--split", help="train or heldout; else what the files say, or train."),
    ] = None,
    pass_threshold: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--pass-threshold", help="verifiers: least reward that passes.", show_default="0.5"),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad lines out, and list them in the lake's logs.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Read rollouts of other programs into the lake, as a run.

    strop: lines of `strop export rollouts strop`; nemo-skills: output-rs*.jsonl; verifiers: traces.jsonl or
    results.jsonl; pairs: prompt, chosen, rejected. The same files again change nothing.
    """
    from strop.core.imports.formats import find
    from strop.core.imports.job import import_files
    from strop.core.imports.sample import Options
    from strop.storage.lake import open_lake

    if split not in (None, "train", "heldout"):
        raise typer.BadParameter(f"{split!r}; there is: heldout, train", param_hint="--split")
    chosen = find(form)
    with open_lake(lake, create=True) as opened:
        done = import_files(
            opened,
            chosen,
            paths,
            run_id,
            Options(task, model, split, pass_threshold),
            skip_bad=skip_bad,
            progress=_progress(),
        )
    report = _skipped(lake, run_id, done.skipped)
    if json:
        facts = {"run_id": done.run_id, "rows": done.counts, "new_shards": done.new, "skipped": len(done.skipped)}
        print(output.as_json({**facts, "skipped_in": report}))
        return
    counts = ", ".join(f"{number} {table}" for table, number in done.counts.items())
    print(f"{run_id}: {counts}" + ("" if done.new else "; all of it was there before"))
    if report:
        print(f"{len(done.skipped)} lines left out, listed in {report}")


def _skipped(lake: Path, run_id: str, lines: list[tuple[str, int, str]]) -> Path | None:
    """Write the list of lines left out; its path, or None where there are none."""
    import json

    if not lines:
        return None
    path = lake / "logs" / run_id / "import-skipped.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(
            json.dumps({"file": file, "line": line, "error": why}, ensure_ascii=False) + "\n"
            for file, line, why in lines
        ),
        encoding="utf-8",
    )
    return path


def _progress() -> Callable[[str, int, int], None] | None:
    """Progress on one line of stderr, where somebody sees it."""
    import sys

    if not sys.stderr.isatty():
        return None

    def show(what: str, done: int, total: int) -> None:
        end = "\n" if total and done >= total else "\r"
        print(f"{what} {done}{f' of {total}' if total else ''}", end=end, file=sys.stderr, flush=True)

    return show
