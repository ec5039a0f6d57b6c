"""An import: files read once to check every line, then once more into shards, each committed with its ledger row.

Nothing is in the lake before every line has been read. A killed import goes on where it was when the same command is
given again, and one that is complete does nothing: what was committed is known by the files' content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from strop.core.imports.sample import Format, Options, Sample
from strop.core.imports.shards import SHARD, Seen, Shards
from strop.core.imports.sources import check_run, describe, find_files
from strop.storage.errors import DataError
from strop.storage.lake import Lake

Progress = Callable[[str, int, int], None]
"""progress(what, done, total)."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What the lake holds of the files."""

    run_id: str
    counts: dict[str, int]
    """Rows by table."""
    shards: int
    new: int
    """Shards that were not there before."""
    skipped: list[tuple[str, int, str]]
    """Lines left out: file, line, why."""


def import_files(
    lake: Lake,
    format: Format,
    paths: Sequence[Path],
    run_id: str,
    options: Options,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Read files of a format into the lake, as the run `run_id`.

    Raises DataError, which names file and line, before anything is committed; with `skip_bad` such lines are left out
    and returned. Raises LakeError when the run exists and is not an import of these files.
    """
    if not run_id:
        raise DataError("an imported run needs a name: --run-id")
    files = find_files(format, paths)
    sources = describe(files, format, options)
    check_run(lake, run_id, format, sources)
    seen = _look(format, files, options, skip_bad, progress)
    if not seen.shards:
        raise DataError(f"there is nothing to import in {', '.join(map(str, files))}")
    job = Shards(lake, format.name, run_id, sources, seen)
    job.begin()
    job.problems()
    job.samples(format.read(files, options, lambda *_: None), progress)
    counts = {
        "problems": len(seen.problems),
        "rollouts": sum(n for _, n in seen.shards) - seen.examples,
        "scores": seen.scores,
        "examples": seen.examples,
    }
    return Imported(run_id, {k: n for k, n in counts.items() if n}, job.done + job.new, job.new, seen.skipped)


def _look(format: Format, files: Sequence[Path], options: Options, skip_bad: bool, progress: Progress | None) -> Seen:
    """Read every line once: what there is, how it is cut into shards, and what is wrong with it."""
    seen = Seen()
    parents = False

    def complain(path: Path, line: int, why: str) -> None:
        if not skip_bad:
            raise DataError(
                f"{path}:{line}: {why}. Nothing was imported; --skip-bad leaves such lines out and lists them"
            )
        seen.skipped.append((str(path), line, why))

    for number, item in enumerate(format.read(files, options, complain)):
        round = item.round if isinstance(item, Sample) else 1
        if not seen.shards or seen.shards[-1][0] != round or seen.shards[-1][1] >= SHARD:
            seen.shards.append((round, 0))
        place = seen.shards[-1][1]
        seen.shards[-1] = (round, place + 1)
        if isinstance(item, Sample):
            seen.problems.setdefault(item.problem_ref, item.problem)
            seen.scores += len(item.scores)
            if item.policy not in seen.policies:
                seen.policies.append(item.policy)
            if item.ref is not None:
                seen.refs[item.ref] = (len(seen.shards) - 1, place)
            parents |= item.parent is not None
        else:
            seen.examples += 1
        if progress is not None and number % 1000 == 0:
            progress("checking", number, 0)
    if not parents:
        seen.refs.clear()
    return seen
