"""What an exception that nobody foresaw says to a user: one line, and what to do where memory or disk ran out."""

from __future__ import annotations

from strop.storage.errors import MORE_SPACE, is_full

LESS_MEMORY = "free some, or lower `workers`, `shard_rollouts` or `micro_batch_tokens`; the same command goes on"
"""What helps against want of memory, which the kernel settles by SIGKILL."""


def what_failed(error: Exception) -> str:
    """Type and text of the exception, or that memory or disk is full."""
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if no_memory or "can't allocate memory" in text:  # PyTorch's own allocator raises RuntimeError
        return f"out of memory ({text.splitlines()[0]}): {LESS_MEMORY}"
    if is_full(error):  # safetensors and others have exceptions of their own
        return f"the disk is full ({text}): {MORE_SPACE}"
    return text
