"""The plugin contract: a module docstring, a frozen `Config`, and one function under the mark of its stage.

    from strop.core.plugin import Config, stage
    from strop.storage.tables import Score

    class NearMatch(Config):
        tolerance: float = 1e-6
        \"\"\"Largest difference from the reference that still passes.\"\"\"

    @stage("verify")
    def near_match(config: NearMatch, *, rollouts, problems) -> list[Score]: ...

The function asks for what it reads by naming it: each keyword is a handle of its stage, listed in `STAGES`. It is
pure: rows and handles in, rows out; no clock, no global, no randomness but `seed`. State that lives across rounds is
asked for as `state` and returned in `Returned(rows, state)`.

A verifier that asks for `rollout` judges one at a time and returns its `Score`. It is called in processes of its own,
and its config is a `PerRollout`, which says how long an item may take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from strop.storage.errors import PluginError, did_you_mean
from strop.storage.tables import (
    Context,
    Decision,
    Example,
    Metric,
    Plan,
    Problem,
    Rollout,
    Row,
    Score,
    TokenLogps,
)

F = TypeVar("F", bound=Callable[..., Any])


class _Later:
    """See `LATER`."""


LATER = _Later()
"""Marks a setting that a plugin got after runs had been made with it, `min_p: Annotated[float, LATER] = 0.0`: at its
default a recipe stays the recipe it was, so that those runs go on."""


class _Operation:
    """See `OPERATION`."""


OPERATION = _Operation()
"""Marks a setting of an engine that says how the work is done and not what comes of it, `Annotated[float | None,
OPERATION]`: where servers are, how long to wait for them, what they may cost. It may change within a run."""


class Config(BaseModel):
    """Base of every plugin's config: frozen, unknown keys refused, a docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what is done, as plain values; `LATER` ones count once they are not the default."""
        fields = type(self).model_fields
        idle = {
            name for name, field in fields.items() if LATER in field.metadata and getattr(self, name) == field.default
        }
        found = self.model_dump(mode="json", exclude=idle | set(self.operation()))
        return {
            name: value.decisive() if isinstance(value := getattr(self, name), Config) else plain
            for name, plain in found.items()
        }

    def operation(self) -> dict[str, Any]:
        """The settings marked `OPERATION`, as plain values."""
        marked = {name for name, field in type(self).model_fields.items() if OPERATION in field.metadata}
        return self.model_dump(mode="json", include=marked)


class PerRollout(Config):
    """Config of a verifier that judges one rollout at a time."""

    timeout_s: Annotated[float, Field(gt=0, le=3600), LATER] = 10.0
    """Seconds of processor time for one rollout, and six times as many of waiting; then the verdict is 'error'."""
    memory_gb: Annotated[PositiveFloat | None, LATER] = None
    """Memory that judging one rollout may take beyond the loaded verifier; null = no limit."""


@dataclass(frozen=True, slots=True)
class Contract:
    """What a stage hands to its plugins and takes back."""

    name: str
    package: str
    """Sub-package of `strop.plugins` that holds the built-in ones."""
    doc: str
    handles: Mapping[str, str]
    """Keyword -> what it is. A plugin names the ones it wants."""
    returns: tuple[type[Row], ...]
    """Rows the function may return; empty where it returns something else (see `doc`)."""
    reads: frozenset[str] = frozenset()
    """Handles that only exist when an earlier stage of the round wrote them; checked by `strop validate`."""


_COMMON = {
    "seed": "int: the only source of randomness, derived from run seed, round and stage",
    "round": "int: the round, from 1 (0 is the base policy)",
}
_STATE = {"state": "dict or None: what the plugin returned as `Returned.state` in its last round; None at first"}
_PROBLEMS = "dict[int, Problem]: the problems in question by id"

