"""Trains a policy on a file of examples: one plain loop for every objective, full weights or adapters.

The same job gives the same weights, bit for bit, on CPU, also when it is killed and called again: order from the seed,
position, optimiser and random state from the trainer's own checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from strop.core.plugin import Config
from strop.core.registry import Plugin, find
from strop.core.seeds import derive
from strop.core.trainer.batches import one_step, plan
from strop.core.trainer.checkpoint import finished, save_policy
from strop.core.trainer.config import Train
from strop.core.trainer.corrupt import Corrupter
from strop.core.trainer.elastic import elastic
from strop.core.trainer.encode import Item, behind, encode
from strop.core.trainer.job import COLUMNS, TrainJob, TrainResult, check_examples, read_examples, result_of
from strop.core.trainer.known import known
from strop.core.trainer.logps import Reader, TokenLogps, reads_packed_apart
from strop.core.trainer.loop import Progress, Work, run
from strop.core.trainer.objective import Loss
from strop.core.trainer.policy import (
    Loaded,
    context_of,
    load_model,
    load_policy,
    packs,
    pick_device,
    use_bfloat16,
    using_threads,
)
from strop.core.trainer.ranks import ALONE, Ranks, shard, whole
from strop.core.trainer.reference import SCORERS
from strop.core.trainer.score import ScoreReader, SequenceScores
from strop.core.trainer.token_head import TokenHead, load_head
from strop.core.trainer.token_score import NAME, TokenReader, freeze_output, token_reader
from strop.core.trainer.tracking import tracked
from strop.core.trainer.validation import Watch, held_back
from strop.storage.errors import PluginError, StageError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

VALUE = "value"
"""What the head of a critic is called in the policy's directory."""


def train(job: TrainJob, progress: Progress = lambda _: None, ranks: Ranks = ALONE) -> TrainResult:
    """Train `job` and write `job.output`; a finished job returns its result, a killed one goes on where it was.

    With `ranks` of several, each process calls this, having `joined` the others; the first one writes and reports.
    Raises StageError: examples that cannot be trained on, an output that is another job's, a loss that is not finite.
    """
    if (done := finished(job)) is not None:
        return done
    started = time.monotonic()
    config = Train.model_validate(dict(job.train))
    with using_threads(config.threads or job.threads):
        return _train(job, config, progress if ranks.first else _silent, ranks, started)


def _silent(_: Mapping[str, float]) -> None:
    """Nobody hears of the progress of other processes than the first."""


def _train(job: TrainJob, config: Train, progress: Progress, ranks: Ranks, started: float) -> TrainResult:
    objective = _objective(job)
    head, requires = objective.plugin.mark.head, objective.requires
    table = read_examples(job.examples)
    check_examples(table, kind=objective.plugin.mark.examples, needs=objective.needs, who=job.objective)
    device = pick_device()
    torch.manual_seed(derive(job.seed, "torch"))
    ranks = replace(ranks, sharded=config.shard and ranks.world > 1)
    loaded = load_policy(job.init, config, device=device, head=head)
    if not ranks.first:  # adapters begin alike on all, dropout differs
        torch.manual_seed(derive(job.seed, "torch", ranks.rank))
    limit, longest = _limit(config, loaded.model)
    items = encode(table, loaded.tokenizer, max_length=limit, longest=longest)
    watched: list[Item] = []
    if config.validation is not None:
        items, watched = held_back(items, config.validation.share, job.seed)
    both = [*items, *watched]
    micro = config.micro_batch_tokens or (1024 if device == "cpu" else 8192)
    read: Reader | ScoreReader | TokenReader
    heads: dict[str, TokenHead] = {}
    if head == "score":
        read = ScoreReader(SequenceScores(loaded.model), device, use_bfloat16(config, device), ranks=ranks)
        if ranks.sharded:
            shard(loaded.model, device)
    else:
        if "values" in requires:
            heads[VALUE] = load_head(job.init, VALUE, loaded.model)
        read = _reader(loaded.model, config, device, items, ranks, entropy="entropy" in requires, head=heads.get(VALUE))
        if head == "token":
            freeze_output(loaded.model)
            read = token_reader(read, job.init)
            heads[NAME] = read.policy.head
    steps = plan(
        items,
        epochs=config.epochs,
        batch_tokens=config.batch_tokens,
        micro_batch_tokens=micro,
        seed=job.seed,
        packed=read.packed,
        in_turns=objective.plugin.mark.in_turns,
    )
    stored = known(
        job,
        requires,
        both,
        lambda policy: _frozen(policy, job, config, loaded, read),
        objective.behind(table, both, loaded.tokenizer, limit, longest),
        max_length=limit,
        micro_batch_tokens=micro,
    )
    held = None
    if config.ewc is not None and job.kept is not None and isinstance(read, Reader):
        held = elastic(job, config.ewc, loaded, read, max_length=limit, longest=longest)
    loaded.model.train()
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    for at, module in heads.items():
        trained |= {f"{at}_head.{name}": p for name, p in module.named_parameters()}
    entropy = logps = None
    if isinstance(read, Reader):
        entropy = replace(read, policy=TokenLogps(loaded.model, entropy=True)) if "step_entropy" in requires else None
        logps = read if "step_logps" in requires else None
    with tracked(job) if ranks.first else nullcontext(_silent) as track:
        work = Work(
            both,
            steps,
            trained,
            read,
            objective,
            stored,
            objective.corrupter(loaded, read, job.seed),
            entropy,
            logps,
            _watch(config, both, len(items), len(steps), micro, read.packed),
            track,
            "foresight" in requires,
            held,
        )
        metrics = run(job, config, work, progress)
    result = result_of(
        job,
        metrics,
        adapters=config.lora is not None and not config.lora.merge,
        examples=len(items),
        tokens=sum(step.targets for step in steps[: len(metrics)]),
        started=started,
        held_back=[item.example_id for item in watched],
    )
    sharded = loaded.model.named_parameters() if ranks.sharded else ()
    parameters = {name: whole(p.detach()) for name, p in sharded if name in trained}
    if ranks.first:
        if ranks.sharded:
            loaded = _unsharded(job, config, parameters, head)
        save_policy(_to_save(loaded, config), loaded.tokenizer, job, dtype=loaded.dtype, result=result, heads=heads)
    ranks.gather(None)  # nobody ends before the policy is there
    return result


