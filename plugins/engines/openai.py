"""Samples from any server that speaks OpenAI's HTTP API: one, a pool of them, or one that Strop starts for each policy.

A request that fails is tried again, elsewhere where there is another server; a server that is gone is waited for. What
was sampled is kept beside the lake until its shard is whole, so that a kill, an outage or a spent budget loses nothing.

Source: OpenAI's completions and chat API, with the fields that vLLM, SGLang and llama.cpp add to it.
Left out: streaming, as a completion is used whole; entropy and self-certainty, which need every token's probability.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from strop.core.plugin import OPERATION, Config, stage

if TYPE_CHECKING:
    from strop.plugins.engines._openai_engine import OpenaiEngine


class Price(Config):
    """Of a million tokens, in whatever currency `budget` is."""

    prompt: NonNegativeFloat
    """Tokens of prompts."""
    completion: NonNegativeFloat
    """Sampled tokens."""
    cached: NonNegativeFloat | None = None
    """Tokens of prompts that the server reports as cached; None = as `prompt`."""


class Openai(Config):
    """Which servers, how they are asked, and what they may cost."""

    base_urls: Annotated[tuple[str, ...], OPERATION] = Field(default=(), repr=False)
    """Servers of the policy, `http://host:8000/v1`; more than one share the work."""
    serve: str = ""
    """Instead: a command that serves a policy, started for each with `{policy}` (its folder), `{port}`, `{replica}`
    filled in; `{base}` instead of `{policy}` where policies are adapters."""
    replicas: Annotated[PositiveInt, OPERATION] = 1
    """Servers started with `serve`."""
    policies: Literal["served", "lora"] = "served"
    """How servers at `base_urls` come to have a policy: served = they have it; lora = adapters are loaded into them."""
    model: str = ""
    """What the policy is called there, where the server does not say which files it has."""
    endpoint: Literal["completions", "chat"] = "completions"
    """chat is for policies without weights; all others are asked for completions of the prompt they are trained on."""
    key: Annotated[str, OPERATION] = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$", repr=False)
    """Name of the environment variable that holds the API key, never the key."""
    concurrency: Annotated[PositiveInt, OPERATION] = 128
    """Requests under way at a time, over all servers."""
    timeout_s: Annotated[PositiveFloat, OPERATION] = 600.0
    """Longest wait for one answer."""
    retries: Annotated[PositiveInt, OPERATION] = 8
    """Tries of a request that fails while others succeed; then it is a rollout with an error."""
    patience_s: Annotated[PositiveFloat, OPERATION] = 600.0
    """How long no request may succeed, before the stage stops."""
    start_s: Annotated[PositiveFloat, OPERATION] = 600.0
    """How long a server started with `serve` may take until it answers."""
    price: Annotated[Price | None, OPERATION] = None
    """What tokens cost; None = nothing."""
    budget: Annotated[PositiveFloat | None, OPERATION] = None
    """Most that the run may cost, all its workers and restarts together; the stage stops before more is spent."""
    seeds: bool = True
    """One request for each sample, with its seed; false = one request for the n samples of a prompt, and the server's
    own randomness."""
    extensions: bool | None = None
    """Whether the server takes top_k, min_p, stop_token_ids and return_token_ids; None = vLLM, SGLang, llama.cpp do."""
    context: PositiveInt | None = None
    """Longest sequence, where it is shorter than the policy's and the server does not say."""
    chat_template: Literal["auto", "off"] = "auto"
    """auto = the policy's tokenizer's own where it has one; off = prompts as they are."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, {reasoning_effort: low}; they win, and null removes one."""

    @field_validator("base_urls")
    @classmethod
    def _urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
                raise ValueError("a base URL is http://host:port/v1, with no name, key or query in it")
        return tuple(url.rstrip("/") for url in urls)

    @field_validator("serve")
    @classmethod
    def _command(cls, serve: str) -> str:
        from strop.plugins.engines._openai_serve import check_template

        return check_template(serve)

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if bool(self.serve) == bool(self.base_urls):
            raise ValueError(
                "say where the policy is served: base_urls: [http://host:8000/v1], or serve: a command that serves it"
            )
        if self.budget is not None and self.price is None:
            raise ValueError("a budget needs prices: price: {prompt: 0.15, completion: 0.6}, per million tokens")
        return self


@stage("engine", weights=False, alone=True)
def openai(config: Openai, *, directory: Path, threads: int, scratch: Path, needs: frozenset[str]) -> OpenaiEngine:
    """The policy, on servers that were found to have it."""
    from strop.plugins.engines._openai_engine import OpenaiEngine

    return OpenaiEngine(config, directory, threads, scratch, needs)
