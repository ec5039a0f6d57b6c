"""The examples: they run and are counted task by task, and what is wrong with their files is said in one message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_loop import clean_env

from strop.storage.console import open_console

EXAMPLES = Path(__file__).parents[2] / "examples"
DATASETS = ("chain_sum", "basic_arithmetic", "spell_backward")
STROP = [sys.executable, "-m", "strop.flows"]


def strop(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STROP, *arguments], cwd=cwd, env=clean_env(), capture_output=True, text=True, check=False)


def refused(cwd: Path, recipe: str, code: int = 1) -> str:
    """The one message."""
    done = strop("run", recipe, "--run-id", "x", "--no-prefect", cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error: ") == 1
    assert "bug in Strop" not in done.stderr
    return done.stderr.split("error: ")[1]


def problems(folder: Path) -> int:
    with open_console(folder / "lake") as console:
        return int(console.query("SELECT count(*) FROM problems").rows[0][0])


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The examples as a user would copy them, with a model directory that lacks nothing but weights."""
    folder = tmp_path / "mine"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("model"))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "tokenizer.json").write_text("{}")
    return folder


def test_the_recipes_are_valid(here: Path) -> None:
    for recipe in ("own_problems.yaml", "reasoning_gym.yaml", "feedback.yaml"):
        done = strop("validate", recipe, cwd=here)
        assert done.returncode == 0, done.stderr


def test_a_model_directory_without_weights_is_named_and_the_problems_stay(here: Path) -> None:
    said = refused(here, "own_problems.yaml")
    for word in (str(here / "model"), "lacks weights (*.safetensors)"):
        assert word in said
    assert "tokenizer" not in said
    assert problems(here) == 400


def test_a_model_directory_that_is_not_there_is_named(here: Path) -> None:
    shutil.rmtree(here / "model")
    assert f"there is no directory {here / 'model'}" in refused(here, "own_problems.yaml")


def replace_line_3(line: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [*lines[:2], line, *lines[3:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [], ["problems.jsonl is empty", 'write one JSON object a line, such as {"question": ']),
        (
            replace_line_3('{"question": "1+1", "answer": 2'),
            ["problems.jsonl:3: not JSON", "at column 32"],
        ),
        (replace_line_3("1+1=2"), ["problems.jsonl:3: not JSON", 'such as {"question": "2+3=", "answer": "5"}']),
        (replace_line_3('"1+1=2"'), ["problems.jsonl:3: a JSON object is expected, got '\"1+1=2\"'"]),
        (replace_line_3('{"question": "1+1", "answer": null}'), ["problems.jsonl:3: 'answer' is null", "optional"]),
        (
            lambda lines: [line.replace('"answer"', '"solution"') for line in lines],
            ["problems.jsonl:1: no field 'answer'; there is: ", "solution", "`reference: its_name`", "optional"],
        ),
        (
            lambda lines: [line.replace('"question"', '"quest"') for line in lines],
            ["problems.jsonl:1: no field 'question'; did you mean 'quest'?", "`prompt: its_name`"],
        ),
    ],
    ids=["empty", "cut off", "no JSON", "no object", "null", "no references", "no prompts"],
)
def test_a_bad_file_of_problems_is_named_with_its_line(
    here: Path, change: Callable[[list[str]], list[str]], words: list[str]
) -> None:
    file = here / "problems.jsonl"
    file.write_text("\n".join(change(file.read_text().splitlines())))
    said = refused(here, "own_problems.yaml")
    for word in words:
        assert word in said
    assert problems(here) == 0


def test_after_a_bad_file_is_mended_the_same_command_takes_it(here: Path) -> None:
    file = here / "problems.jsonl"
    good = file.read_text()
    file.write_text(good + "{")
    assert "problems.jsonl:401: not JSON" in refused(here, "own_problems.yaml")
    file.write_text(good)
    assert "lacks weights" in refused(here, "own_problems.yaml")
    assert problems(here) == 400


def test_a_wrong_dataset_name_is_refused_with_the_nearest_one(here: Path) -> None:
    recipe = here / "reasoning_gym.yaml"
    recipe.write_text(recipe.read_text().replace("dataset: chain_sum", "dataset: chain_smu"))
    assert "no data set 'chain_smu'; did you mean 'chain_sum'?" in refused(here, "reasoning_gym.yaml")


def test_a_misspelt_setting_of_a_task_is_a_recipe_error_with_its_line(here: Path) -> None:
    recipe = here / "own_problems.yaml"
    recipe.write_text(recipe.read_text().replace("heldout: 0.25", "heldotu: 0.25"))
    number = next(i for i, line in enumerate(recipe.read_text().splitlines(), start=1) if "heldotu" in line)
    said = refused(here, "own_problems.yaml", code=2)
    assert f"own_problems.yaml:{number}" in said
    assert "did you mean 'heldout'?" in said
    assert not (here / "lake").exists()


@pytest.mark.slow
def test_both_examples_run_and_are_counted_task_by_task(here: Path) -> None:
    made = subprocess.run(
        [sys.executable, "make_model.py", "model", "--steps", "60"], cwd=here, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    for recipe in ("own_problems.yaml", "reasoning_gym.yaml"):
        done = strop("run", recipe, "--run-id", recipe[:3], "--rounds", "1", "--no-prefect", cwd=here)
        assert done.returncode == 0, done.stderr
    with open_console(here / "lake") as console:
        seen = console.query(
            "SELECT run_id, round, slice FROM metrics WHERE name = 'pass@1' AND slice LIKE '%/%' ORDER BY ALL"
        ).rows
        by_task = console.query("SELECT DISTINCT task FROM problems WHERE run_id = 'rea' ORDER BY task").rows
        read = console.query("SELECT reference FROM problems WHERE run_id = 'own'").rows
    assert [tuple(row) for row in seen] == [
        *(("own", n, f"heldout/{name}") for n in (0, 1) for name in ("fewer", "more")),
        *(
            ("rea", n, f"heldout/{name}")
            for n in (0, 1)
            for name in ("basic_arithmetic", "chain_sum", "spell_backward")
        ),
    ]
    assert [row[0] for row in by_task] == ["arithmetic", "spelling", "sums"]
    answers = [json.loads(line)["answer"] for line in (here / "problems.jsonl").read_text().splitlines()]
    assert sorted(int(row[0]) for row in read) == sorted(answers)