STAGES: dict[str, Contract] = {
    c.name: c
    for c in (
        Contract(
            "base",
            "base",
            "Where the first policy comes from. Returns the path of a checkpoint directory in Hugging Face format.",
            {
                "directory": "Path: an empty directory it may write the checkpoint to",
                "seed": _COMMON["seed"],
                "progress": "Callable[[str, int, int], None]: progress(what, done, total)",
            },
            (),
        ),
        Contract(
            "task",
            "tasks",
            "Problems and, where it has them, a generator of more and a scorer of its own. Returns a `Task`.",
            {"seed": "int: seed of the task, the same in every round"},
            (),
        ),
        Contract(
            "engine",
            "engines",
            "A policy ready to sample. Returns an object with the methods of `strop.core.engine.Engine`.",
            {
                "directory": "Path: the policy's checkpoint directory",
                "threads": "int: CPU threads it may use",
                "scratch": "Path: a folder of the run's that it may make, the same in every worker and restart",
                "needs": "frozenset[str]: what later stages read of each completion, of 'token_ids' and 'logps'",
            },
            (),
        ),
        Contract(
            "select",
            "select",
            "Which problems to sample this round, how often, from where. Returns plan rows.",
            {
                "problems": "list[Problem]: active training problems, synthesized ones included, oldest first",
                "pass_rates": "dict[int, PassRate]: what earlier rounds of this run measured, by problem id",
                "contexts": "list[Context]: the context library as it stands",
                **_STATE,
                **_COMMON,
            },
            (Plan,),
        ),
        Contract(
            "generate",
            "generate",
            "Completions for the plan. Returns rollouts, and scores where it verifies inside (search).",
            {
                "plan": "list[Plan]: the rows of this shard",
                "problems": _PROBLEMS,
                "contexts": "dict[int, Context]: contexts named by the plan, by id",
                "engine": "Engine: the policy",
                "sample_seed": "Callable[[Problem, int], int]: seed of sample i of a problem",
                "verifiers": "dict[str, Callable[[list[Rollout]], list[Score]]]: the recipe's verify stages, by label",
                "progress": "Callable[[int, int], None]: progress(rollouts, tokens) so far in this shard",
                "split": "str: 'train' or 'heldout'",
                **_COMMON,
            },
            (Rollout, Score),
            frozenset({"plan"}),
        ),
        Contract(
            "verify",
            "verify",
            "Verdicts. An error (time-out, judge unreachable) is a row with verdict 'error' and a reason, not a zero. "
            "A verifier asks for `rollout` or for `rollouts`; see docs/verifiers.md.",
            {
                "rollout": "Rollout: to be judged, for a verifier that judges one at a time and returns a Score",
                "problem": "Problem: the one that `rollout` answers",
                "rollouts": "list[Rollout]: to be judged, for a verifier that judges a shard of them at once",
                "problems": _PROBLEMS,
                "tasks": "dict[str, Task]: the recipe's tasks by label",
                "scores": "list[Score]: what earlier verify stages of this round said of these rollouts",
                "engine": "Engine: the policy that wrote them",
                "policy": "NamedPolicy: what the setting `policy` names: base, previous, champion or a directory",
                "reward_models": "list[RewardModel]: the newest of every `train_reward` stage, of those trained before",
                **_COMMON,
            },
            (Score, TokenLogps),
            frozenset({"rollout", "rollouts"}),
        ),
        Contract(
            "filter",
            "filter",
            "Which rollouts to learn from. Never deletes: one decision a rollout.",
            {
                "rollouts": "list[Rollout]: this round's",
                "scores": "list[Score]: this round's",
                "decisions": "list[Decision]: of earlier filters of this round",
                "problems": _PROBLEMS,
                **_STATE,
                **_COMMON,
            },
            (Decision,),
            frozenset({"rollouts", "scores"}),
        ),
        Contract(
            "synthesize",
            "synthesize",
            "New problems, with their parents. They can be selected from the next round on.",
            {
                "problems": "list[Problem]: active training problems",
                "heldout_keys": "frozenset[str]: `problem_key` of every held-out problem; these are rejected",
                "pass_rates": "dict[int, PassRate]: this round included",
                "tasks": "dict[str, Task]: the recipe's tasks by label",
                "rollouts": "list[Rollout]: this round's",
                "scores": "list[Score]: this round's",
                "engine": "Engine: the policy",
                **_STATE,
                **_COMMON,
            },
            (Problem,),
        ),
        Contract(
            "build",
            "build",
            "Training examples: SFT rows, preference pairs, or members of groups.",
            {
                "rollouts": "list[Rollout]: this round's",
                "scores": "list[Score]: of them",
                "decisions": "list[Decision]: of them",
                "problems": _PROBLEMS,
                **_STATE,
                **_COMMON,
            },
            (Example,),
            frozenset({"rollouts"}),
        ),
        Contract(
            "objective",
            "objectives",
            "A loss from log-probabilities or scores. Returns a `Loss` (strop.core.trainer.objective).",
            {
                "batch": "SequenceBatch or PairBatch, by the `examples` the mark declares; with a score head "
                "ScoredSequences or ScoredPairs, with a token head ScoredTokens"
            },
            (),
        ),
        Contract(
            "evaluate",
            "evaluate",
            "Metrics of a policy from its held-out rollouts.",
            {
                "rollouts": "list[Rollout]: the policy's held-out rollouts",
                "scores": "list[Score]: of them",
                "problems": _PROBLEMS,
                "history": "list[Metric]: of earlier rounds of this run",
                **_COMMON,
            },
            (Metric,),
        ),
        Contract(
            "gate",
            "gate",
            "Whether the candidate replaces the champion. Returns a `Verdict` (promote, keep, roll_back, stop).",
            {
                "candidate": "Examined: the candidate's metrics and per-problem held-out pass rates",
                "champion": "Examined: the champion's",
                **_COMMON,
            },
            (),
        ),
        Contract(
            "control",
            "control",
            "Overrides for the next round. Returns {'stage.key': value}, as `--set` would write them.",
            {
                "metrics": "list[Metric]: of every round so far",
                "rollouts": "list[Rollout]: this round's",
                "scores": "list[Score]: this round's",
                **_STATE,
                **_COMMON,
            },
            (),
        ),
        Contract(
            "memory",
            "memory",
            "Edits of the context library. Returns context rows; a plan row names the context it wants.",
            {
                "contexts": "list[Context]: the library as it stands",
                "rollouts": "list[Rollout]: this round's",
                "scores": "list[Score]: this round's",
                "problems": _PROBLEMS,
                "engine": "Engine: the policy",
                **_STATE,
                **_COMMON,
            },
            (Context,),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class PassRate:
    """How often a problem was solved; rollouts whose verdict is an error count in neither number."""

    problem_id: int
    n: int
    passed: int
    round: int
    """The last round that sampled it."""

    @property
    def rate(self) -> float:
        """Share solved."""
        return self.passed / self.n


@dataclass(frozen=True, slots=True)
class Examined:
    """A policy as its held-out examination shows it."""

    policy_id: int
    metrics: list[Metric]
    pass_rates: dict[int, PassRate]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says."""

    action: str
    """'promote', 'keep' (the champion stays), 'roll_back' (likewise, and later rounds start from it) or 'stop'."""
    reason: str


@dataclass(frozen=True, slots=True)
class Returned:
    """Rows together with state, from a plugin that asked for `state`. The state must survive JSON."""

    rows: Sequence[Row]
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A source of problems."""

    problems: Callable[[], list[Problem]]
    """Every problem, both splits; the same list on every call."""
    more: Callable[[str | None, float | None, int, int], list[Problem]] | None = None
    """more(category, level, n, seed): up to n new problems like those; None = the task cannot make any."""
    score: Callable[[Problem, str], Score] | None = None
    """score(problem, completion): the task's own verdict; None = it has none."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What the `@stage` mark wrote on a function."""

    stage: str
    version: str
    config: type[Config]
    handles: tuple[str, ...]
    needs: frozenset[str] = frozenset()
    """Wide rollout columns the plugin reads ('token_ids', 'logps'); left out of its rows otherwise."""
    examples: str | None = None
    """Objectives: the kind of example they learn from, 'sft', 'pair' or 'group'."""
    requires: frozenset[str] = frozenset()
    """Engine capabilities it calls ('score', 'next_logits', 'hidden'). Objectives: what is to be computed for them,
    'reference' and 'old' (log-probabilities under these policies), 'entropy' (the policy's own, with its gradient),
    'step_entropy' and 'step_logps' (of the whole step's targets, before it), 'mismatched' (log-ratios of completions
    behind other prompts), 'values' (of a value head beside the policy, trained with it), 'token_scores' (what a reward
    model of the recipe makes of each token), 'foresight' (slopes of what it reports along the gradient of the held-back
    loss)."""
    weights: bool = True
    """Bases: whether the policy it gives has weights. Engines: whether they need them."""
    alone: bool = False
    """Engines: one worker process feeds it; a second would only start what it runs once more."""
    imports: tuple[str, ...] = ()
    """Modules that a verifier of single rollouts imports when called: loaded before the first one's time begins."""
    requires_if: Mapping[str, str] = field(default_factory=dict)
    """Objectives: what is required only where this setting is neither 0 nor null nor false."""
    corrupts: Callable[[Any, float], Any] | None = None
    """Objectives: (config, share of training done) -> `Corruption` (strop.core.corruption) of what the policy reads."""
    behind: Callable[[Any], Mapping[str, str]] | None = None
    """Objectives: (config) -> further prompts, by the setting that has their text, with `{prompt}` where the example's
    own stands. The reference policy reads every completion behind each of them too."""
    in_turns: bool = False
    """Objectives: examples of different strata never share a step; every epoch goes through the strata in order."""
    head: str | None = None
    """Objectives: 'score' where the model gives one number a completion instead of log-probabilities, 'token' where it
    gives one a token."""
    scored_by: str | None = None
    """Objectives that require 'token_scores': by which kind of reward model. 'implicit': beta times each token's
    log-ratio to the reference; 'token': what one with the head 'token' gives it."""

    def required(self, config: Config | None) -> frozenset[str]:
        """What is required under this config."""
        return self.requires | {name for name, setting in self.requires_if.items() if getattr(config, setting)}

    @property
    def each(self) -> bool:
        """Whether it judges one rollout at a time."""
        return "rollout" in self.handles


def stage(
    name: str,
    *,
    version: str = "1",
    needs: Sequence[str] = (),
    examples: str | None = None,
    requires: Sequence[str] = (),
    weights: bool = True,
    alone: bool = False,
    imports: Sequence[str] = (),
    requires_if: Mapping[str, str] | None = None,
    corrupts: Callable[[Any, float], Any] | None = None,
    head: str | None = None,
    in_turns: bool = False,
    behind: Callable[[Any], Mapping[str, str]] | None = None,
    scored_by: str | None = None,
) -> Callable[[F], F]:
    """Mark a function as the plugin of its module for one stage.

    `version` is part of every content key and of every score: raise it when the function's answers change.
    Raises PluginError when the signature does not fit the stage.
    """
    if name not in STAGES:
        raise PluginError(f"@stage({name!r}): no such stage{did_you_mean(name, STAGES)}")
    contract = STAGES[name]

    def mark(function: F) -> F:
        where = f"{function.__module__}.{function.__name__}"
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].name != "config":
            raise PluginError(f"{where}: the first parameter must be `config`, annotated with a Config class")
        config = parameters[0].annotation
        if isinstance(
            config, str
        ):  # only this annotation is resolved: others may name types imported for checking alone
            config = function.__globals__.get(config)
        if not (isinstance(config, type) and issubclass(config, Config)):
            raise PluginError(f"{where}: annotate `config` with a subclass of strop.core.plugin.Config")
        handles = []
        for parameter in parameters[1:]:
            if parameter.kind is not parameter.KEYWORD_ONLY:
                raise PluginError(f"{where}: put `*` after `config`; handles are keyword-only, got {parameter.name!r}")
            if parameter.name not in contract.handles:
                raise PluginError(
                    f"{where}: a {name} plugin has no handle {parameter.name!r}"
                    f"{did_you_mean(parameter.name, contract.handles)}"
                )
            handles.append(parameter.name)
        if name == "verify":
            _check_each(where, config, handles)
        if head not in (None, "score", "token"):
            raise PluginError(f"{where}: the head of an objective is 'score', 'token' or none, got {head!r}")
        if behind is not None and "reference" not in requires:
            raise PluginError(f"{where}: the reference policy reads what is `behind` other prompts: require it")
        if head is not None and (requires or requires_if or corrupts or behind):
            raise PluginError(f"{where}: with a head there are no log-probabilities to require, nor to corrupt")
        if examples == "pair" and "values" in (*requires, *(requires_if or {})):
            raise PluginError(f"{where}: values are of single completions: the mark says examples='group', or 'sft'")
        if "token_scores" in (*requires, *(requires_if or {})) and scored_by not in ("implicit", "token"):
            raise PluginError(f"{where}: token scores are `scored_by` 'implicit' or 'token', got {scored_by!r}")
        if examples == "pair" and scored_by is not None:
            raise PluginError(f"{where}: token scores are of single completions: the mark says examples='group'")
        for setting in (requires_if or {}).values():
            if setting not in config.model_fields:
                raise PluginError(f"{where}: requires_if names no setting{did_you_mean(setting, config.model_fields)}")
        function.__strop__ = Mark(  # type: ignore[attr-defined]
            name,
            version,
            config,
            tuple(handles),
            frozenset(needs),
            examples,
            frozenset(requires),
            weights,
            alone,
            tuple(imports),
            dict(requires_if or {}),
            corrupts,
            behind,
            in_turns,
            head,
            scored_by,
        )
        return function

    return mark


def _check_each(where: str, config: type[Config], handles: Sequence[str]) -> None:
    """A verifier sees one rollout or many of them; where it is one, its config has the limits."""
    if "rollout" not in handles:
        if "problem" in handles:
            raise PluginError(f"{where}: `problem` comes with `rollout`; with `rollouts` ask for `problems`")
        return
    if many := [name for name in ("rollouts", "problems", "engine", "policy", "reward_models") if name in handles]:
        raise PluginError(
            f"{where}: with `rollout` it judges one at a time and is not handed {', '.join(many)}; "
            "ask for `rollouts` and `problems` to judge a shard of them"
        )
    if not issubclass(config, PerRollout):
        raise PluginError(
            f"{where}: with `rollout` it judges one at a time: derive {config.__name__} from "
            "strop.core.plugin.PerRollout, which has the limits"
        )
