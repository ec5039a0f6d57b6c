"""A small plugin that works for each kind of stage: where `strop plugins new` starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The parts of a plugin that differ from stage to stage."""

    idea: str
    handles: tuple[str, ...]
    returns: str
    body: str
    imports: tuple[str, ...] = ()
    """Names from `strop.storage.tables`."""
    core: tuple[str, ...] = ()
    """Names from `strop.core.plugin`, besides that of the config's base and stage."""
    config: str = "Config"
    """Base of its config; a verifier that judges one rollout at a time has limits."""
    field: str = 'note: str = ""'
    field_doc: str = "What this setting does; rename it."


SKELETONS: dict[str, Skeleton] = {
    "verify": Skeleton(
        "Passes a completion that contains the reference.",
        ("rollout: Rollout", "problem: Problem"),
        "Score",
        """
if problem.reference is None:
    return Score(subject_id=rollout.rollout_id, verdict="error", value=None, reason="no reference")
text = rollout.completion if config.case_sensitive else rollout.completion.lower()
passed = (problem.reference if config.case_sensitive else problem.reference.lower()) in text
return Score(subject_id=rollout.rollout_id, verdict="pass" if passed else "fail", value=float(passed))""",
        ("Problem", "Rollout", "Score"),
        config="PerRollout",
        field="case_sensitive: bool = True",
        field_doc="Whether upper and lower case differ.",
    ),
    "filter": Skeleton(
        "Keeps the rollouts that passed and are not too long.",
        ("rollouts: list[Rollout]", "scores: list[Score]"),
        "list[Decision]",
        """
passed = {score.subject_id for score in scores if score.verdict == "pass"}
decisions = []
for rollout in rollouts:
    keep = rollout.rollout_id in passed and rollout.n_tokens <= config.max_tokens
    reason = None if keep else "failed or too long"
    decisions.append(Decision(subject_id=rollout.rollout_id, keep=keep, reason=reason))
return decisions""",
        ("Decision", "Rollout", "Score"),
        field="max_tokens: int = 512",
        field_doc="Longest completion to keep, in tokens.",
    ),
    "select": Skeleton(
        "Draws problems at random, without replacement.",
        ("problems: list[Problem]", "seed: int"),
        "list[Plan]",
        """
chosen = random.Random(seed).sample(problems, min(config.problems, len(problems)))
return [Plan(problem_id=problem.problem_id) for problem in sorted(chosen, key=lambda p: p.problem_id)]""",
        ("Plan", "Problem"),
        field="problems: int = 256",
        field_doc="Problems a round.",
    ),
    "generate": Skeleton(
        "Samples completions, one prompt at a time.",
        (
            "plan: list[Plan]",
            "problems: dict[int, Problem]",
            "engine: Engine",
            "sample_seed: Callable[[Problem, int], int]",
            "progress: Callable[[int, int], None]",
        ),
        "list[Rollout]",
        """
sampling = Sampling(max_tokens=config.max_tokens)
rollouts: list[Rollout] = []
for row in plan:
    problem = problems[row.problem_id]
    prompt = engine.render(problem.prompt)
    seeds = tuple(sample_seed(problem, i) for i in range(row.n or config.n))
    for i, completion in enumerate(engine.sample([Request(prompt=prompt, seeds=seeds)], sampling)[0]):
        rollouts.append(
            Rollout(
                problem_id=problem.problem_id,
                plan_id=row.plan_id,
                sample_index=i,
                prompt=prompt,
                completion=completion.text,
                n_tokens=len(completion.token_ids),
                token_ids=completion.token_ids,
                logps=completion.logps,
                finish_reason=completion.finish_reason,
                seed=seeds[i],
            )
        )
    progress(len(rollouts), sum(rollout.n_tokens for rollout in rollouts))
return rollouts""",
        ("Plan", "Problem", "Rollout"),
        field='n: int = 4\n    """Completions a problem."""\n    max_tokens: int = 256',
        field_doc="Longest completion, in tokens.",
    ),
    "synthesize": Skeleton(
        "Asks the tasks for more problems like those that fail.",
        (
            "problems: list[Problem]",
            "pass_rates: dict[int, PassRate]",
            "tasks: dict[str, Task]",
            "seed: int",
        ),
        "list[Problem]",
        """
hard = [p for p in problems if p.problem_id in pass_rates and pass_rates[p.problem_id].rate < config.below]
made: list[Problem] = []
for i, parent in enumerate(hard[: config.problems]):
    more = tasks[parent.task].more
    if more is not None:
        found = more(parent.category, parent.level, 1, seed + i)
        made += [dataclasses.replace(problem, parents=[parent.problem_id]) for problem in found]
return made""",
        ("Problem",),
        ("PassRate", "Task"),
        field='problems: int = 64\n    """New problems a round, at most."""\n    below: float = 0.5',
        field_doc="Pass rate under which a problem counts as hard.",
    ),
    "build": Skeleton(
        "One SFT example for each rollout that every filter kept.",
        ("rollouts: list[Rollout]", "decisions: list[Decision]"),
        "list[Example]",
        """
dropped = {decision.subject_id for decision in decisions if not decision.keep}
kept = [rollout for rollout in rollouts if rollout.rollout_id not in dropped]
return [
    Example(
        kind="sft",
        problem_id=rollout.problem_id,
        prompt=rollout.train_prompt or rollout.prompt,
        completion=rollout.completion,
        rollout_id=rollout.rollout_id,
    )
    for rollout in kept[: config.examples]
]""",
        ("Decision", "Example", "Rollout"),
        field="examples: int = 100_000",
        field_doc="Examples a round, at most.",
    ),
    "evaluate": Skeleton(
        "Mean length of held-out completions.",
        ("rollouts: list[Rollout]",),
        "list[Metric]",
        """
if not rollouts:
    return []
mean = sum(rollout.n_tokens for rollout in rollouts) / len(rollouts)
return [Metric(name=config.metric, value=mean, n=len(rollouts))]""",
        ("Metric", "Rollout"),
        field='metric: str = "length"',
        field_doc="Name of the metric.",
    ),
    "gate": Skeleton(
        "Promotes a candidate whose metric is not lower than the champion's.",
        ("candidate: Examined", "champion: Examined"),
        "Verdict",
        """
def value(examined: Examined) -> float:
    return next((m.value for m in examined.metrics if m.name == config.metric and m.value is not None), 0.0)

new, old = value(candidate), value(champion)
return Verdict("promote" if new >= old else "keep", f"{config.metric} {new:.3f} against {old:.3f}")""",
        (),
        ("Examined", "Verdict"),
        field='metric: str = "pass@1"',
        field_doc="The metric that decides.",
    ),
    "control": Skeleton(
        "Raises the temperature when diversity falls.",
        ("metrics: list[Metric]",),
        "dict[str, object]",
        """
found = [m.value for m in metrics if m.name == "diversity" and m.value is not None]
return {"generate.temperature": 1.2} if found and found[-1] < config.floor else {}""",
        ("Metric",),
        field="floor: float = 0.4",
        field_doc="Diversity under which the temperature is raised.",
    ),
    "memory": Skeleton(
        "Keeps a passing completion as a worked example.",
        ("rollouts: list[Rollout]", "scores: list[Score]"),
        "list[Context]",
        """
passed = {score.subject_id for score in scores if score.verdict == "pass"}
good = [rollout for rollout in rollouts if rollout.rollout_id in passed]
return [
    Context(name=f"example-{i}", text=rollout.prompt + rollout.completion, sources=[rollout.rollout_id])
    for i, rollout in enumerate(good[: config.examples])
]""",
        ("Context", "Rollout", "Score"),
        field="examples: int = 3",
        field_doc="Worked examples to keep a round.",
    ),
    "task": Skeleton(
        "Sums of two numbers.",
        ("seed: int",),
        "Task",
        """
def problems() -> list[Problem]:
    pairs = [(a, b) for a in range(config.largest) for b in range(config.largest)]
    random.Random(seed).shuffle(pairs)
    held_out = len(pairs) // 10
    return [
        Problem(prompt=f"{a}+{b}=", reference=str(a + b), split="heldout" if i < held_out else "train")
        for i, (a, b) in enumerate(pairs)
    ]

return Task(problems)""",
        ("Problem",),
        ("Task",),
        field="largest: int = 20",
        field_doc="Numbers go from 0 to one less than this.",
    ),
    "base": Skeleton(
        "A checkpoint that lies in a folder.",
        ("directory: Path",),
        "Path",
        """
return shutil.copytree(Path(config.path).expanduser(), directory, dirs_exist_ok=True)""",
        field="path: str",
        field_doc="Folder of a checkpoint in Hugging Face format.",
    ),
    "engine": Skeleton(
        "Answers every prompt with the same text, one token a character.",
        ("directory: Path",),
        "Echo",
        """
return Echo(config.text)


class Echo:
    \"\"\"A policy that always says the same.\"\"\"

    name = "$name"
    capabilities = frozenset({"sample"})

    def __init__(self, text: str) -> None:
        self.text = text

    def render(self, prompt: str, messages: Sequence[dict[str, str]] | None = None) -> str:
        \"\"\"The prompt as it is.\"\"\"
        return prompt

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        \"\"\"The text, as often as there are seeds.\"\"\"
        token_ids = [ord(letter) for letter in self.text]
        one = Completion(text=self.text, token_ids=token_ids, logps=[0.0] * len(token_ids), finish_reason="stop")
        return [[one for _ in request.seeds] for request in requests]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        \"\"\"Not offered: see `capabilities`.\"\"\"
        raise NotImplementedError

    def close(self) -> None:
        \"\"\"Nothing to free.\"\"\"
""",
        field='text: str = "42"',
        field_doc="What it says.",
    ),
    "objective": Skeleton(
        "Mean negative log-likelihood of the target tokens.",
        ("batch: SequenceBatch",),
        "Loss",
        """
covered = batch.logps * batch.mask * batch.weights[:, None]
return Loss(-config.scale * covered.sum() / batch.step_tokens)""",
        field="scale: float = 1.0",
        field_doc="Factor on the loss.",
    ),
}

EXTRA_IMPORTS = {
    "select": ("import random",),
    "task": ("import random",),
    "synthesize": ("import dataclasses",),
    "base": ("import shutil", "from pathlib import Path"),
    "engine": ("from collections.abc import Sequence", "from pathlib import Path"),
    "generate": ("from collections.abc import Callable",),
}
ENGINE_IMPORTS = {
    "generate": "from strop.core.engine import Engine, Request, Sampling",
    "engine": "from strop.core.engine import Completion, Progress, Request, Sampling",
    "objective": "from strop.core.trainer.objective import Loss, SequenceBatch",
}
