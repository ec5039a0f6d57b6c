"""A run's verifiers as one reward, outside any run: what a reward function for another trainer calls.

The verdict is that of the pass rates (every verifier must say pass); without verdicts, the mean of the graded values.
What could not be judged is an error: its score is 0, because a trainer wants a number, and it says so beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from strop.core.execute import PluginRef, task_for, verify
from strop.core.finish import Stamp, finish
from strop.core.seeds import derive
from strop.core.subjects import Given
from strop.core.verdicts import values, verdicts
from strop.storage.errors import PluginError
from strop.storage.tables import Problem, Rollout, Score

HANDLES = frozenset({"rollout", "problem", "rollouts", "problems", "tasks", "scores", "seed", "round"})
"""What a verifier may ask for here: there is no policy, so no engine."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the verifiers said of one completion."""

    score: float
    verdict: str | None
    """'pass', 'fail' or 'error'; None where there were graded values alone."""
    answer: str | None
    reason: str | None


def spec(recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The part of a stored recipe (`runs.recipe_json`) that `Reward` needs, as JSON values.

    Raises PluginError when it has no verifier.
    """
    entries = [item for stage in recipe.get("round", []) for item in stage.items()]
    verify = [settings for label, settings in entries if label == "verify" or label.startswith("verify.")]
    if not verify:
        raise PluginError(f"the recipe {recipe.get('name', '')!r} has no `verify` stage; name a verifier of your own")
    return {"verify": verify, "tasks": list(recipe.get("tasks", {}).values()), "task_seed": derive(seed, "task")}


def local_files(found: Mapping[str, Any]) -> list[str]:
    """Names of the plugin files of the user's own that the spec refers to."""
    uses = [settings["use"] for settings in [*found["verify"], *found["tasks"]]]
    return sorted({use.partition(":")[0].removeprefix("./") for use in uses if use.startswith("./")})


class Reward:
    """Verifiers loaded from a spec. Raises PluginError when one cannot be found or needs the policy itself."""

    def __init__(self, found: Mapping[str, Any], folder: Path) -> None:
        self._verify = [_ref("verify", settings, folder) for settings in found["verify"]]
        self._plugins = [ref.load() for ref in self._verify]
        for plugin, _ in self._plugins:
            absent = [name for name in plugin.mark.handles if name not in HANDLES]
            if absent:
                raise PluginError(f"verify plugin {plugin.name!r} needs {', '.join(absent)}: it cannot run elsewhere")
        wanted = {name for plugin, _ in self._plugins for name in plugin.mark.handles}
        tasks = [_ref("task", settings, folder) for settings in found["tasks"]] if "tasks" in wanted else []
        self._task_refs, self._task_seed = tasks, found["task_seed"]
        self._tasks = {ref.name: task_for(ref, self._task_seed) for ref in tasks}

    def __call__(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Judged]:
        """Judge completions, each of the problem at its place."""
        asked = [replace(problem, problem_id=i + 1) for i, problem in enumerate(problems)]
        rollouts = [
            Rollout(rollout_id=i + 1, problem_id=i + 1, sample_index=0, prompt=asked[i].prompt, completion=text)
            for i, text in enumerate(completions)
        ]
        by_id = {problem.problem_id: problem for problem in asked}
        given = Given({p.problem_id: p.task for p in asked}, {r.rollout_id: r.problem_id for r in rollouts})
        scores: list[Score] = []
        for ref, (plugin, _) in zip(self._verify, self._plugins, strict=True):
            handles = {"rollouts": rollouts, "problems": by_id, "tasks": self._tasks, "scores": list(scores)}
            rows = verify(ref, {**handles, "seed": 0, "round": 1}, self._task_refs, self._task_seed)
            where = Stamp("", 1, 1, ref.name, given=given)
            finished = finish(rows, where, allowed=(Score,), plugin=plugin)["scores"]
            scores += [row for row in finished if isinstance(row, Score) and row.subject_kind == "rollout"]
        return [_judged(rollout.rollout_id, scores) for rollout in rollouts]


def _judged(rollout_id: int, scores: Sequence[Score]) -> Judged:
    mine = [score for score in scores if score.subject_id == rollout_id]
    verdict = verdicts(mine).get(rollout_id)
    graded = values(mine).get(rollout_id, 0.0)
    score = {"pass": 1.0, "fail": 0.0, "error": 0.0}[verdict] if verdict is not None else graded
    answer = next((s.answer for s in mine if s.answer is not None), None)
    reason = next((s.reason for s in mine if s.reason is not None and s.verdict == (verdict or s.verdict)), None)
    return Judged(score, verdict, answer, reason)


def _ref(stage: str, settings: Mapping[str, Any], folder: Path) -> PluginRef:
    plain = {key: value for key, value in settings.items() if key not in ("use", "as")}
    return PluginRef(stage, settings["use"], folder, plain, settings["as"])


class VerlReward:
    """The reward as verl calls it: one completion at a time, or a batch."""

    def __init__(self, text: str, folder: Path) -> None:
        self._reward = Reward(json.loads(text), folder)

    def one(
        self, data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A completion's score, with what verl logs beside it."""
        return self.batch([data_source], [solution_str], [ground_truth], [extra_info])[0]

    def batch(
        self,
        data_sources: Sequence[str],
        solution_strs: Sequence[str],
        ground_truths: Sequence[str],
        extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Scores of a batch, in its order; every one has the same keys, as verl's logging wants it."""
        infos = extra_infos if extra_infos is not None else [None] * len(data_sources)
        problems = [
            Problem(
                task=str(source),
                prompt=str((info or {}).get("question") or ""),
                reference=truth or None,
                aux=(info or {}).get("aux"),
            )
            for source, truth, info in zip(data_sources, ground_truths, infos, strict=True)
        ]
        return [
            {
                "score": judged.score,
                "acc": judged.score,
                "pred": judged.answer or "",
                "verifier_error": float(judged.verdict == "error"),
            }
            for judged in self._reward(problems, solution_strs)
        ]
