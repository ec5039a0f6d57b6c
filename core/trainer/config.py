"""How a `train` stage trains: where it starts, on which rounds' examples, with which optimiser. Imports no torch.

Defaults suit LoRA or full fine-tuning of models up to a few billion parameters. Left out: optimiser choice (AdamW,
betas .9/.999) and truncation (an example that does not fit is an error that names it, never a silently cut answer).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from strop.core.plugin import LATER, OPERATION, Config

Tracker = Literal["tensorboard", "wandb", "mlflow"]
Share = Annotated[float, Field(ge=0, le=1)]


class Lora(Config):
    """Low-rank adapters (Hu et al. 2021, 2106.09685) instead of full weights."""

    r: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 32
    """Scale: the adapters' product is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    dora: Annotated[bool, LATER] = False
    """Train magnitude and direction of each weight apart (DoRA: Liu et al. 2024, 2402.09353)."""
    target_modules: str | list[str] = "all-linear"
    """Modules to adapt: names, a regular expression, or 'all-linear' (every linear layer but the output head)."""
    merge: bool = True
    """Write full weights with the adapters merged in; false = the adapter alone, which only some engines load."""


class Replay(Config):
    """Examples of earlier rounds, beside all of this round's."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Of the examples trained on, those that come from earlier rounds."""
    recency: NonNegativeFloat = 1.0
    """An example t rounds old is drawn with weight t^-recency; 0 = all alike."""


class Validation(Config):
    """Examples held back to see when to stop."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the examples, those held back: all of a prompt or none."""
    every: PositiveFloat = 1.0
    """Epochs between looks; 0.5 = twice an epoch."""
    patience: PositiveInt = 1
    """Looks without a lower loss until training stops. The parameters of the best look are the result."""


class Ewc(Config):
    """Elastic weight consolidation: what a sample of completions depends on is held near where training starts."""

    weight: PositiveFloat
    """Of half the squared changes of the weights, each times its Fisher information."""
    sample: str = "earlier"
    """The completions: 'earlier' = examples of this run's earlier rounds, in round 1 none; 'trained' = those trained
    on; or a file with one JSON object a line, `prompt` and `completion`, whose path starts at the recipe's folder."""
    examples: PositiveInt = 256
    """Most completions, drawn at random. Each is a backward pass of its own before the first step."""

    @field_validator("sample")
    @classmethod
    def _is_known(cls, sample: str) -> str:
        if sample not in ("earlier", "trained") and not sample.endswith(".jsonl"):
            raise ValueError(f"'earlier', 'trained' or a file that ends in .jsonl is expected, got {sample!r}")
        return sample


