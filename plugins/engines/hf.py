"""Samples with PyTorch in this process, on CPU or one accelerator; quick on small models, right on any.

Requests are batched by prompt length, a prompt is read once for all its samples, and finished rows leave the batch;
where memory runs out, batches are halved and what is finished stays. Llama, Qwen2 and Qwen3 run through a lean forward
pass, checked against transformers when the policy is loaded, other architectures through transformers' own modules.

Source: self-certainty from Kang et al. 2025, 2502.18581, eq. 5.
Left out: rows that finish are not replaced by waiting ones; batches of 512 lose 3% by it on the default policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PositiveFloat, PositiveInt

from strop.core.engine import Completion, Progress, Request, Sampling
from strop.core.plugin import OPERATION, Config, stage
from strop.storage.errors import StageError

if TYPE_CHECKING:
    import torch

    from strop.plugins.engines._decode import Ends, Forward
    from strop.plugins.engines._load import Loaded
    from strop.plugins.engines._plan import Item
    from strop.plugins.engines._record import Sampled

_ROWS = 1024
"""Decoded at a time: on CPU 512 are a tenth faster than 256, and 1,024 a little faster still."""


class Hf(Config):
    """Where and how the policy runs."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; auto = the accelerator where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto = float32 on CPU, bfloat16 or float16 on an accelerator."""
    batch_rows: Annotated[PositiveInt | None, OPERATION] = None
    """Most completions sampled at a time. None = 1,024, or fewer where memory is short."""
    cache_gb: Annotated[PositiveFloat | None, OPERATION] = None
    """Memory for keys and values: with long prompts or a large `max_tokens` a batch has fewer rows. None = a quarter of
    the memory that is free when the policy is loaded; 70% on an accelerator."""
    chat_template: Literal["auto", "off"] = "auto"
    """auto = the tokenizer's own where it has one; off = prompts as they are."""
    lean: bool = True
    """Use the lean forward pass for architectures it knows."""


@stage("engine")
def hf(config: Hf, *, directory: Path, threads: int) -> HfEngine:
    """The policy, loaded; adapters are merged."""
    return HfEngine(config, directory, threads)