def _watch(config: Train, both: list[Item], trained: int, steps: int, micro: int, packed: bool) -> Watch | None:
    """The examples held back stand behind those that are trained on."""
    if config.validation is None:
        return None
    step = one_step(both, range(trained, len(both)), micro, packed)
    return Watch(step, max(1, round(steps / config.epochs * config.validation.every)), config.validation.patience)


def _unsharded(job: TrainJob, config: Train, parameters: dict[str, torch.Tensor], head: str | None) -> Loaded:
    """The policy that training began with, with these parameters, in one process's memory."""
    loaded = load_policy(job.init, config, device="cpu", head=head)
    own = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for name, values in parameters.items():
            own[name].copy_(values)
    return loaded


@dataclass(frozen=True, slots=True)
class _Objective:
    plugin: Plugin
    config: Config
    needs: list[str]
    """Columns that no example may lack."""
    requires: frozenset[str]

    def __call__(self, batch: Any) -> Loss:
        loss: Loss = self.plugin.call(self.config, {"batch": batch})
        return loss

    def behind(
        self, table: pa.Table, items: Sequence[Item], tokenizer: Any, max_length: int, longest: str
    ) -> dict[str, list[Item]]:
        """The items with the further prompts that the mark names. Raises StageError where one is then too long."""
        if self.plugin.mark.behind is None:
            return {}
        return {
            name: behind(table, text, items, tokenizer, max_length=max_length, longest=longest, setting=name)
            for name, text in self.plugin.mark.behind(self.config).items()
        }

    def corrupter(self, loaded: Loaded, read: object, seed: int) -> Corrupter | None:
        corrupts = self.plugin.mark.corrupts
        if corrupts is None or not isinstance(read, Reader):
            return None
        own = replace(read, policy=TokenLogps(loaded.model))
        return Corrupter(lambda progress: corrupts(self.config, progress), loaded.tokenizer, own, seed)


def _objective(job: TrainJob) -> _Objective:
    local = job.objective_origin.endswith(".py")
    plugin = find("objective", f"{job.objective_origin}:{job.objective}" if local else job.objective)
    config = plugin.configure(dict(job.objective_config))
    needs = ["behaviour_logps" if name == "logps" else name for name in sorted(plugin.mark.needs)]
    for name in needs:
        if name not in COLUMNS:
            raise PluginError(
                f"objective {job.objective!r} needs {name!r}: no such column{did_you_mean(name, COLUMNS)}"
            )
    requires = plugin.mark.required(config)
    if "foresight" in requires and job.train.get("validation") is None:
        raise StageError(
            f"objective {job.objective!r} goes by examples held back, and there are none: write validation, e.g. "
            "{share: 0.1, patience: 1000}"
        )
    if "reference" in requires and job.reference is None:
        raise StageError(f"objective {job.objective!r} requires a reference policy, and the job names none")
    if "token_scores" in requires and job.scorer is None:
        raise StageError(f"objective {job.objective!r} has tokens scored by a reward model, and the job names none")
    return _Objective(plugin, config, needs, requires)


def _limit(config: Train, model: Any) -> tuple[int, str]:
    context = context_of(model)
    if config.max_length is not None and config.max_length <= context:
        return config.max_length, "train.max_length"
    return context, "the policy's context"


def _reader(
    model: Any,
    config: Train,
    device: str,
    items: Sequence[Item],
    ranks: Ranks,
    *,
    entropy: bool,
    head: TokenHead | None,
) -> Reader:
    """Raises StageError where sequences are to be packed and the model mixes them."""
    model.eval()
    read = Reader(
        TokenLogps(model, entropy=entropy, head=head), device, use_bfloat16(config, device), packs(config, model), ranks
    )
    if read.packed and not reads_packed_apart(read, items[0].sequences[0].ids[:16]):
        raise StageError(
            "train.packing: this model does not keep packed sequences apart (its attention ignores where one begins): "
            "write packing: false"
        )
    if ranks.sharded:
        shard(model, device)
    return read


def _frozen(policy: str, job: TrainJob, config: Train, loaded: Loaded, read: object) -> Reader:
    """'old', 'reference', 'values' or the reward model that scores tokens, before the first step.

    Adapters are still the identity then.
    """
    assert isinstance(read, Reader), "an objective with a head requires nothing"
    if policy == "values":
        read.policy.eval()
        return read
    directory = job.init if policy == "old" or job.reference is None else job.reference
    if job.scorer is not None and policy in SCORERS:
        directory = job.scorer.model if policy == "scorer" else job.scorer.reference or job.init
    same = directory.resolve() == job.init.resolve()
    model = loaded.model if same else load_model(directory, attention=config.attention)[0].to(read.device)
    model.eval()
    frozen = TokenLogps(model)
    if read.ranks.sharded and not same:
        shard(model, read.device)
    return replace(read, policy=frozen)


def _to_save(loaded: Loaded, config: Train) -> Any:
    if loaded.wrapper is None or config.lora is None:
        return loaded.model
    return loaded.wrapper.merge_and_unload() if config.lora.merge else loaded.wrapper
