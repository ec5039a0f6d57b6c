"""The project that `strop init` writes: a recipe, a verify plugin of one's own, problems, and a test that passes."""

from __future__ import annotations

import json
import random
from string import Template

RECIPE = Template("""\
# strop validate recipe.yaml    check it        strop run recipe.yaml    run it, or go on with it
name: $name
description: Sharpen a small character model on the problems of this folder
rounds: 3
base: pretrained_char                  # about a minute on two CPU cores, kept for every later run
tasks:
  - {use: jsonl, path: ./problems.jsonl, heldout: 0.2}   # a fifth is kept for the exam
engine: hf
heldout: {n: 4, max_tokens: 96}        # how every policy is examined
round:
  - select: {use: uniform, problems: 400}
  - generate: {use: sample, n: 8, max_tokens: 96}
  - verify: {use: "./near_match.py:near_match", tolerance: 0.0}
  - filter: correct
  - build: {use: rft, per_problem: 4}
  - train: {objective: sft, init_from: champion, lr: 7.0e-4, epochs: 2, batch_tokens: 1024}
  - evaluate: pass_at_k
  - gate: bootstrap_better
""")

PLUGIN = '''"""Passes a completion whose last number is within a tolerance of the reference.

Source: your own. Change it: `strop plugins check verify ./near_match.py:near_match` tells whether it still fits.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from strop.core.plugin import PerRollout, stage
from strop.storage.tables import Problem, Rollout, Score


class NearMatch(PerRollout):
    """Settings of `near_match`."""

    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """Largest difference from the reference that still passes."""


@stage("verify", version="1")
def near_match(config: NearMatch, *, rollout: Rollout, problem: Problem) -> Score:
    """The verdict on one completion. A problem without a number as its reference is an error, never a zero."""
    reference = number(problem.reference or "")
    if reference is None:
        reason = f"the reference is not a number: {problem.reference!r}"
        return Score(subject_id=rollout.rollout_id, verdict="error", value=None, reason=reason)
    text = rollout.completion.rsplit("=", 1)[-1].strip()
    answer = number(text)
    passed = rollout.finish_reason == "stop" and answer is not None and abs(answer - reference) <= config.tolerance
    return Score(
        subject_id=rollout.rollout_id, verdict="pass" if passed else "fail", value=float(passed), answer=text
    )


def number(text: str) -> float | None:
    """The number a text is, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None
'''

TEST = '''"""The promises of this folder: the recipe is valid, and the verifier judges as it says. Run: pytest"""

from pathlib import Path

import near_match as mine
import pytest
from strop.core import recipe
from strop.storage.tables import Problem, Rollout

HERE = Path(__file__).parent


def verdict(completion, reference="10", finish_reason="stop", tolerance=0.0):
    rollout = Rollout(rollout_id=1, problem_id=7, completion=completion, finish_reason=finish_reason)
    problem = Problem(problem_id=7, prompt="3+8-1=", reference=reference)
    return mine.near_match(mine.NearMatch(tolerance=tolerance), rollout=rollout, problem=problem)


@pytest.mark.parametrize(
    ("completion", "expected"), [("10", "pass"), ("11-1=10", "pass"), ("11-1=9", "fail"), ("ten", "fail"), ("", "fail")]
)
def test_the_number_after_the_last_equals_sign_decides(completion, expected):
    assert verdict(completion).verdict == expected


def test_a_near_answer_passes_within_the_tolerance():
    assert verdict("9.5", tolerance=0.5).verdict == "pass"
    assert verdict("9.4", tolerance=0.5).verdict == "fail"


def test_a_completion_that_was_cut_off_fails():
    assert verdict("10", finish_reason="length").verdict == "fail"


def test_a_reference_that_is_no_number_is_an_error_and_not_a_zero():
    score = verdict("10", reference="ten")
    assert score.verdict == "error"
    assert score.value is None


def test_the_recipe_is_valid_and_uses_this_verifier():
    found = recipe.load(str(HERE / "recipe.yaml"))
    assert "near_match" in [step.plugin.name for step in found.round]
'''

CONFTEST = '''"""Lets the tests import the plugins beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
'''

README = Template("""\
# $name

A Strop loop: it samples answers to the problems in `problems.jsonl`, judges them with `near_match.py`, trains on the
right ones and keeps the new policy if it is better, round after round.

    pytest                                  # the verifier and the recipe keep their promises
    strop validate recipe.yaml              # plugins found, settings right
    strop plan recipe.yaml                  # how much it will sample
    strop run recipe.yaml                   # three rounds; the same command goes on after a crash or Ctrl-C
    strop status                            # where it stands
    strop sql "SELECT verdict, count(*) FROM scores GROUP BY 1"

| file | what to change |
|---|---|
| `recipe.yaml` | the stages of a round and their settings; `strop plugins list` shows what there is |
| `near_match.py` | what counts as right |
| `problems.jsonl` | your problems: a `prompt` and its `reference` a line |
| `test_near_match.py` | what you promise |

The lake (`lake/`) keeps every rollout, score and checkpoint; `.prefect/` belongs to the local Prefect server, which
`strop server stop` ends.
""")

IGNORE = "lake/\n.prefect/\n__pycache__/\n"
PROBLEMS = 600


def files(name: str) -> dict[str, str]:
    """Every file of the project, by name."""
    return {
        "recipe.yaml": RECIPE.substitute(name=name),
        "near_match.py": PLUGIN,
        "problems.jsonl": problems(),
        "test_near_match.py": TEST,
        "conftest.py": CONFTEST,
        "README.md": README.substitute(name=name),
        ".gitignore": IGNORE,
    }


def problems() -> str:
    """Sums and differences of three to five small numbers, every partial result between 0 and 99, none twice."""
    draw = random.Random(0)
    found: dict[str, int] = {}
    while len(found) < PROBLEMS:
        value = draw.randint(1, 9)
        text = str(value)
        for _ in range(draw.randint(2, 4)):
            term = draw.randint(1, 9)
            sign = "-" if draw.random() < 0.5 and value >= term else "+"
            value = value - term if sign == "-" else value + term
            text += f"{sign}{term}"
        found[f"{text}="] = value
    lines = [{"prompt": prompt, "reference": str(value)} for prompt, value in found.items()]
    return "".join(f"{json.dumps(line)}\n" for line in lines)
