"""A recipe: the stages of a round, their plugins and settings, read from YAML and checked before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, ValidationError

from strop.core import registry
from strop.core.overrides import overridden
from strop.core.plugin import STAGES, Config
from strop.core.registry import Plugin
from strop.core.token_scoring import scored_by
from strop.core.trainer.config import Train, TrainReward
from strop.core.trainer.trl_config import NAME as TRL
from strop.core.trainer.trl_config import Trl, trains_with
from strop.core.yaml_source import Location, Source, parse_file
from strop.storage.errors import PluginError, RecipeError, did_you_mean
from strop.storage.ids import digest

RECIPES = Path(__file__).parent.parent / "flows" / "recipes"
METHODS = RECIPES / "methods"
"""One recipe a method, all on the default task at one rollout budget: docs/methods.md compares them."""
ROUND_KINDS = [
    "select",
    "generate",
    "verify",
    "filter",
    "synthesize",
    "build",
    "train",
    "train_reward",
    "evaluate",
    "gate",
    "control",
    "memory",
]
WRITES = {
    "select": ("plan",),
    "generate": ("rollouts",),
    "verify": ("scores",),
    "filter": ("decisions",),
    "build": ("examples",),
    "train": ("policy",),
    "evaluate": ("metrics",),
}
"""What each kind of stage makes for the later ones of its round."""
TRAINS: dict[str, type[Train]] = {"train": Train, "train_reward": TrainReward}
"""Kinds of stage that train, on an objective, and their settings."""
LABEL = re.compile(r"[A-Za-z0-9_-]{1,60}")
NEEDS = {"train": ("examples",), "train_reward": ("examples",), "gate": ("policy", "metrics")}
"""What stages outside the plugin contract's `reads` need."""


