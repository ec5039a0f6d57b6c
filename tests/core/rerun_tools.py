"""What tests of reruns and re-verification share."""

import shutil

import pytest
import tiny_run

from strop.core.rerun import prepare
from strop.core.round import run_loop
from strop.storage.console import open_console
from strop.storage.lake import open_lake
from strop.storage.tables import columns
from strop.storage.views import literal


class Died(BaseException):
    """Like a signal: nothing catches it."""


def query(folder, sql, *params):
    """Rows of a query over the folder's lake; through the console, which opens ten times faster than a lake."""
    for value in params:
        sql = sql.replace("?", literal(value), 1)
    with open_console(folder / "lake") as console:
        return console.query(sql).rows


def rows(folder, row, where="true"):
    """Rows of a table of the folder's lake, in order of their id."""
    names = [column.name for column in columns(row)]
    found = query(folder, f"SELECT {', '.join(names)} FROM {row.TABLE} WHERE {where} ORDER BY {row.ID or 'run_id'}")
    return [row(**dict(zip(names, values, strict=True))) for values in found]


def prepared(folder, *sources, start, **more):
    """The rerun those words mean."""
    with open_lake(folder / "lake", read_only=True) as lake:
        return prepare(lake, sources, start, **more)


def rerun(folder, *sources, start, on_event=lambda event: None, **more):
    """Prepare and run; the new run's id."""
    made = prepared(folder, *sources, start=start, **more)
    run_loop(
        made.recipe,
        lake=folder / "lake",
        run_id=made.run_id,
        rounds=len(made.reuse.rounds),
        reuse=made.reuse,
        until=made.until,
        on_event=on_event,
    )
    return made.run_id


def finished(tmp_path_factory, stages=tiny_run.ROUND, plugins="", **top):
    """A folder with a finished run `tiny`, to be copied by `copied`, and its recipe."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.inline(patch)
        tiny_run.run(tiny_run.write(folder, stages, plugins, **top), folder)
    return folder


def copied(folder, tmp_path, monkeypatch):
    """A copy of such a folder, in which we stand: local plugins of a stored recipe are looked for there."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
