"""A reward model with a head, loaded to score completions as it was trained on them.

One that gives one number a token gives a completion their mean, which is the logit of its being right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from strop.core.trainer.batches import runs
from strop.core.trainer.encode import Encoded, encode_prompts, encoded, text_ids
from strop.core.trainer.policy import context_of, load_model, pick_device, quiet
from strop.core.trainer.score import SequenceScores, load_scored
from strop.core.trainer.token_head import load_head
from strop.core.trainer.token_score import NAME, TokenReader, TokenScores, has_head


class HeadScorer:
    """See `strop.core.engine.Scorer`. On an accelerator the weights keep their stored type."""

    def __init__(self, directory: Path, threads: int) -> None:
        from transformers import AutoTokenizer

        device = pick_device()
        with quiet():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        model: Any
        self._of: Callable[[Sequence[Encoded]], torch.Tensor]
        if has_head(directory):
            model, _ = load_model(directory, keep_dtype=device != "cpu")
            model.to(device).eval()
            self._of = TokenReader(TokenScores(model, load_head(directory, NAME, model)), device).means
        else:
            model, _ = load_scored(directory, self._tokenizer, keep_dtype=device != "cpu")
            scorer = SequenceScores(model.to(device).eval())
            self._of = lambda sequences: scorer.of([s.ids for s in sequences])
        self._context = context_of(model)
        self._threads, self._tokens = threads, 1024 if device == "cpu" else 16384

    def scores(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[float]:
        """In the order of the pairs; batches of about equal lengths."""
        prompts = encode_prompts([prompt for prompt, _ in pairs], self._tokenizer)
        ended = text_ids((made for _, made in pairs if isinstance(made, str)), self._tokenizer)
        sequences = [
            encoded(prompt, ended[made] if isinstance(made, str) else made, None, self._tokenizer)
            for prompt, (_, made) in zip(prompts, pairs, strict=True)
        ]
        if (longest := max((len(s.ids) for s in sequences), default=0)) > self._context:
            raise ValueError(f"{longest} tokens with its prompt, and the reward model reads {self._context}")
        torch.set_num_threads(self._threads)
        found = [0.0] * len(pairs)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
        for run in runs([len(sequences[i].ids) for i in order], self._tokens, packed=False):
            batch = order[run.start : run.stop]
            with torch.no_grad():
                scores = self._of([sequences[i] for i in batch]).tolist()
            for i, score in zip(batch, scores, strict=True):
                found[i] = score
        return found
