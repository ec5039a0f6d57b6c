"""Elastic weight consolidation: the weights that some completions depend on are held near where training starts.

What is minimised is the objective's loss plus weight / 2 sum_i F_i (theta_i - theta*_i)^2. theta* is where training
starts; F_i, the diagonal of the Fisher information there, is the mean over a sample of completions of the squared slope
of log pi(completion | prompt) by theta_i. It is computed once, before the first step, and kept in the job's folder.

With adapters theta_i are the weights that they change, not their own: at the start one of an adapter's two factors is
0, so the other would have no slope at all and could move freely.

Source: Kirkpatrick et al. 2017, 1612.00796, eq. 3; with adapters Xiang et al. 2023, 2305.10626.
Changed: completions as they are in the data, as everywhere with language models, not drawn from the policy anew. Where
the policy wrote them they are such draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from strop.core.trainer.config import Ewc
from strop.core.trainer.encode import Encoded, encode
from strop.core.trainer.job import TrainJob, read_examples
from strop.core.trainer.logps import Reader
from strop.core.trainer.policy import Loaded
from strop.core.trainer.ranks import Ranks, like, whole
from strop.storage.durable import fsync
from strop.storage.errors import StageError

FISHER = "fisher.safetensors"


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the policy, and the parameters in training that decide it."""

    stored: nn.Parameter
    """The parameter whose slope is taken: itself, or the frozen one that an adapter is added to."""
    change: Callable[[], Tensor]
    """What is to be held: itself, or what the adapter adds to it."""
    trained: tuple[nn.Parameter, ...]


@dataclass(frozen=True, slots=True)
class Elastic:
    """The weights, where each started, and how much depends on it."""

    weight: float
    weights: dict[str, Weight]
    start: dict[str, Tensor]
    fisher: dict[str, Tensor]

    def pull(self) -> float:
        """Add the penalty's gradient to the parameters'; the penalty. Every process does it for itself."""
        total = []
        for name, weight in self.weights.items():
            change = weight.change()
            moved = change.detach() - self.start[name]
            slope = self.weight * self.fisher[name] * moved
            total.append(whole((slope * moved).sum()) / 2)
            for parameter, grad in zip(
                weight.trained, torch.autograd.grad(change, weight.trained, slope.to(change.dtype)), strict=True
            ):
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
        return float(torch.stack(total).sum())


def elastic(job: TrainJob, config: Ewc, loaded: Loaded, read: Reader, *, max_length: int, longest: str) -> Elastic:
    """Before the first step: the model is as training starts.

    Raises StageError: a completion of the sample that cannot be read, or a Fisher information that is not finite.
    """
    assert job.kept is not None
    weights = _weights(loaded)
    fisher = _stored(job, weights)
    if fisher is None:
        try:
            items = encode(read_examples(job.kept), loaded.tokenizer, max_length=max_length, longest=longest)
        except StageError as error:
            raise StageError(f"train.ewc, sample {config.sample}: {error}") from error
        fisher = _fisher(weights, [item.sequences[0] for item in items], loaded.model, read)
        _check(fisher)
        _store(job, fisher, read.ranks)
    start = {name: _as_it_is(weight) for name, weight in weights.items()}
    return Elastic(config.weight, weights, start, fisher)


def _weights(loaded: Loaded) -> dict[str, Weight]:
    """By name; with adapters those that one is added to."""
    if loaded.wrapper is None:
        return {n: Weight(p, _itself(p), (p,)) for n, p in loaded.model.named_parameters() if p.requires_grad}
    found = {}
    for name, module in loaded.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            (adapter,) = module.active_adapters
            own = tuple(p for p in module.parameters() if p.requires_grad)
            found[name] = Weight(module.get_base_layer().weight, _added(module, adapter), own)
    return found


def _itself(parameter: nn.Parameter) -> Callable[[], Tensor]:
    return lambda: parameter


def _added(module: Any, adapter: str) -> Callable[[], Tensor]:
    def change() -> Tensor:
        found: Tensor = module.get_delta_weight(adapter)
        return found

    return change


def _as_it_is(weight: Weight) -> Tensor:
    """A fresh adapter adds nothing, for which a number is enough."""
    with torch.no_grad():
        found = weight.change()
        own = found is weight.stored
        return found.detach().clone() if own or found.any() else found.new_zeros(())


def _fisher(weights: Mapping[str, Weight], sequences: Sequence[Encoded], model: Any, read: Reader) -> dict[str, Tensor]:
    """Each process reads its part; where layers are gathered all read all, as the backward pass adds processes up."""
    ranks = read.ranks
    found = {name: torch.zeros_like(weight.stored, dtype=torch.float32) for name, weight in weights.items()}
    own = range(len(sequences)) if ranks.sharded else range(ranks.rank, len(sequences), ranks.world)
    with _differentiating([weight.stored for weight in weights.values()], model, read.policy):
        for i in own:
            read([sequences[i]]).logps.sum().backward()  # type: ignore[no-untyped-call]
            for name, weight in weights.items():
                if weight.stored.grad is not None:
                    found[name] += weight.stored.grad.float() ** 2 / len(sequences)
                    weight.stored.grad = None
    if ranks.world > 1 and not ranks.sharded:
        for values in found.values():
            dist.all_reduce(values)
    return {name: values.detach() for name, values in found.items()}


@contextmanager
def _differentiating(weights: Sequence[nn.Parameter], model: Any, policy: nn.Module) -> Iterator[None]:
    """Gradients of these and no others, without dropout."""
    before = {p: p.requires_grad for p in model.parameters()}
    policy.eval()
    try:
        if not all(before[w] for w in weights):
            for parameter in before:
                parameter.requires_grad_(False)
            for weight in weights:
                weight.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
        policy.train()


def _check(fisher: Mapping[str, Tensor]) -> None:
    bad = [name for name, values in fisher.items() if not whole(values.isfinite().all())]
    if bad:
        raise StageError(
            f"train.ewc: the Fisher information of {bad[0]} is not finite: the sample has completions that the policy "
            "cannot explain; look at them, or write precision: float32"
        )


def _store(job: TrainJob, fisher: Mapping[str, Tensor], ranks: Ranks) -> None:
    from safetensors.torch import save_file

    values = {name: whole(part).cpu().contiguous() for name, part in fisher.items()}
    if ranks.first:
        job.work.mkdir(parents=True, exist_ok=True)
        partial = job.work / f"{FISHER}.partial"
        save_file(values, partial, {"key": job.key()})
        fsync(partial)
        partial.replace(job.work / FISHER)
    ranks.gather(None)  # nobody goes on before it is there


def _stored(job: TrainJob, weights: Mapping[str, Weight]) -> dict[str, Tensor] | None:
    """What this very job computed before it was killed."""
    from safetensors import safe_open

    path: Path = job.work / FISHER
    if not path.is_file():
        return None
    with safe_open(path, "pt") as kept:
        if (kept.metadata() or {}).get("key") != job.key():
            return None
        return {name: like(kept.get_tensor(name), weight.stored) for name, weight in weights.items()}