class HfEngine:
    """See `strop.core.engine.Engine`."""

    name = "hf"
    capabilities = frozenset({"sample", "score", "next_logits", "hidden", "reload"})

    def __init__(self, config: Hf, directory: Path, threads: int) -> None:
        import torch

        from strop.plugins.engines._memory import keep_freed_memory

        self.config, self.directory = config, directory
        if config.device == "cpu" or not torch.cuda.is_available():
            torch.set_num_threads(threads)
            keep_freed_memory()
        self.loaded: Loaded | None = None
        self.reload(directory)

    def reload(self, directory: Path) -> None:
        """Go on with another policy: its weights take the place of these where it has the same shape.

        An adapter on the base that is loaded costs no more than its own weights and a merge.
        """
        from strop.plugins.engines._load import load
        from strop.plugins.engines._memory import cache_bytes, give_back_freed_memory
        from strop.plugins.engines._texts import Texts

        config, before, self.directory = self.config, self.loaded, directory
        self.loaded = self.model = None  # what fails half-way is closed
        loaded = load(directory, device=config.device, dtype=config.dtype, lean=config.lean, before=before)
        give_back_freed_memory()
        self.loaded, self.model = loaded, loaded.model
        self.eos = loaded.eos
        self.texts = Texts(loaded.tokenizer, loaded.context, loaded.eos.tolist(), config.chat_template)
        free = cache_bytes(self.eos.device)
        self.rows = config.batch_rows or max(1, min(_ROWS, free // (16 * 4 * loaded.width)))
        room = free if config.cache_gb is None else int(config.cache_gb * 1e9)
        self.cached_tokens = max(1, room // loaded.token_bytes)

    def render(self, prompt: str, messages: Sequence[dict[str, str]] | None = None) -> str:
        """The prompt, or its messages, in the tokenizer's chat template where it has one."""
        return self.texts.render(prompt, messages)

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Completions per request; a prompt that leaves no room for a token gives completions with an error.

        Raises StageError when the policy's logits are not numbers.
        """
        import torch

        from strop.plugins.engines._plan import Item, plan, unfinished

        texts = self.texts
        prompts = texts.encode([r.prompt for r in requests])
        out: list[list[Completion | None]] = [[None] * len(r.seeds) for r in requests]
        items: list[Item] = []
        done = tokens = 0
        for index, (request, ids) in enumerate(zip(requests, prompts, strict=True)):
            refused = texts.refused(len(ids), sampling)
            if refused is None:
                limit = min(sampling.max_tokens, texts.context - len(ids))
                items.append(Item(index, range(len(request.seeds)), ids, request.seeds, limit))
            else:
                out[index] = [refused] * len(request.seeds)
                done += len(request.seeds)
        ends = self._ends(sampling.stop) if sampling.stop else None
        final = torch.tensor(sorted({*self.eos.tolist(), *sampling.stop_token_ids}), device=self.eos.device)

        def tell(more_tokens: int) -> None:
            if progress is not None:
                progress(done, tokens + more_tokens)

        while items:
            for batch in plan(items, self.rows, self.cached_tokens):
                places = [(item.request, i) for item in batch for i in item.samples]

                def emit(rows: list[int], sampled: list[Sampled], places: list[tuple[int, int]] = places) -> None:
                    nonlocal done, tokens
                    for row, completion in zip(rows, self._completions(sampled, sampling), strict=True):
                        request, i = places[row]
                        if out[request][i] is None:  # else memory ran out just after it had been handed over
                            out[request][i] = completion
                            done += 1
                            tokens += len(completion.token_ids)

                if not self._decoded_within_memory(batch, sampling, final=final, ends=ends, emit=emit, progress=tell):
                    break
                tell(0)
            items = unfinished(items, lambda request, i: out[request][i] is None)
        return [[c for c in completions if c is not None] for completions in out]

    def _decoded_within_memory(self, batch: Sequence[Item], sampling: Sampling, **rest: Any) -> bool:
        """Decode the batch; False when memory ran out, with half its rows as the most from now on."""
        import torch

        from strop.plugins.engines._decode import UnsoundLogits, decode
        from strop.plugins.engines._memory import give_back_freed_memory, out_of_memory
        from strop.plugins.engines._texts import unsound

        try:
            with torch.inference_mode():
                decode(self._loaded(), batch, sampling, **rest)
            return True
        except UnsoundLogits:
            raise unsound(self.directory) from None
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._halve(sum(len(item.seeds) for item in batch), error)
        give_back_freed_memory()
        return False

    def _halve(self, rows: int, error: Exception) -> None:
        if rows == 1:
            raise StageError(
                f"memory ran out while the policy in {self.directory} sampled a single completion ({error}): lower "
                "max_tokens, shorten the prompts, or run it where there is more memory"
            ) from None
        self.rows = rows // 2

    def score(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[list[float]]:
        """Untempered log-probabilities of each continuation's tokens; EOS is not added.

        Raises ValueError for an empty prompt, and for a pair longer than the context.
        """
        import torch

        from strop.plugins.engines._score import score

        encoded = self.texts.encode_pairs(pairs)
        with torch.inference_mode():
            return score(self._loaded(), [p for p, _ in encoded], [t for _, t in encoded], self.eos.device)

    def hidden(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[torch.Tensor]:
        """[T, E] float32 states of the last layer, after its norm, at each token of prompt and continuation.

        Raises ValueError as `score` does.
        """
        import torch

        from strop.plugins.engines._score import hidden

        whole = [[*prompt, *tail] for prompt, tail in self.texts.encode_pairs(pairs)]
        with torch.inference_mode():
            return hidden(self._loaded(), whole, self.eos.device)

    def next_logits(self, prompts: Sequence[str]) -> torch.Tensor:
        """[B, V] float32 logits of the token after each prompt.

        Raises ValueError as `score` does.
        """
        import torch

        from strop.plugins.engines._score import next_logits

        whole = [prompt for prompt, _ in self.texts.encode_pairs([(prompt, "") for prompt in prompts])]
        with torch.inference_mode():
            return next_logits(self._loaded(), whole, self.eos.device)

    def close(self) -> None:
        """Free the weights."""
        from strop.plugins.engines._memory import give_back_freed_memory

        self.loaded = self.model = None
        give_back_freed_memory()

    def _loaded(self) -> Forward:
        if self.model is None:
            raise StageError(f"the engine of {self.directory} is closed")
        return self.model

    def _ends(self, stop: Sequence[str]) -> Ends:
        from strop.plugins.engines._decode import Ends

        def met(windows: list[list[int]]) -> list[bool]:
            return [any(s in text for s in stop) for text in self.texts.decoded(windows)]

        return Ends(4 * max(map(len, stop)) + 8, met)  # up to four tokens a character, where they are bytes

    def _completions(self, sampled: Sequence[Sampled], sampling: Sampling) -> list[Completion]:
        from strop.plugins.engines._texts import without_stop

        shown = [without_stop(s.token_ids, sampling) for s in sampled]
        made = []
        for s, text in zip(sampled, self.texts.decoded(shown), strict=True):
            cuts = [at for at in (text.find(x) for x in sampling.stop) if at >= 0]
            made.append(
                Completion(
                    text=text[: min(cuts)] if cuts else text,
                    token_ids=s.token_ids,
                    logps=s.logps,
                    finish_reason="stop" if s.stopped else "length",
                    entropy=s.entropy,
                    self_certainty=s.self_certainty,
                )
            )
        return made
