"""What every engine promises: it samples completions with their log-probabilities, and scores given ones.

An engine plugin is a function under `@stage("engine")` that takes its config and a checkpoint directory and returns
an object with these methods. Capabilities beyond `sample` are declared, so that a recipe that needs one fails before
the first token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]
"""Called as `progress(rollouts_done, tokens_done)` with totals so far within one `sample` call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. `temperature=0` is greedy; `top_p=1`, `top_k=0` and `min_p=0` switch truncation off.

    Truncation acts on the tempered distribution: the tokens at least `min_p` times as likely as the likeliest, of those
    the `top_k` likeliest, of those the fewest that hold `top_p` of what is left.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    """Strings that end a completion; the stop string itself is kept out of the text."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion, as the end of sequence does: kept in `token_ids`, out of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and the seeds of its samples: as many completions come back, in that order."""

    prompt: str
    """Text as the model reads it; templates are already applied (see `Engine.render`)."""
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled completion."""

    text: str
    """Without special tokens and without the stop string."""
    token_ids: list[int]
    """As sampled, the end-of-sequence token included."""
    logps: list[float]
    """Log-probability of each token under the tempered, truncated distribution it was drawn from, in nats."""
    finish_reason: str
    """'stop', 'length', or 'error' (then `error` says what; text and tokens may be partial)."""
    entropy: float | None = None
    """Mean entropy of those distributions over the tokens, in nats."""
    self_certainty: float | None = None
    """Mean over tokens of -1/V sum_j log(V p_j) under the untempered, untruncated distribution."""
    error: str | None = None
    latency_s: float | None = None
    """Of the request, where the engine makes one for each."""
    n_tokens: int | None = None
    """How many tokens were sampled, where `token_ids` are not known; None = as many as there are."""
    n_prompt_tokens: int | None = None
    """Tokens of the prompt that this completion is billed for, where the engine is billed."""
    cost: float | None = None
    """Price of those and of the completion's tokens, in the currency of the engine's price table."""


class Engine(Protocol):
    """A policy loaded and ready. One thread at a time."""

    name: str
    capabilities: frozenset[str]
    """Subset of {'sample', 'score', 'next_logits', 'hidden', 'reload'}; with 'reload' it has `reload(directory)`, which
    goes on with another policy more cheaply than a new engine would; for two of the others see `Inside`."""

    def render(self, prompt: str, messages: Sequence[dict[str, str]] | None = None) -> str:
        """The text the model should read for a problem: chat template applied where the policy has one."""
        ...

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds.

        A completion depends on its prompt, its seed and the sampling alone, not on what else is in the batch.
        """
        ...

    def score(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities, in nats, of each continuation's tokens after its prompt (untempered).

        A continuation is a text, or token ids as they were sampled: a text can be sampled in more ways than one.
        """
        ...

    def close(self) -> None:
        """Free the memory the policy holds."""
        ...


class Inside(Protocol):
    """What an engine with the capabilities of these names has beside `Engine`'s own: a look inside the policy."""

    def next_logits(self, prompts: Sequence[str]) -> Tensor:
        """[B, V] float32, in main memory: the logits of the token after each prompt, untempered."""
        ...

    def hidden(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[Tensor]:
        """[T, E] float32, in main memory: the last layer's state at each token of a prompt and its continuation.

        After the last norm: what the head is given, transformers' `hidden_states[-1]`.
        """
        ...


class Scorer(Protocol):
    """A reward model with a head, loaded and ready."""

    def scores(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[float]:
        """The score of each completion, a text or its tokens, after its prompt. Raises ValueError: one is too long."""
        ...


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy that a stage names in its settings (a reference, a teacher), and what is known of rollouts under it."""

    directory: Path
    hash: str
    """Of the checkpoint's files."""
    policy_id: int | None
    """None: it is not of the lake."""
    known: Mapping[int, list[float]]
    """Rollout id -> log-probability of each of its tokens."""
    load: Callable[[], Engine] | None = None
    """Gives the recipe's engine with this policy loaded; set where the plugin runs."""

    def engine(self) -> Engine:
        """The engine with this policy loaded; it takes the place of whichever was loaded before."""
        assert self.load is not None
        return self.load()


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model of the run: one with a head, or a policy that is one by its log-ratio to a reference."""

    name: str
    """Of its row in `policies`."""
    stage: str
    """Name of the `train_reward` stage that trained it."""
    policy: NamedPolicy
    reference: NamedPolicy | None
    """None: it has a head."""
    beta: float = 1.0
    """Reward for a log-ratio of 1 to the reference."""
    load: Callable[[], Scorer] | None = None
    """Loads it where it has a head; set where the plugin runs."""

    def scorer(self) -> Scorer:
        """The model, loaded; it takes the place of whichever model or engine was loaded before."""
        assert self.load is not None
        return self.load()
