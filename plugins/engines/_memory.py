"""How much memory there is to sample with, and how to tell that it was not enough."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil
import torch

_SHARE = {"cpu": 0.25, "cuda": 0.7}
"""Of free memory, for keys and values: on CPU several workers start at once, and each measures for itself."""
_GROUP = Path("/sys/fs/cgroup")
_TRIM, _MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's mallopt."""


def cache_bytes(device: torch.device) -> int:
    """What keys and values may take on the device, from what is free there now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE["cuda"])
    return int(min(psutil.virtual_memory().available, _left_in_group()) * _SHARE["cpu"])


def _left_in_group() -> float:
    """What the container's own limit leaves, where it has one."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        return float(limit) - float((_GROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or 'max'
        return float("inf")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in torch on an accelerator, in torch on CPU, or elsewhere."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step.

    It hands large blocks back to the system, and to fault them in again at every step takes longer than the arithmetic:
    drawing from 64 x 8,192 logits took 5.3 ms with it, 0.9 ms without.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP, 1 << 25)  # the most it takes
        libc.mallopt(_TRIM, 1 << 30)


def give_back_freed_memory() -> None:
    """To the system, and to other processes of an accelerator."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
