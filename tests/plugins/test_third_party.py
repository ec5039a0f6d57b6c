"""A plugin that somebody else packaged is found, runs and is owned like a built-in one."""

import json
import os
import subprocess
import sys

from plugin_rows import group, judged

from strop.core.registry import find

SCRIPT = """
import json
from strop.core import registry
found = registry.find("filter", "shortest")
names, config = registry.names("filter"), found.configure({})
print(json.dumps([found.origin, found.mark.version, found.doc, names, config.per_problem]))
"""


def run(code: str, path: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_an_installed_plugin_is_found_by_its_name(third_party):
    done = run(SCRIPT, third_party)
    assert done.returncode == 0, done.stderr
    origin, version, doc, names, per_problem = json.loads(done.stdout)
    assert origin == "entry point of strop-shortest"
    assert (version, per_problem) == ("3", 1)
    assert doc.startswith("Keeps the shortest correct")
    assert set(names) >= {"correct", "shortest"}


def test_without_it_installed_the_name_is_unknown(tmp_path):
    done = run(SCRIPT, str(tmp_path))
    assert done.returncode != 0
    assert "no filter plugin 'shortest'" in done.stderr


def test_it_runs_as_any_filter_does(third_party, monkeypatch):
    monkeypatch.syspath_prepend(third_party)
    plugin = find("filter", "shortest")
    rollouts = group(1, "3+8-1=11-1=10", "10", "7", "ten") + group(2, "12")
    decisions = plugin.call(
        plugin.configure({}), {"rollouts": rollouts, "scores": judged(rollouts, 1, 1, 0, "error", 1)}
    )
    assert [d.keep for d in decisions] == [False, True, False, False, True]
