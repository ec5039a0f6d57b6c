"""`strop export`: rows and policies for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from strop.flows import options, output
from strop.storage.errors import LakeError, PluginError, did_you_mean

if TYPE_CHECKING:
    from strop.storage.console import Console

WHAT = "pairs, sft, unpaired, prompts, rollouts, problems, scores, examples; or policy"
FORMAT = "trl, trl-chat, chat, verl, strop or rows; for a policy its name, RUN/rK"


def export(
    what: Annotated[str, typer.Argument(help=WHAT + ".", metavar="WHAT")],
    form: Annotated[str, typer.Argument(help=FORMAT + ".", metavar="FORMAT")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="A .jsonl or .parquet file, or a folder for `load_dataset`.")
    ],
    lake: options.Lake = options.LAKE,
    run: Annotated[Optional[str], typer.Option("--run", metavar="ID", help="Only this run.")] = None,  # noqa: UP045
    rounds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--round", metavar="K", help="Only this round, or these: 2-5."),
    ] = None,
    policy: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--policy", metavar="NAME", help="Only rollouts it sampled, or examples it was trained on."),
    ] = None,
    split: Annotated[Optional[str], typer.Option("--split", help="train or heldout.")] = None,  # noqa: UP045
    scorer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--scorer", help="Whose verdicts count; all must agree when left out."),
    ] = None,
    where: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--where", metavar="SQL", help="A condition, e.g. \"verdict = 'pass' AND level > 3\"."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=1, help="At most so many rows.")] = None,  # noqa: UP045
    shuffle_seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--shuffle-seed", help="Shuffle by this seed; else by run, round and id."),
    ] = None,
    as_of: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--as-of", metavar="WHEN", help="The lake as it stood: round=3, RUN@3, snapshot=N, a time."),
    ] = None,
    verify: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--verify", help="verl: the verifier of reward.py, instead of the run's own."),
    ] = None,
    plugins: Annotated[
        Path, typer.Option("--plugins", help="verl: folder of the recipe's own plugin files.", show_default="here")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    json: options.Json = False,
) -> None:
    """Write rows or a policy for another program.

    trl: text; trl-chat: messages; chat: {"messages": [...]}; verl: prompts and a reward function; strop: rollouts with
    problem and scores, which `strop import strop` reads; rows: the table's own columns.
    """
    from strop.storage.console import open_console

    with open_console(lake, snapshot=snapshot_of(lake, as_of, run)) as console:
        if what == "policy":
            _policy(console, form, out, force=force, json=json)
            return
        _rows(
            console,
            (what, form, out),
            {
                "run_id": run,
                "rounds": round_range(rounds),
                "policy": policy,
                "split": split,
                "scorer": scorer,
                "where": where,
                "limit": limit,
                "shuffle_seed": shuffle_seed,
            },
            reward=(verify, plugins),
            force=force,
            json=json,
        )


def _policy(console: Console, name: str, out: Path, *, force: bool, json: bool) -> None:
    from strop.storage.exchange.policy import export_policy

    done = export_policy(console, name, out, force=force)
    if json:
        print(output.as_json({"path": done.path, "policy": done.name, "files": done.files}))
    else:
        print(f"{done.path}: {done.name}, {', '.join(done.files)}")


def _rows(
    console: Console,
    target: tuple[str, str, Path],
    asked: dict[str, Any],
    *,
    reward: tuple[str | None, Path],
    force: bool,
    json: bool,
) -> None:
    from strop.storage.exchange.export import export as write
    from strop.storage.exchange.place import check_free
    from strop.storage.exchange.selection import Selection

    what, form, out = target
    check_free(out, force=force)
    if asked["split"] not in (None, "train", "heldout"):
        raise typer.BadParameter(f"{asked['split']!r}; there is: heldout, train", param_hint="--split")
    beside = reward_files(console, asked["run_id"], *reward) if form == "verl" else {}
    done = write(console, what, form, out, Selection(**asked), force=force, beside=beside)
    if json:
        print(output.as_json({"path": done.path, "snapshot": done.snapshot, "rows": done.rows}))
    else:
        counts = ", ".join(f"{number} {split}" for split, number in done.rows.items())
        print(f"{done.path}: {counts.replace(' all', '')} {what} ({form}), snapshot {done.snapshot}")


def reward_files(console: Console, run: str | None, verify: str | None, folder: Path) -> dict[str, str]:
    """`reward.py` for verl, and the user's own plugin files it needs. Raises LakeError or PluginError."""
    import json
    from importlib import metadata

    from strop.core.reward import Reward, local_files, spec
    from strop.storage.exchange.verl import reward_file
    from strop.storage.views import literal

    only = "" if run is None else f" WHERE run_id = {literal(run)}"
    runs = console.query(f"SELECT run_id, recipe_json, seed FROM runs{only} ORDER BY run_id").rows
    if not runs:
        known = [row[0] for row in console.query("SELECT run_id FROM runs").rows]
        raise LakeError(f"the lake {console.root} has no run {run!r}{did_you_mean(run or '', known)}")
    if len(runs) > 1:
        raise LakeError(f"reward.py is of one run: choose it with --run{did_you_mean('', [row[0] for row in runs])}")
    run_id, text, seed = runs[0]
    recipe = json.loads(text)
    if verify is not None:
        recipe["round"] = [{"verify": {"use": verify, "as": Path(verify).stem}}]
    found = spec(recipe, seed)
    files = {}
    for name in local_files(found):
        if not (folder / name).is_file():
            raise PluginError(f"the run's recipe has a plugin of its own, {name}: --plugins names the folder it is in")
        files[name] = (folder / name).read_text(encoding="utf-8")
    Reward(found, folder)  # a reward that cannot be loaded is not worth exporting
    return {**files, "reward.py": reward_file(found, run=run_id, version=metadata.version("strop"))}


def round_range(text: str | None) -> tuple[int, int] | None:
    """First and last round of `3` or `2-5`. Raises a usage error."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise typer.BadParameter(f"{text!r}: a round, 3, or a range of them, 2-5", param_hint="--round")
    return int(first), int(last or first)


def snapshot_of(lake: Path, as_of: str | None, run: str | None) -> int | None:
    """The snapshot that `--as-of` names; None = the newest. Raises LakeError."""
    from strop.storage.as_of import resolve

    return None if as_of is None else resolve(lake, as_of, run)
