"""docs/objectives.md: it names every objective under what it learns from, and what it shows works."""

import re
from pathlib import Path

import pytest
import yaml
from objective_tools import check_cuts

from strop.core.recipe import load
from strop.core.registry import builtin_names, find
from strop.core.token_scoring import scored_by

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
RECIPE = """
name: page
rounds: 1
base: pretrained_char
tasks: [chain_arithmetic]
engine: hf
heldout: {n: 2, max_tokens: 16}
round:
  - select: {use: uniform, problems: 8}
  - generate: {use: sample, n: 2, max_tokens: 16}
  - verify: answer
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_objective_stands_under_the_kind_it_learns_from():
    table = PAGE.split("## Which there are")[1].split("A recipe swaps")[0]
    kinds, kind = {}, ""
    for line in table.splitlines()[4:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3:
            kind = cells[0] or kind
            for name in re.findall(r"`(\w+)`", cells[2]):
                kinds[name] = {"SFT rows": "sft", "pairs": "pair", "pairs of three scopes": "pair"}.get(kind, "group")
    for learns, names in re.findall(r"^\| (pairs|groups)[^|]* \| ([^|]*) \|", section("Reward models"), re.MULTILINE):
        kinds |= dict.fromkeys(re.findall(r"`(\w+)`", names), {"pairs": "pair"}.get(learns, "group"))
    assert kinds == {name: find("objective", name).mark.examples for name in builtin_names("objective")}


def test_the_recipe_with_a_reward_model_is_one(tmp_path):
    (lines,) = re.findall(r"```yaml\n(.*?)```", section("Reward models"), re.DOTALL)
    (tmp_path / "page.yaml").write_text(RECIPE + lines)
    recipe = load(str(tmp_path / "page.yaml"))
    by_kind = {step.kind: step.plugin for step in recipe.round}
    assert (by_kind["verify"].name, by_kind["train_reward"].mark.head) == ("reward_model", "score")


def test_the_recipe_with_token_scores_is_one(tmp_path):
    (lines,) = re.findall(r"```yaml\n(.*?)```", section("Token scores"), re.DOTALL)
    (tmp_path / "page.yaml").write_text(RECIPE + lines)
    recipe = load(str(tmp_path / "page.yaml"))
    scorer = scored_by(recipe.round[-1], recipe.round)
    assert (recipe.round[-1].name, scorer.name) == ("prime", "implicit_reward")


PAGE_RECIPES = [lines for lines in blocks("yaml") if "train_reward" not in lines]


@pytest.mark.parametrize("lines", PAGE_RECIPES, ids=["grpo", "dpo", "ppo", "trl"])
def test_the_recipes_are_ones(tmp_path, lines):
    (tmp_path / "page.yaml").write_text(RECIPE + lines)
    recipe = load(str(tmp_path / "page.yaml"))
    assert [step.kind for step in recipe.round][-2:] == ["build", "train"]
    assert "reference" in recipe.round[-1].plugin.mark.required(recipe.round[-1].objective)
    assert yaml.safe_load(lines)


def test_the_objective_shown_is_one(tmp_path, monkeypatch):
    (code,) = blocks("python")
    (tmp_path / "ahead.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    plugin = find("objective", "./ahead.py:ahead")
    config = plugin.configure({"high": 0.1})
    loss = check_cuts(lambda batch: plugin.call(config, {"batch": batch}))
    assert loss.value.item() != 0


def test_every_part_of_the_algebra_is_named():
    modules = {p.stem for p in (Path(__file__).parents[2] / "core" / "algebra").glob("*.py")} - {"__init__", "lazy"}
    assert set(re.findall(r"`(\w+)`", PAGE.split("| module of")[1])) >= modules
