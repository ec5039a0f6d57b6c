"""Finding plugins: by name, by file, by entry point; and what is said when that fails."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from strop.core import registry
from strop.core.plugin import STAGES
from strop.storage.errors import PluginError

GOOD = '''
"""Drops everything.

Source: a test.
"""
from strop.core.plugin import Config, stage

class Nothing(Config):
    """None."""
    limit: int = 1
    """A number."""
    required: str
    """Needed."""

@stage("filter")
def nothing(config: Nothing, *, rollouts):
    return []
'''


def distribution(folder: Path, name: str, entry: str, stage: str = "filter") -> None:
    """As pip leaves it: metadata alone is enough to be listed."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[strop.{stage}]\n{entry}\n")


def test_every_built_in_plugin_loads_and_is_listed():
    for stage in STAGES:
        for name in registry.builtin_names(stage):
            plugin = registry.find(stage, name)
            assert (plugin.stage, plugin.name, plugin.origin) == (stage, name, "built-in")
            assert name in registry.names(stage)
            assert not name.startswith("_")


def test_listing_names_imports_no_plugin():
    code = (
        "import sys; from strop.core import registry; registry.names('engine'); "
        "print([m for m in sys.modules if m.startswith('strop.plugins.engines.')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("stage", "name", "says"),
    [
        ("filter", "corect", r"no filter plugin 'corect'; did you mean 'correct'\?"),
        ("filter", "zzz", r"no filter plugin 'zzz'; there is: .*correct.*`strop plugins new filter`"),
        ("fliter", "correct", r"no such stage 'fliter'; did you mean 'filter'\?"),
        ("build", "correct", "no build plugin 'correct'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(stage, name, says):
    with pytest.raises(PluginError, match=says):
        registry.find(stage, name)


def test_a_function_in_a_file_is_found_from_the_recipes_folder(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    plugin = registry.find("filter", "./mine.py:nothing", folder=tmp_path)
    assert (plugin.name, plugin.origin) == ("nothing", str(tmp_path / "mine.py"))
    assert plugin.mark.handles == ("rollouts",)
    assert plugin.call(plugin.configure({"required": "x"}), {"rollouts": [], "scores": []}) == []
    assert registry.find("filter", "mine.py:nothing", folder=tmp_path).function is plugin.function


def test_two_files_of_one_name_are_two_plugins(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(GOOD.replace("limit: int = 1", f"limit: str = {name!r}"))
    found = [registry.find("filter", "mine.py:nothing", folder=tmp_path / n) for n in ("a", "b")]
    assert [p.configure({"required": "x"}).limit for p in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("./none.py:f", None, r"there is no file .*none\.py \(paths are relative to the recipe\)"),
        ("./mine.py", GOOD, r"name the function too, e\.g\. \./mine\.py:mine"),
        ("./mine.py:nothin", GOOD, "has no 'nothin'; did you mean 'nothing'"),
        ("./mine.py:nothing", "import no_such_module_at_all", "failed: ModuleNotFoundError"),
        ("./mine.py:nothing", "def nothing(", "failed: SyntaxError"),
        ("./mine.py:nothing", "def nothing(config): ...", r'needs the mark @stage\("filter"\)'),
        ("./mine.py:nothing", GOOD.replace('stage("filter")', 'stage("build")'), "is a build plugin; it cannot stand"),
        ("./mine.py:nothing", GOOD.replace("rollouts", "rolouts"), "no handle 'rolouts'; did you mean 'rollouts'"),
    ],
)
def test_a_file_that_does_not_fit_says_what_is_wrong(tmp_path, name, text, says):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(PluginError, match=says):
        registry.find("filter", name, folder=tmp_path)


def test_a_file_that_failed_is_read_again_once_mended(tmp_path):
    (tmp_path / "mine.py").write_text("oops")
    with pytest.raises(PluginError, match="NameError"):
        registry.find("filter", "mine.py:nothing", folder=tmp_path)
    (tmp_path / "mine.py").write_text(GOOD)
    assert registry.find("filter", "mine.py:nothing", folder=tmp_path).name == "nothing"


def test_two_owners_of_one_name_are_both_named(tmp_path, monkeypatch):
    distribution(tmp_path, "one", "short = one_module:short")
    distribution(tmp_path, "two", "short = two_module:short")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        PluginError, match=r"two distributions provide the filter plugin 'short': (one and two|two and one)"
    ):
        registry.find("filter", "short")


def test_a_name_that_is_built_in_cannot_be_taken(tmp_path, monkeypatch):
    distribution(tmp_path, "greedy", "correct = greedy_module:correct")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match="greedy provides a filter plugin 'correct', which is built in"):
        registry.find("filter", "correct")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (None, "'short' of thirds failed to import .thirds_module:short.: ModuleNotFoundError"),
        ("1/0", "'short' of thirds failed to import .thirds_module:short.: ZeroDivisionError"),
        ("def short(config): ...", r"'short' .entry point of thirds.: its function needs the mark"),
        (GOOD.replace("def nothing", "def short").replace("filter", "build"), r"is a build plugin"),
    ],
)
def test_an_entry_point_that_fails_names_its_owner(tmp_path, monkeypatch, module, says):
    distribution(tmp_path, "thirds", "short = thirds_module:short")
    if module is not None:
        (tmp_path / "thirds_module.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "thirds_module", raising=False)
    try:
        with pytest.raises(PluginError, match=says):
            registry.find("filter", "short")
    finally:
        sys.modules.pop("thirds_module", None)


def test_what_pydantic_says_of_a_config_is_put_in_words(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    plugin = registry.find("filter", "mine.py:nothing", folder=tmp_path)
    with pytest.raises(ValidationError) as caught:
        plugin.configure({"limt": 2, "limit": "many"})
    said = dict(registry.describe_errors(caught.value, plugin.mark.config))
    assert said["limt",] == "unknown key 'limt'; did you mean 'limit'?"
    assert said["required",] == "'required' is required: Needed."
    assert said["limit",].startswith("limit: Input should be a valid integer")
    assert said["limit",].endswith("got 'many'")