class RecipeFile(Config):
    """The top level of a recipe file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]
    """Lower-case letters, digits, `-` and `_`; run ids start with it."""
    description: str = ""
    """One line, shown by `strop plan` and in lists."""
    seed: int = 0
    """Seed of the run; `--seed` overrides it."""
    rounds: PositiveInt
    """How many rounds to run; `--rounds` overrides it, and a finished run can be continued with more."""
    shard_rollouts: PositiveInt = 1024
    """Rollouts committed together: what a crash can lose per worker."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Processes that sample: one per CPU core, or one where there is a GPU. Verifiers have others beside them."""
    base: str | dict[str, Any]
    """The plugin that gives the first policy."""
    tasks: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    """The plugins that give the problems."""
    engine: str | dict[str, Any] = "hf"
    """The plugin that samples."""
    heldout: dict[str, Any] = Field(default_factory=dict)
    """How every policy is examined: a generate plugin (default `sample`) and its settings on the held-out problems."""
    round: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """The stages of a round, in order: `- kind: plugin` or `- kind: {use: plugin, ...}`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a recipe with its plugin and checked settings."""

    label: str
    """Unique within the recipe: the kind, or `kind.name` where the kind stands more than once."""
    kind: str
    name: str
    """What rows carry as scorer, decider or builder: `as`, or the plugin's name."""
    plugin: Plugin
    config: Config
    objective: Config | None = None
    """Settings of the objective; of `TRAINS` only, whose `plugin` is the objective's and `config` the trainer's. None
    where `use: trl` trains."""
    split: str = "train"
    location: Location = ()

    def settings(self) -> dict[str, Any]:
        """Everything that decides what the step does, as plain values."""
        plugin = self.plugin
        use = f"./{Path(plugin.origin).name}:{plugin.name}" if plugin.is_local else plugin.name
        found: dict[str, Any] = {"use": use, "as": self.name, **self.config.decisive()}
        if self.objective is not None:
            found["objective"] = {"use": use, **self.objective.decisive()}
        return found


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked recipe."""

    name: str
    description: str
    seed: int
    rounds: int
    shard_rollouts: int
    workers: int | Literal["auto"]
    base: Step
    tasks: tuple[Step, ...]
    engine: Step
    examine: tuple[Step, ...]
    """How a policy is examined: sampling on held-out problems, the verify stages, the evaluate stages."""
    round: tuple[Step, ...]
    """The stages in order; before the first `evaluate` stand the steps that sample and verify held-out problems."""
    path: Path | None
    source: Source = field(repr=False)

    @property
    def folder(self) -> Path:
        """Where local plugin files and relative paths start."""
        return self.path.parent if self.path else Path.cwd()

    def canonical(self) -> dict[str, Any]:
        """The recipe with every default written out; `operation` are settings of the engine that decide nothing."""
        operation = self.engine.config.operation()
        return {
            "name": self.name,
            "seed": self.seed,
            "rounds": self.rounds,
            "shard_rollouts": self.shard_rollouts,
            "base": self.base.settings(),
            "tasks": {step.name: step.settings() for step in self.tasks},
            "engine": self.engine.settings(),
            **({"operation": operation} if operation else {}),
            "round": [{step.label: step.settings()} for step in self.round],
        }

    def identity(self) -> str:
        """Hash of all that decides what a round does; the number of rounds does not, nor how the engine is run.

        The order in which a plugin declares its settings decides nothing either.
        """
        decisive = {k: v for k, v in self.canonical().items() if k not in {"rounds", "operation"}}
        return digest(canonical_json(decisive), size=8)

    def as_today(self, canonical: dict[str, Any]) -> dict[str, Any]:
        """A stored recipe without those settings that decide nothing, which older Strops may have kept there."""
        idle = {step.label: set(step.config.operation()) for step in self.round}
        rounds = [
            {label: {k: v for k, v in settings.items() if k not in idle.get(label, ())}}
            for stage in canonical["round"]
            for label, settings in stage.items()
        ]
        operation = self.engine.config.operation()
        engine = {k: v for k, v in canonical["engine"].items() if k not in operation}
        return {**canonical, "engine": engine, "round": rounds}

    def position(self, stage: str, *, last: bool = False) -> int:
        """Where a stage stands in the round: by its label, or the first (or last) of that kind. Raises RecipeError."""
        labels = [step.label for step in self.round]
        if stage in labels:
            return labels.index(stage)
        found = [i for i, step in enumerate(self.round) if step.kind == stage and not step.label.startswith("heldout")]
        if not found:
            raise RecipeError(f"the recipe {self.name!r} has no stage {stage!r}{did_you_mean(stage, labels)}")
        return found[-1 if last else 0]

    def override(self, overrides: Sequence[str]) -> Recipe:
        """The recipe with `key=value` overrides applied, checked again."""
        return build(overridden(self.source, overrides, RecipeFile.model_fields), self.path)


def shipped() -> dict[str, str]:
    """Names of the shipped recipes with their descriptions, those of the methods last."""
    paths = [path for folder in (RECIPES, METHODS) for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: str(parse_file(path).data.get("description", "")) for path in paths}


def load(name_or_path: str, *, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read and check a recipe: a file, or the name of a shipped one.

    Raises RecipeError or PluginError, naming file and line.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        found = [f for folder in (RECIPES, METHODS) if (f := folder / f"{name_or_path}.yaml").is_file()]
        if not found:
            raise RecipeError(
                f"no shipped recipe {name_or_path!r}{did_you_mean(name_or_path, shipped())} "
                "(a recipe of your own: give its file, my.yaml)"
            )
        path = found[0]
    elif not path.is_file():
        raise RecipeError(f"there is no file {path}; shipped recipes: {', '.join(shipped())}")
    source = parse_file(path)
    extra = [] if seed is None else [f"seed={seed}"]
    return build(overridden(source, [*overrides, *extra], RecipeFile.model_fields), path.resolve())


def default_run_id(recipe: Recipe) -> str:
    """The run id of a recipe and seed when none is given: the same command line finds the same run."""
    return f"{recipe.name}-s{recipe.seed}-{recipe.identity()[:6]}"


def build(source: Source, path: Path | None) -> Recipe:
    """The recipe of parsed YAML; `path` is its file, in whose folder local plugins lie (None: the working directory).

    Raises RecipeError or PluginError.
    """
    try:
        top = RecipeFile.model_validate(source.data)
    except ValidationError as error:
        raise _first_error(error, RecipeFile, source, ()) from error
    folder = path.parent if path else Path.cwd()
    entries = [_round_entry(item, i, source) for i, item in enumerate(top.round)]
    kinds = [kind for kind, _, _ in entries]
    steps = [
        _step(kind, value, location, source, folder, repeated=kinds.count(kind) > 1)
        for kind, value, location in entries
    ]
    heldout = {"use": "sample", "as": "heldout", **top.heldout}
    examine = [
        replace(_step("generate", heldout, ("heldout",), source, folder), label="heldout", split="heldout"),
        *(replace(step, label=f"heldout.{step.label}", split="heldout") for step in steps if step.kind == "verify"),
    ]
    steps = [replace(step, split="heldout") if step.kind == "evaluate" else step for step in steps]
    evaluates = [step for step in steps if step.kind == "evaluate"]
    if evaluates:
        at = steps.index(evaluates[0])
        steps[at:at] = examine
    recipe = Recipe(
        top.name,
        top.description,
        top.seed,
        top.rounds,
        top.shard_rollouts,
        top.workers,
        _step("base", top.base, ("base",), source, folder),
        tuple(
            _step("task", value, ("tasks", i), source, folder, repeated=len(top.tasks) > 1)
            for i, value in enumerate(top.tasks)
        ),
        _step("engine", top.engine, ("engine",), source, folder),
        (*examine, *evaluates) if evaluates else (),
        tuple(steps),
        path,
        source,
    )
    _check_labels(recipe, source)
    _check_order(recipe, source)
    _check_weights(recipe, source)
    _check_scorers(recipe, source)
    return recipe


def _round_entry(item: dict[str, Any], index: int, source: Source) -> tuple[str, Any, Location]:
    at: Location = ("round", index)
    if len(item) != 1:
        raise source.error(at, f"one stage an entry, `- generate: sample`; this one has {len(item)}: {', '.join(item)}")
    kind, value = next(iter(item.items()))
    if kind not in ROUND_KINDS:
        raise source.error((*at, kind), f"unknown stage {kind!r}{did_you_mean(kind, ROUND_KINDS)}")
    return kind, value, (*at, kind)


def _step(kind: str, value: Any, at: Location, source: Source, folder: Path, *, repeated: bool = False) -> Step:
    if kind in TRAINS:
        return _train_step(kind, value, at, source, folder, repeated)
    use, name, settings = _entry(kind, value, at, source)
    plugin, config = _configured(kind, use, settings, at, source, folder)
    name = name or plugin.name
    return Step(f"{kind}.{name}" if repeated else kind, kind, name, plugin, config, location=at)


def _train_step(kind: str, value: Any, at: Location, source: Source, folder: Path, repeated: bool) -> Step:
    if value is not None and not isinstance(value, str | dict):
        raise source.error(at, f"name the objective: `{kind}: sft` or `{kind}: {{objective: sft, ...}}`")
    if value == TRL and kind == "train":
        raise source.error(at, "say which of TRL's trainers: `train: {use: trl, trainer: dpo}`")
    settings = {"objective": value} if isinstance(value, str) else dict(value or {})
    name = _label(settings.pop("as", None), at, source)
    if "use" in settings:
        if kind != "train":
            raise source.error((*at, "use"), f"`{kind}` has a trainer of its own: leave `use` out, or write `train`")
        return _trl_step(settings, name, at, source, repeated)
    try:
        config = TRAINS[kind].model_validate(settings)
    except ValidationError as error:
        raise _first_error(error, TRAINS[kind], source, at) from error
    use, _, objective_settings = _entry("objective", config.objective, (*at, "objective"), source)
    plugin, objective = _configured("objective", use, objective_settings, (*at, "objective"), source, folder)
    if (why := _unfit(kind, plugin)) is not None:
        raise source.error((*at, "objective"), why)
    if config.ewc is not None and plugin.mark.head is not None:
        raise source.error((*at, "ewc"), f"ewc goes by log-probabilities, and {plugin.name!r} has none: leave it out")
    name = name or plugin.name
    return Step(f"{kind}.{name}" if repeated else kind, kind, name, plugin, config, objective, location=at)


def _unfit(kind: str, plugin: Plugin) -> str | None:
    """Why an objective gives nothing of use to a stage of that kind; None where it does."""
    if kind == "train" and plugin.mark.head is not None:
        return f"{plugin.name!r} gives a reward model, which is no policy: write `train_reward`"
    ratio = "reference" in plugin.mark.requires and "beta" in plugin.mark.config.model_fields
    implicit = ratio or plugin.mark.examples == "sft"
    if kind == "train_reward" and plugin.mark.head is None and not implicit:
        return (
            f"{plugin.name!r} gives no reward: name an objective with a score head (bradley_terry) or a token head "
            "(token_outcome), one with a reference and a beta (implicit_reward, dpo), or one that learns from SFT rows "
            "(sft)"
        )
    return None


def _trl_step(settings: dict[str, Any], name: str | None, at: Location, source: Source, repeated: bool) -> Step:
    use = settings.pop("use")
    if use != TRL:
        raise source.error(
            (*at, "use"),
            f"`use` hands the examples to another trainer, and there is {TRL!r}; got {use!r}. Strop's own takes "
            "`objective`",
        )
    try:
        config = Trl.model_validate(settings)
    except ValidationError as error:
        raise _first_error(error, Trl, source, at) from error
    name = name or TRL
    return Step(f"train.{name}" if repeated else "train", "train", name, trains_with(config), config, location=at)


def _entry(kind: str, value: Any, at: Location, source: Source) -> tuple[str, str | None, dict[str, Any]]:
    if isinstance(value, str):
        return value, None, {}
    if not isinstance(value, dict) or not isinstance(value.get("use"), str):
        raise source.error(at, f"name the {kind} plugin: `{kind}: name` or `{kind}: {{use: name, ...}}`")
    settings = dict(value)
    return settings.pop("use"), _label(settings.pop("as", None), at, source), settings


def _label(value: Any, at: Location, source: Source) -> str | None:
    """What `as` says: it names rows, files and `--set` keys."""
    if value is not None and not (isinstance(value, str) and LABEL.fullmatch(value)):
        raise source.error((*at, "as"), f"`as` is a name of letters, digits, `-` and `_`, got {value!r}")
    return value


def _configured(
    kind: str, use: str, settings: dict[str, Any], at: Location, source: Source, folder: Path
) -> tuple[Plugin, Config]:
    try:
        plugin = registry.find(kind, use, folder=folder)
    except PluginError as error:
        raise type(error)(str(source.error((*at, "use"), str(error)))) from error
    for key, value in settings.items():
        field_info = plugin.mark.config.model_fields.get(key)
        is_path = field_info is not None and Path in (field_info.annotation, *get_args(field_info.annotation))
        if isinstance(value, str) and (is_path or value.startswith(("./", "../"))):
            settings[key] = str((folder / Path(value).expanduser()).resolve())
    try:
        return plugin, plugin.configure(settings)
    except ValidationError as error:
        raise _first_error(error, plugin.mark.config, source, at) from error


def _first_error(error: ValidationError, config: type[Config], source: Source, at: Location) -> RecipeError:
    found = registry.describe_errors(error, config)
    location, message = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return source.error((*at, *location), message + more)


def _check_order(recipe: Recipe, source: Source) -> None:
    """Every stage reads only what an earlier one of the round wrote."""
    written: set[str] = set()
    for step in recipe.round:
        if step.split == "heldout" and step.kind != "evaluate":
            continue
        stage = "objective" if step.kind in TRAINS else step.kind
        reads = {*STAGES[stage].reads & set(step.plugin.mark.handles), *NEEDS.get(step.kind, ())}
        for handle in sorted({"rollouts" if handle == "rollout" else handle for handle in reads} - written):
            writer = next(kind for kind, made in WRITES.items() if handle in made)
            raise source.error(
                step.location,
                f"`{step.label}` reads {handle}, which no earlier stage writes: put a `{writer}` before it",
            )
        if step.kind == "train" and "metrics" in written:
            raise source.error(
                step.location, "`evaluate` examines the policy this round trains: put `train` before the first one"
            )
        written.update(WRITES.get(step.kind, ()))


def _check_labels(recipe: Recipe, source: Source) -> None:
    """No two stages or tasks of one name: rows and the ledger could not tell them apart."""
    for steps, what in ((recipe.round, "stages"), (recipe.tasks, "tasks")):
        seen: set[str] = set()
        for step in steps:
            label = step.name if what == "tasks" else step.label
            if label in seen:
                raise source.error(
                    step.location, f"two {what} are called {label!r}; give one of them a name: `as: other`"
                )
            seen.add(label)
    for kind, why in (("train", "a round makes one candidate policy"), ("gate", "one verdict decides on it")):
        found = [step for step in recipe.round if step.kind == kind]
        if len(found) > 1:
            raise source.error(found[1].location, f"one `{kind}` a round: {why}")


def _check_weights(recipe: Recipe, source: Source) -> None:
    """A policy that is only a name behind a server can be sampled there, and nowhere be trained."""
    if recipe.base.plugin.mark.weights:
        return
    base = f"the base `{recipe.base.plugin.name}` is a policy without weights"
    for step in recipe.round:
        if step.kind in TRAINS:
            raise source.error(
                step.location,
                f"{base}, which cannot be trained: leave `{step.kind}` out, or take a base that has them, "
                "`base: {use: huggingface, model: ...}`",
            )
    if recipe.engine.plugin.mark.weights:
        raise source.error(
            ("engine",), f"{base}, which the engine `{recipe.engine.plugin.name}` cannot run: write `engine: openai`"
        )


def _check_scorers(recipe: Recipe, source: Source) -> None:
    """A training whose tokens are to be scored has a reward model to do it."""
    for step in recipe.round:
        try:
            scored_by(step, recipe.round)
        except ValueError as error:
            raise source.error(step.location, str(error)) from error


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