class Train(Config):
    """Configuration of the `train` stage."""

    objective: str | dict[str, Any] = "sft"
    """The objective plugin: a name, or {use: name, ...config}."""
    init_from: Literal["champion", "previous", "base"] = "champion"
    """The policy training starts from: the champion, the last round's candidate, or the base policy."""
    reference: Literal["init", "base", "previous", "champion"] = "init"
    """The frozen reference policy, read only when the objective requires one; 'init' = where training starts."""
    reward_model: Annotated[str | None, LATER] = None
    """Name of the `train_reward` stage whose newest model scores the tokens, read only where the objective requires it;
    null = the one that fits."""
    data_window: PositiveInt | Literal["all"] = 1
    """Rounds whose examples are trained on, counted back from this one."""
    replay: Annotated[Replay | None, LATER] = None
    """Draw from the earlier rounds of the window instead of using them whole; null = all of the window."""
    lr: PositiveFloat = 1e-5
    """Peak learning rate. Rule of thumb: 1e-5 full, 1e-4 with LoRA; preference objectives a tenth of it."""
    epochs: PositiveInt = 2
    """Passes over the examples."""
    batch_tokens: PositiveInt = 16384
    """Target tokens (those the loss covers) in one optimiser step, about."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens, prompt and padding included, in one forward pass; bounds memory and changes no result. null = 8192 on a
    GPU, 1024 on CPU, where a small model's activations then stay in its cache."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to zero after the warm-up."""
    warmup: Share = 0.03
    """Share of the steps in which the learning rate rises from zero."""
    validation: Annotated[Validation | None, LATER] = None
    """Hold some examples back and stop when the loss on them no longer falls; null = train all epochs."""
    ewc: Annotated[Ewc | None, LATER] = None
    """Hold on to what other completions depend on, under any objective; null = the weights move freely."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    max_length: PositiveInt | None = None
    """Longest prompt plus completion, in tokens; null = the model's context. A longer example is an error."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass (weights stay float32); auto = bfloat16 on a GPU that has it, else float32."""
    attention: Annotated[str | None, LATER] = None
    """Attention of transformers: 'sdpa', 'eager', 'flash_attention_2', ...; null = its own choice."""
    packing: Annotated[bool | Literal["auto"], LATER] = "auto"
    """Lay sequences one after the other instead of padding them: the loss is the same. auto = with flash attention,
    which skips what is masked; with others, batches sorted by length have little padding and are faster."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    lora: Lora | None = None
    """Train low-rank adapters; null = full weights."""
    save_every_steps: PositiveInt | None = None
    """Steps between the trainer's own checkpoints, from which a killed run continues; null = about once a minute,
    seldom enough that saving takes under a twentieth of the time."""
    track: Annotated[tuple[Tracker, ...], OPERATION] = ()
    """Show the steps in these while training goes on; each must be installed. The lake has the same numbers."""
    processes: Annotated[PositiveInt, OPERATION] = 1
    """Processes that share out each step's micro-batches: one for each GPU, or several on CPU. The weights are those of
    one process but for rounding."""
    shard: Annotated[bool, LATER] = False
    """Spread weights, gradients and optimiser state of the decoder layers over the processes (FSDP), for a model that
    does not fit one GPU."""
    threads: PositiveInt | None = None
    """CPU threads; null = as many as the run gives its trainer."""

    @field_validator("track")
    @classmethod
    def _is_installed(cls, track: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        for name in track:
            if find_spec(name) is None:
                raise ValueError(f"{name} is not installed: pip install {name}, or leave it out")
        return track

    @model_validator(mode="after")
    def _has_rounds_to_draw_from(self) -> Train:
        if self.replay is not None and self.data_window == 1:
            raise ValueError("replay draws from earlier rounds: set data_window to how many, or to all")
        return self

    @model_validator(mode="after")
    def _holds_what_it_can(self) -> Train:
        if self.ewc is not None and self.lora is not None and self.lora.dora:
            raise ValueError("ewc goes by what adapters add, and dora also scales the weights: write dora: false")
        if self.ewc is not None and self.lora is not None and self.shard:
            raise ValueError("ewc with adapters needs the weights whole on each process: write shard: false")
        return self


class TrainReward(Train):
    """Configuration of a `train_reward` stage: the same settings, with defaults that suit a reward model."""

    objective: str | dict[str, Any] = "bradley_terry"
    """The objective plugin: one with a score head, or one with a reference and a `beta`, whose policy is an implicit
    reward model: beta times the log-ratio to the reference. One of SFT rows gives the log-ratio itself."""
    init_from: Literal["champion", "previous", "base"] = "base"
    """The policy training starts from: the champion, the base policy, or this stage's own last reward model (the base
    where there is none yet)."""
    reference: Literal["init", "base", "previous", "champion"] = "base"
    """The frozen reference of an implicit reward model; 'init' = where training starts, 'previous' = the last round's
    candidate."""
    epochs: PositiveInt = 1
    """Passes over the examples; reward models overfit in the second."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the examples (whole groups), those this stage draws for itself: members of an ensemble that saw different
    examples disagree where they are unsure."""

    @model_validator(mode="after")
    def _is_saved_whole(self) -> TrainReward:
        if self.lora is not None and not self.lora.merge:
            raise ValueError("a reward model is saved whole: write lora.merge: true")
        return self
