"""One call of one stage plugin: handles in, finished rows out as Parquet; in the driver and in workers alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from strop.core import registry
from strop.core.engine import NamedPolicy, Scorer
from strop.core.failures import what_failed
from strop.core.finish import Stamp, finish
from strop.core.judges import docket, judged
from strop.core.plugin import STAGES, Config, Returned, Task
from strop.core.recipe import Step
from strop.core.registry import Plugin
from strop.core.seeds import derive
from strop.storage.errors import PluginError, StageError, StropError
from strop.storage.tables import BY_NAME, Problem, Rollout, Row, Score, TokenLogps

WORKER_HANDLES = frozenset({"engine", "verifiers", "policy", "reward_models"})
WORKER_KINDS = frozenset({"generate", "verify"})


@dataclass(frozen=True, slots=True)
class PluginRef:
    """A plugin and its settings in a form that travels to another process."""

    stage: str
    use: str
    """As the recipe names it: a name, or a local file and function."""
    folder: Path
    settings: dict[str, Any]
    """Plain values: a local plugin's config class exists only where its file was loaded."""
    name: str

    def load(self) -> tuple[Plugin, Config]:
        """Find the plugin in this process, and its config."""
        plugin = registry.find(self.stage, self.use, folder=self.folder)
        return plugin, plugin.configure(self.settings)

    def key(self) -> tuple[str, str]:
        """Equal for equal plugins with equal settings."""
        return self.use, json.dumps(self.settings, sort_keys=True)


def ref(step: Step, folder: Path) -> PluginRef:
    """The step's plugin in a form that travels; `folder` is the recipe's."""
    use = f"{step.plugin.origin}:{step.plugin.name}" if step.plugin.is_local else step.plugin.name
    return PluginRef(step.plugin.stage, use, folder, step.config.model_dump(mode="json"), step.name)


@dataclass(frozen=True, slots=True)
class EngineRef:
    """An engine, and the policy it must have loaded."""

    ref: PluginRef
    directory: Path
    threads: int
    scratch: Path
    """The run's folder for what an engine keeps beside the lake."""
    needs: frozenset[str] = frozenset()
    """What the recipe's stages read of each completion, of 'token_ids' and 'logps'."""


@dataclass(frozen=True, slots=True)
class Call:
    """All that one call needs."""

    ref: PluginRef
    stamp: Stamp
    data: Mapping[str, Any]
    """Handles that are plain data."""
    out: Path
    """Where the Parquet files go: `<out>-<table>.parquet`."""
    engine: EngineRef | None = None
    tasks: Sequence[PluginRef] = ()
    task_seed: int = 0
    verifiers: Sequence[PluginRef] = ()
    sample_seed: tuple[object, ...] = ()
    """(run seed, purpose, ...): what `sample_seed(problem, i)` hashes before problem key and i."""
    judges: int = 1
    """Processes that may judge rollouts at once, for a verifier that judges one at a time."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a call leaves: files of finished rows, by table."""

    files: dict[str, list[Path]]
    counts: dict[str, int]
    tokens: int
    seconds: float
    state: dict[str, Any] | None = None


def in_worker(plugin: Plugin) -> bool:
    """Whether the plugin's work belongs in a worker process."""
    return plugin.mark.stage in WORKER_KINDS or bool(WORKER_HANDLES & set(plugin.mark.handles))


