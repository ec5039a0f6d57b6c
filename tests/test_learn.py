"""benchmarks/learn.py and the page it writes: real runs made small, and the page of the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from strop.core.recipe import METHODS, RECIPES, load

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "benchmarks"))

from learn import pages  # noqa: E402
from learn_parts import figures  # noqa: E402
from learn_parts.figures import FAMILIES, Run, methods, over_seeds, read  # noqa: E402
from learn_parts.page import fallen  # noqa: E402

from strop.storage.tables import Decision  # noqa: E402

SHARED = ("name", "description", "filter", "build", "train_reward", "train", "gate")
"""Where a method's recipe may differ from another's."""


def run(method: str, seed: int, *ones: float, stopped: str | None = None) -> Run:
    curve = {name: [*ones] for name in figures.NAMES}
    return Run(method, seed, load(method, seed=seed).identity(), curve, 1.0, stopped)


def tiny(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One round on the smoke recipe's base and kind of problems."""
    base = yaml.safe_load((RECIPES / "smoke.yaml").read_text())["base"]
    settings = [f"base.{key}={json.dumps(value)}" for key, value in base.items() if key != "use"]
    settings += [f"task.{key}={json.dumps(value)}" for key, value in base["task"].items()]
    settings += ["select.problems=24", "generate.max_tokens=24", "heldout.max_tokens=24", "rounds=1"]
    settings += ["task.heldout_per_category=8", "task.train=96"]
    command = [sys.executable, ROOT / "benchmarks" / "learn.py", "--lake", folder / "lake", "--docs", folder / "docs"]
    command += [part for setting in settings for part in ("--set", setting)]
    return subprocess.run([*command, "--seeds", "1", *arguments], capture_output=True, text=True, timeout=300)


def test_methods_are_run_once_and_stand_in_the_page(tmp_path: Path) -> None:
    first = tiny(tmp_path, "--methods", "dpo_champion,hpt")
    assert first.returncode == 0, first.stderr
    assert [line.split(":")[0] for line in first.stdout.splitlines()] == [
        f"{method} seed 0 round {at}" for method in ("dpo_champion", "hpt") for at in (0, 1)
    ]
    found = read(tmp_path / "docs" / "methods.json")
    assert [(r.method, r.rounds, r.stopped) for r in found] == [("dpo_champion", 1, None), ("hpt", 1, None)]
    assert len({r.figures["pass@1"][0] for r in found}) == 1  # one base, examined alike
    assert all(0 < value <= 1 for r in found for curve in r.figures.values() for value in curve)
    page = (tmp_path / "docs" / "methods.md").read_text()
    assert f"| {found[1].figures['pass@1'][0]:.2f} | {over_seeds(found, 'hpt', 'pass@1')[1]} |" in page
    again = tiny(tmp_path, "--methods", "dpo_champion,hpt")
    assert (again.returncode, again.stdout) == (0, "")


def test_a_method_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = tiny(tmp_path, "--methods", "grppo")
    assert done.returncode == 2
    assert "no method 'grppo'; did you mean 'grpo'?" in done.stderr


def test_figures_are_of_the_policy_that_would_be_handed_over() -> None:
    def gate(at: int, keep: bool) -> Decision:
        return Decision(subject_id=1, keep=keep, round=at)

    assert figures._handed_over(3, []) == [0, 1, 2, 3]
    assert figures._handed_over(3, [gate(1, True), gate(2, False), gate(3, True)]) == [0, 1, 1, 3]
    assert figures._handed_over(-1, []) == []


def test_a_page_marks_few_seeds_and_names_what_falls_back_and_what_stopped() -> None:
    runs = [run("grpo", seed, 0.3, 0.4 + seed / 10, 0.45 + seed / 20) for seed in range(3)]
    runs += [run("dpo", 0, 0.3, 0.45, 0.2), run("kto", 0, 0.3, 0.4, stopped="round 2: no"), run("star", 0)]
    page = pages(runs)["methods.md"]
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert [row.split("]")[0] for row in rows] == ["| [grpo", "| [kto", "| [dpo"]
    assert "| 3 | 0.30 | 0.50 (0.45 - 0.55) | 1: 0.50 |" in rows[0]
    assert "| **only 1** | 0.30 | 0.40 (0.40 - 0.40) (round 1) |" in rows[1]
    assert "below their best round: `dpo`." in page
    assert "`kto` with seed 0 stopped: round 2: no" in page
    assert fallen({"a": over_seeds(runs, "grpo", "pass@1"), "b": over_seeds(runs, "dpo", "pass@1")}) == ["b"]
    with pytest.raises(ValueError, match="run a method first"):
        pages([])


def test_the_picture_has_a_panel_for_each_family_and_a_line_for_each_method() -> None:
    runs = [run(method, 0, 0.3, 0.4) for method in methods()]
    picture = pages(runs)["methods.svg"]
    assert all(f">{label}<" in picture for label in (*FAMILIES, *methods()))


def test_the_page_is_what_the_figures_and_the_recipes_give() -> None:
    runs = read(DOCS / "methods.json")
    for name, text in pages(runs).items():
        assert (DOCS / name).read_text() == text, f"docs/{name} differs: run `python benchmarks/learn.py --page`"


def test_the_figures_are_of_the_recipes_as_they_are() -> None:
    runs = read(DOCS / "methods.json")
    old = [(run.method, run.seed) for run in runs if load(run.method, seed=run.seed).identity() != run.recipe]
    assert not old, "their recipes have changed: run benchmarks/learn.py for them"


def test_every_method_belongs_to_a_family() -> None:
    assert sorted(name for family in FAMILIES.values() for name in family) == sorted(methods())


@pytest.mark.parametrize("method", methods())
def test_methods_differ_only_in_what_they_say(method: str) -> None:
    def common(name: str) -> dict[str, object]:
        data = yaml.safe_load((METHODS / f"{name}.yaml").read_text())
        data["round"] = [entry for entry in data["round"] if not set(entry) & set(SHARED)]
        data["tasks"] = [{k: v for k, v in task.items() if k != "solutions"} for task in data["tasks"]]
        return {key: value for key, value in data.items() if key not in SHARED}

    assert common(method) == common("grpo")
