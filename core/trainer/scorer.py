"""A reward model with a score head, loaded to score completions as it was trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strop.core.trainer.batches import runs
from strop.core.trainer.encode import encode_prompts, text_ids
from strop.core.trainer.policy import context_of, pick_device, quiet
from strop.core.trainer.score import SequenceScores, load_scored


class HeadScorer:
    """See `strop.core.engine.Scorer`. On an accelerator the weights keep their stored type."""

    def __init__(self, directory: Path, threads: int) -> None:
        from transformers import AutoTokenizer

        device = pick_device()
        with quiet():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        model, _ = load_scored(directory, self._tokenizer, keep_dtype=device != "cpu")
        self._model = SequenceScores(model.to(device).eval())
        self._context = context_of(model)
        self._threads, self._tokens = threads, 1024 if device == "cpu" else 16384

    def scores(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[float]:
        """In the order of the pairs; batches of about equal lengths."""
        prompts = encode_prompts([prompt for prompt, _ in pairs], self._tokenizer)
        ended = text_ids((made for _, made in pairs if isinstance(made, str)), self._tokenizer)
        sequences = [
            np.asarray([*prompt, *(ended[made] if isinstance(made, str) else made)], dtype=np.int64)
            for prompt, (_, made) in zip(prompts, pairs, strict=True)
        ]
        if (longest := max(map(len, sequences), default=0)) > self._context:
            raise ValueError(f"{longest} tokens with its prompt, and the reward model reads {self._context}")
        torch.set_num_threads(self._threads)
        found = [0.0] * len(pairs)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for run in runs([len(sequences[i]) for i in order], self._tokens, packed=False):
            batch = order[run.start : run.stop]
            with torch.no_grad():
                scores = self._model.of([sequences[i] for i in batch]).tolist()
            for i, score in zip(batch, scores, strict=True):
                found[i] = score
        return found
