"""Several processes that train one policy: who reads which micro-batches, and how what they find is put together.

Every process knows the whole optimiser step and reads its part of the micro-batches; gradients are added up, so that
all take the same step. Losses are divided by sums over the whole step already, hence nothing is averaged.
`shard` keeps a part of every decoder layer on each process and gathers a layer only while it is used (FSDP: Zhao et al.
2023, 2304.11277); embeddings and output head stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from strop.storage.errors import StageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of one training, as one of them sees them."""

    rank: int = 0
    world: int = 1
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def mine(self, n: int) -> list[tuple[int, bool]]:
        """Of n pieces of work, those of this process, and whether they count.

        Where layers are gathered for each pass, all processes must make as many: some do a piece that does not count.
        """
        own = [(i, True) for i in range(self.rank, n, self.world)]
        return own + [(n - 1, False)] * (-(-n // self.world) - len(own)) if self.sharded else own

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order; on every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def collected(self, own: Mapping[int, T]) -> list[T]:
        """What the processes made of pieces 0, 1, 2 and so on, in that order; on every process."""
        found = {number: value for part in self.gather(own) for number, value in part.items()}
        return [found[number] for number in sorted(found)]

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient the sum over the processes."""
        if self.world == 1:
            return
        waiting = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if is_sharded(parameter):  # summed in the backward pass, and divided by the number of processes
                parameter.grad.mul_(self.world)
            else:
                waiting.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in waiting:
            work.wait()


ALONE = Ranks()


@contextmanager
def joined(rank: int, world: int, meeting: Path, device: str) -> Iterator[None]:
    """Meet the other processes at a file that does not exist yet; on GPUs, take one's own.

    Raises StageError: more processes than GPUs.
    """
    if world == 1:
        yield
        return
    if device == "cuda":
        if world > torch.cuda.device_count():
            raise StageError(
                f"train.processes is {world}, and there are {torch.cuda.device_count()} GPUs: one process a GPU"
            )
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(model: Any, device: str) -> None:
    """Spread the model's decoder layers over the processes, in place.

    Raises StageError where the model does not say which of its modules are layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise StageError(f"train.shard: {type(model).__name__} does not name its layers: write shard: false")
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only a part of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must ask for it."""
    found: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found


def like(values: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor in the form of a parameter: on its device, and sharded as it is."""
    if not is_sharded(parameter):
        return values.to(parameter.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(values.to(parameter.device_mesh.device_type), parameter.device_mesh, parameter.placements)
