"""The text side of an engine that runs a policy elsewhere: prompts to token ids, and sampled ids to completions."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from strop.core.engine import Completion, Sampling
from strop.core.trainer.encode import encode_prompts
from strop.storage.errors import StageError


@dataclass(frozen=True, slots=True)
class Texts:
    """A policy's own tokenizer, and what its checkpoint says of length and end."""

    tokenizer: Any
    context: int
    """Longest sequence, in tokens."""
    eos: Sequence[int]
    """Tokens that end a completion."""
    chat_template: str
    """'auto' or 'off'."""

    @classmethod
    def read(cls, directory: Path, base: Path, *, chat_template: str, context: int | None) -> Self:
        """From a checkpoint; `base` holds config.json: the directory itself, or what its adapter belongs to."""
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        config, generation = _json(base / "config.json"), _json(base / "generation_config.json")
        own = config.get("max_position_embeddings") or config.get("n_positions") or math.inf
        length = int(min(own, tokenizer.model_max_length, context or math.inf, 1 << 30))
        ends = end_tokens(tokenizer.eos_token_id, config.get("eos_token_id"), generation.get("eos_token_id"))
        return cls(tokenizer, length, ends, chat_template)

    def render(self, prompt: str, messages: Sequence[dict[str, str]] | None) -> str:
        """The prompt, or its messages, in the tokenizer's chat template where it has one."""
        if self.chat_template == "off" or not self.tokenizer.chat_template:
            return prompt
        chat = list(messages or [{"role": "user", "content": prompt}])
        rendered: str = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return rendered

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered prompts."""
        return encode_prompts(prompts, self.tokenizer)

    def encode_pairs(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of prompts and their continuations, each on its own; a continuation may be token ids already.

        Raises ValueError for an empty prompt, and for a pair longer than the context.
        """
        prompts = self.encode([p for p, _ in pairs])
        tails = [
            self.tokenizer(c, add_special_tokens=False)["input_ids"] if isinstance(c, str) else list(c)
            for _, c in pairs
        ]
        for prompt, tail in zip(prompts, tails, strict=True):
            if not prompt:
                raise ValueError("cannot score after an empty prompt: there is nothing to predict its first token from")
            if len(prompt) + len(tail) > self.context:
                raise ValueError(
                    f"cannot score {len(prompt)} + {len(tail)} tokens: the policy's context is {self.context}"
                )
        return list(zip(prompts, tails, strict=True))

    def refused(self, length: int, sampling: Sampling) -> Completion | None:
        """What comes back for a prompt of that many tokens where nothing can be sampled."""
        if sampling.max_tokens < 1:
            why = f"max_tokens is {sampling.max_tokens}: nothing to sample"
        elif length == 0:
            why = "the prompt has no tokens"
        elif length >= self.context:
            why = f"the prompt has {length} tokens, the policy's context is {self.context}: no room for a completion"
        else:
            return None
        return Completion(text="", token_ids=[], logps=[], finish_reason="error", error=why)

    def completions(self, sampled: Sequence[tuple[list[int], list[float]]], sampling: Sampling) -> list[Completion]:
        """Completions of (token ids, log-probabilities), cut after the token that completes a stop string."""
        texts = self.decoded([without_stop(ids, sampling) for ids, _ in sampled])
        made = []
        for (ids, logps), text in zip(sampled, texts, strict=True):
            stopped = bool(ids) and (ids[-1] in self.eos or ids[-1] in sampling.stop_token_ids)
            if sampling.stop and any(s in text for s in sampling.stop):
                length = self._stop_length(ids, sampling.stop)
                ids, logps, stopped = ids[:length], logps[:length], True
                text = self.decoded([ids])[0]
                text = text[: min(at for s in sampling.stop if (at := text.find(s)) >= 0)]
            made.append(
                Completion(text=text, token_ids=ids, logps=logps, finish_reason="stop" if stopped else "length")
            )
        return made

    def stop_watch(self, stop: Sequence[str]) -> dict[str, Any] | None:
        """What another process needs to notice a stop string: None where there is none, or no portable tokenizer."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not stop or backend is None:
            return None
        window = 4 * max(map(len, stop)) + 8  # up to four tokens a character, where they are bytes
        return {"tokenizer": backend.to_str(), "strings": list(stop), "window": window}

    def _stop_length(self, ids: list[int], stop: Sequence[str]) -> int:
        """How many tokens it takes for the text to hold a stop string."""
        return bisect.bisect_left(
            range(len(ids)), True, key=lambda n: any(s in self.decoded([ids[:n]])[0] for s in stop)
        )

    def decoded(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Their texts, without special tokens."""
        texts: list[str] = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts


def without_stop(ids: list[int], sampling: Sampling) -> list[int]:
    """The tokens whose text a completion has: a stop token is not part of it."""
    return ids[:-1] if ids and ids[-1] in sampling.stop_token_ids else ids


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return {**found, **found.get("text_config", {})}


def end_tokens(*named: int | Sequence[int] | None) -> list[int]:
    """What the tokenizer, the config and the generation config each call end of sequence."""
    found: set[int] = set()
    for ids in named:
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return sorted(found)


def unsound(directory: Path) -> StageError:
    """What is wrong where logits are not numbers."""
    return StageError(
        f"the policy in {directory} gives logits that are not numbers (NaN): training diverged; "
        "use a lower learning rate, or start again from an earlier policy"
    )