def execute(call: Call, report: Callable[[tuple[int, int]], None]) -> Output:
    """Run the plugin, finish its rows and write them.

    Raises StageError with the plugin's own message when it fails, PluginError when it breaks its contract.
    """
    started = time.perf_counter()
    plugin, config = call.ref.load()
    wanted = plugin.mark.handles
    handles = {name: value for name, value in call.data.items() if name in wanted}
    if "engine" in wanted:
        handles["engine"] = engine_for(call.engine, plugin)
    if "policy" in wanted:
        handles["policy"] = _loadable(call, plugin, call.data["policy"])
    if "reward_models" in wanted:
        handles["reward_models"] = [
            dataclasses.replace(
                model,
                policy=_loadable(call, plugin, model.policy),
                reference=model.reference and _loadable(call, plugin, model.reference),
                load=partial(scorer_for, model.policy.directory, call.engine.threads if call.engine else 1),
            )
            for model in call.data["reward_models"]
        ]
    if "tasks" in wanted and not plugin.mark.each:
        handles["tasks"] = tasks_for(call)
    if "sample_seed" in wanted:
        handles["sample_seed"] = partial(_sample_seed, call.sample_seed)
    if "progress" in wanted:
        handles["progress"] = lambda rollouts, tokens: report((rollouts, tokens))
    if "verifiers" in wanted:
        handles["verifiers"] = {ref.name: partial(_verify, call, ref) for ref in call.verifiers}
    if plugin.stage == "verify":
        handles |= {"rollouts": call.data["rollouts"], "problems": call.data["problems"]}
        result = verify(
            call.ref,
            handles,
            call.tasks,
            call.task_seed,
            judges=call.judges,
            suspicious=not call.stamp.replaces,  # judged again, rollouts that fail may be all there are
            report=lambda done: report((done, 0)),
        )
        report((len(handles["rollouts"]), 0))
    else:
        result = run_plugin(plugin, config, handles)
    rows, state = _rows_and_state(plugin, result)
    finished = finish(rows, call.stamp, allowed=STAGES[call.ref.stage].returns, plugin=plugin)
    files = {table: [_written(call, plugin, table, members)] for table, members in finished.items() if members}
    tokens = sum(row.n_tokens for row in finished.get("rollouts", []) if isinstance(row, Rollout))
    counts = {table: len(members) for table, members in finished.items() if members or table != TokenLogps.TABLE}
    return Output(files, counts, tokens, time.perf_counter() - started, state)


def verify(
    ref: PluginRef,
    handles: Mapping[str, Any],
    tasks: Sequence[PluginRef],
    task_seed: int,
    *,
    judges: int = 1,
    suspicious: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> Any:
    """What a verifier of either kind says of the `rollouts` in the handles; see `judged` for those of single ones."""
    plugin, config = ref.load()
    if plugin.mark.each:
        what = docket(ref, handles, tasks, task_seed, judges)
        return judged(what, name=plugin.name, suspicious=suspicious, report=report)
    return run_plugin(plugin, config, dict(handles))


def _written(call: Call, plugin: Plugin, table: str, rows: list[Row]) -> Path:
    from strop.storage.parquet import write_rows  # pyarrow, which `strop plan` does without

    try:
        return write_rows(Path(f"{call.out}-{table}.parquet"), BY_NAME[table], rows)
    except ValueError as error:
        raise PluginError(f"{plugin.stage} plugin {plugin.name!r} returned a wrong value: {error}") from error
    except OSError as error:
        raise StageError(
            f"cannot write to {call.out.parent}: {error}; make room there and run the same command again"
        ) from error


def run_plugin(plugin: Plugin, config: Config, handles: dict[str, Any]) -> Any:
    """Call the plugin; what it raises comes out as a StageError that names it."""
    missing = [name for name in plugin.mark.handles if name not in handles]
    if missing:
        raise PluginError(
            f"{plugin.stage} plugin {plugin.name!r} asks for {', '.join(missing)}, which this step has not"
        )
    with blamed_on(plugin):
        result = plugin.call(config, handles)
        return list(result) if hasattr(result, "__next__") else result


@contextlib.contextmanager
def blamed_on(plugin: Plugin) -> Iterator[None]:
    """Whatever goes wrong inside comes out as a StageError that names the plugin; its traceback is printed."""
    try:
        yield
    except StropError:
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # a worker's goes to a file, on a disk that may be full
            traceback.print_exc()
        raise StageError(f"{plugin.stage} plugin {plugin.name!r} failed: {what_failed(error)}") from error


def _rows_and_state(plugin: Plugin, result: Any) -> tuple[list[Row], dict[str, Any] | None]:
    if isinstance(result, Returned) and "state" not in plugin.mark.handles:
        raise PluginError(
            f"{plugin.stage} plugin {plugin.name!r} returned state and does not ask for it; name `state` as a parameter"
        )
    rows = result.rows if isinstance(result, Returned) else result
    if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):
        kinds = " or ".join(kind.__name__ for kind in STAGES[plugin.stage].returns)
        raise PluginError(
            f"{plugin.stage} plugin {plugin.name!r} must return a list of {kinds}, it returned {type(rows).__name__}"
        )
    with blamed_on(plugin):
        return list(rows), result.state if isinstance(result, Returned) else None


