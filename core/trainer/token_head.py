"""One number a token beside a policy: a linear layer over its last hidden states, in float32, saved in its directory.

It lies in a folder of its own, `heads/<name>.safetensors`: whatever loads a Hugging Face directory, vLLM's search for
weights among it, looks at the directory's own files alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strop.storage.durable import fsync
from strop.storage.errors import StageError

HEADS = "heads"


class TokenHead(nn.Module):
    """Zero everywhere until it is trained."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[...] float32, of hidden states [..., size] in whatever type; the gradient goes on into them."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight, self.bias).squeeze(-1)


def load_head(directory: Path, name: str, model: Any) -> TokenHead:
    """The head of that name in the policy's directory, on the model's device; a fresh one where there is none.

    `model` is the causal language model whose hidden states it reads. Raises StageError where it fits another one.
    """
    from safetensors.torch import load_file

    output = model.get_output_embeddings().weight
    head = TokenHead(int(output.shape[1]))
    path = directory / HEADS / f"{name}.safetensors"
    if path.is_file():
        stored = load_file(path)
        want, have = ({n: tuple(t.shape) for n, t in tensors.items()} for tensors in (head.state_dict(), stored))
        if want != have:
            raise StageError(
                f"{path} has {have}, and the model beside it needs {want}: it is another model's; remove it"
            )
        head.load_state_dict(stored)
    return head.to(output.device)


def save_head(head: TokenHead, directory: Path, name: str) -> None:
    """Write the head into the policy's directory."""
    from safetensors.torch import save_file

    folder = directory / HEADS
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({n: t.detach().cpu().contiguous() for n, t in head.state_dict().items()}, path)
    fsync(path)
    fsync(folder)
