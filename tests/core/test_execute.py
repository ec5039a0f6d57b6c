"""What a plugin may give back, and what is said of one that gives back something else."""

from pathlib import Path

import pytest

from strop.core import execute as module
from strop.core.execute import Call, execute, ref
from strop.core.finish import Stamp
from strop.core.recipe import load
from strop.storage.errors import PluginError, StageError
from strop.storage.tables import Rollout

PLUGIN = '''
"""A filter."""
from strop.core.plugin import Config, Returned, stage
from strop.storage.tables import Decision, Problem

class Nothing(Config):
    """Nothing to set."""

@stage("filter")
def it(config: Nothing, *, rollouts{state}):
    {body}
'''


def called(folder: Path, body: str, state: str = ""):
    path = folder / "mine.py"  # the folder is the test's own
    path.write_text(PLUGIN.format(body=body, state=state))
    found = module.registry.find("filter", f"{path}:it", folder=folder)
    here = module.PluginRef("filter", f"{found.origin}:it", folder, {}, "it")
    data = {"rollouts": [Rollout(rollout_id=5, problem_id=1, completion="")], "state": None}
    return execute(Call(here, Stamp("run", 1, 7, "it"), data, folder / "out"), lambda report: None)


@pytest.mark.parametrize(
    ("body", "rows", "state"),
    [
        ("return [Decision(subject_id=5, keep=True)]", 1, None),
        ("yield Decision(subject_id=5, keep=True)", 1, None),
        ("return Returned((Decision(subject_id=5, keep=True),), {'a': 1})", 1, {"a": 1}),
        ("return []", 0, None),
    ],
)
def test_rows_and_state_come_out_of_a_list_a_generator_or_returned(tmp_path, body, rows, state):
    made = called(tmp_path, body, ", state")
    assert (made.counts, made.state) == ({"decisions": rows}, state)
    assert bool(made.files) == bool(rows)


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ("return None", PluginError, r"filter plugin 'it' must return a list of Decision, it returned NoneType"),
        ("return {}", PluginError, r"must return a list of Decision, it returned dict"),
        ("return Returned([], {})", PluginError, r"returned state and does not ask for it; name `state`"),
        ("return [Problem(prompt='')]", PluginError, r"returned a Problem; it may return Decision"),
        (
            "return [Decision(subject_id='x', keep=True)]",
            PluginError,
            r"returned a Decision for rollout x|returned a wrong value: decisions\.subject_id",
        ),
        ("return [Decision(subject_id=5, keep=3.5)]", PluginError, r"returned a wrong value: decisions\.keep must be"),
        ("return [1 / 0]", StageError, r"filter plugin 'it' failed: ZeroDivisionError: division by zero"),
        ("yield 1 / 0", StageError, r"filter plugin 'it' failed: ZeroDivisionError"),
    ],
)
def test_anything_else_is_an_error_that_names_the_plugin(tmp_path, capsys, body, kind, says):
    with pytest.raises(kind, match=says):
        called(tmp_path, body)


def test_a_generator_in_returned_that_fails_names_the_plugin_too(tmp_path):
    with pytest.raises(StageError, match="filter plugin 'it' failed: ZeroDivisionError"):
        called(tmp_path, "return Returned((1 / r.sample_index for r in rollouts), {})", ", state")


def test_a_full_disk_is_no_fault_of_the_plugin(tmp_path, monkeypatch):
    from strop.storage import parquet

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_rows", full)
    with pytest.raises(StageError, match=r"cannot write to .*No space left.*make room there"):
        called(tmp_path, "return [Decision(subject_id=5, keep=True)]")


def test_a_built_in_plugin_travels_by_name_and_a_local_one_by_its_file(tmp_path):
    step = load("smoke").round[0]
    there = ref(step, tmp_path)
    assert (there.stage, there.use, there.settings["problems"]) == ("select", step.plugin.name, step.config.problems)
    assert there.load()[1] == step.config