def tasks_for(call: Call) -> dict[str, Task]:
    """The recipe's tasks, made once per process."""
    return {ref.name: task_for(ref, call.task_seed) for ref in call.tasks}


_TASKS: dict[tuple[str, str, int], Task] = {}
_ENGINE: list[tuple[tuple[str, str, str], Any]] = []
_SCORER: list[tuple[Path, Scorer]] = []


def task_for(ref: PluginRef, seed: int) -> Task:
    """The task, from this process's memory where it was made before."""
    key = (*ref.key(), seed)
    if key not in _TASKS:
        plugin, config = ref.load()
        task = run_plugin(plugin, config, {"seed": seed})
        if not isinstance(task, Task):
            raise PluginError(f"task plugin {ref.use!r} must return a strop.core.plugin.Task, it returned {type(task)}")
        _TASKS[key] = task
    return _TASKS[key]


def engine_for(engine: EngineRef | None, wanted_by: Plugin) -> Any:
    """The engine with the policy loaded; the one before it goes on with it or is closed, memory holds one policy."""
    if engine is None:
        raise PluginError(f"{wanted_by.stage} plugin {wanted_by.name!r} needs an engine, and the recipe has none")
    key = (*engine.ref.key(), str(engine.directory))
    _SCORER.clear()
    if not _ENGINE or _ENGINE[0][0] != key:
        plugin, config = engine.ref.load()
        before, made = _ENGINE.pop() if _ENGINE else (key, None)
        if made is not None and (before[:2] != key[:2] or "reload" not in made.capabilities):
            made.close()
            made = None
        if made is None:
            handles = {name: getattr(engine, name) for name in ("directory", "threads", "scratch", "needs")}
            made = run_plugin(plugin, config, handles)
        else:
            with blamed_on(plugin):
                made.reload(engine.directory)
        _ENGINE.append((key, made))
    loaded = _ENGINE[0][1]
    absent = wanted_by.mark.requires - loaded.capabilities
    if absent:
        raise PluginError(
            f"{wanted_by.stage} plugin {wanted_by.name!r} needs {', '.join(sorted(absent))}, "
            f"which the engine {loaded.name!r} does not offer"
        )
    return loaded


def scorer_for(directory: Path, threads: int) -> Scorer:
    """The reward model loaded in place of the engine, or of another reward model: memory holds one of them."""
    if not _SCORER or _SCORER[0][0] != directory:
        from strop.core.trainer.scorer import HeadScorer

        _SCORER.clear()
        while _ENGINE:
            _ENGINE.pop()[1].close()
        _SCORER.append((directory, HeadScorer(directory, threads)))
    return _SCORER[0][1]


def _loadable(call: Call, plugin: Plugin, named: NamedPolicy) -> NamedPolicy:
    """The policy, which the recipe's engine can now load."""
    engine = call.engine and dataclasses.replace(call.engine, directory=named.directory)
    return dataclasses.replace(named, load=partial(engine_for, engine, plugin))


def _sample_seed(prefix: tuple[object, ...], problem: Problem, index: int) -> int:
    seed, *parts = prefix
    assert isinstance(seed, int)
    return derive(seed, *parts, problem.problem_key, index)


def _verify(call: Call, ref: PluginRef, rollouts: list[Rollout]) -> list[Score]:
    plugin, _ = ref.load()
    handles: dict[str, Any] = {
        "rollouts": rollouts,
        "problems": call.data["problems"],
        "scores": [],
        "seed": call.data["seed"],
        "round": call.data["round"],
    }
    if "tasks" in plugin.mark.handles and not plugin.mark.each:
        handles["tasks"] = tasks_for(call)
    if "engine" in plugin.mark.handles:
        handles["engine"] = engine_for(call.engine, plugin)
    scores = verify(ref, handles, call.tasks, call.task_seed)
    return [dataclasses.replace(s, scorer=ref.name, scorer_version=plugin.mark.version) for s in scores]
