"""`train: {use: trl}`: a stage's examples go to one of TRL's trainers, its checkpoint comes back. Imports no torch.

The names of `args` are read from the installed TRL's source, so that a wrong one is refused when the recipe is read.

Source: TRL (von Werra et al.), https://github.com/huggingface/trl, release 1.16.
Left out: TRL's own sampling, evaluation, truncation and uploads; the recipe's other stages are for these.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from strop.core.plugin import Config, Mark
from strop.core.registry import Plugin
from strop.core.trainer.config import Lora, Replay
from strop.storage.errors import StageError, did_you_mean

NAME = "trl"
LEARNS_FROM = {"sft": "sft", "dpo": "pair", "kto": "group", "grpo": "group"}
OURS: Mapping[str, str] = {
    "output_dir": "checkpoints lie in the lake's work folder",
    "seed": "the run's seed decides it",
    "data_seed": "the run's seed decides it",
    "logging_strategy": "every step is logged",
    "logging_steps": "every step is logged",
    "logging_nan_inf_filter": "a loss that is not finite ends the training",
    "report_to": "the log goes into the lake",
    "save_strategy": "checkpoints are made about once a minute, or every `save_steps`",
    "save_only_model": "a killed training goes on from its checkpoint",
    "resume_from_checkpoint": "a killed training goes on from its checkpoint",
    "load_best_model_at_end": "the last weights are the candidate, and the gate judges it",
    "eval_strategy": "the stage `evaluate` examines the policy",
    "do_eval": "the stage `evaluate` examines the policy",
    "push_to_hub": "write `strop export policy`",
    "model_init_kwargs": "`init_from` says what is trained",
    "remove_unused_columns": "the columns are those the trainer reads",
    "completion_only_loss": "the loss covers the completion",
    "assistant_only_loss": "the loss covers the completion",
    "shuffle_dataset": "the run's seed decides the order",
    "train_sampling_strategy": "the trainer decides the order",
    "num_generations": "the stored groups decide it",
    "use_vllm": "nothing is sampled: the stored rollouts are trained on",
}
"""Settings of TRL's that are not the user's here, and why."""


class Trl(Config):
    """Configuration of the `train` stage with `use: trl`."""

    trainer: Literal["sft", "dpo", "kto", "grpo"]
    """Which of TRL's trainers: SFTTrainer on SFT rows, DPOTrainer on pairs, KTOTrainer and GRPOTrainer on groups."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trainer's own config (SFTConfig, DPOConfig, KTOConfig, GRPOConfig), by TRL's names and with its
    defaults; but `bf16` is on only where an accelerator has it, and nothing is truncated."""
    init_from: Literal["champion", "previous", "base"] = "champion"
    """The policy training starts from: the champion, the last round's candidate, or the base policy."""
    reference: Literal["init", "base", "previous", "champion"] = "init"
    """The frozen reference policy of `dpo`, `kto`, and of `grpo` with a `beta`; 'init' = where training starts."""
    data_window: PositiveInt | Literal["all"] = 1
    """Rounds whose examples are trained on, counted back from this one."""
    replay: Replay | None = None
    """Draw from the earlier rounds of the window instead of using them whole; null = all of the window."""
    lora: Lora | None = None
    """Train low-rank adapters; null = full weights."""
    threshold: float = 0.5
    """`kto`: rewards above it are desirable. Rewards that are null are left out."""
    threads: PositiveInt | None = None
    """CPU threads; null = as many as the run gives its trainer."""

    @field_validator("args")
    @classmethod
    def _not_ours(cls, args: dict[str, Any]) -> dict[str, Any]:
        for name in args:
            if name in OURS:
                raise ValueError(f"{name!r} is not set here: {OURS[name]}")
        return args

    @model_validator(mode="after")
    def _fits(self) -> Trl:
        known, settings = argument_names(self.trainer), f"{self.trainer.upper()}Config"
        for name in self.args:
            if name not in known:
                raise ValueError(f"args: {settings} of the installed TRL has no {name!r}{did_you_mean(name, known)}")
        if self.replay is not None and self.data_window == 1:
            raise ValueError("replay draws from earlier rounds: set data_window to how many, or to all")
        if self.trainer == "grpo" and self.lora is not None and self.refers and self.reference != "init":
            raise ValueError("TRL's GRPO refers adapters to the policy they start from: write reference: init")
        return self

    @property
    def refers(self) -> bool:
        """Whether the trainer reads a reference policy."""
        return self.trainer in ("dpo", "kto") or (self.trainer == "grpo" and bool(self.args.get("beta")))


def trains_with(config: Trl) -> Plugin:
    """What the stages before it are held against: the kind of examples, and what of the rollouts is to be kept."""

    def trl(config: Trl) -> None:
        raise StageError("TRL's trainers run in the trainer's process")

    trl.__strop__ = Mark(  # type: ignore[attr-defined]
        stage="objective",
        version="1",
        config=Trl,
        handles=(),
        needs=frozenset({"logps"} if config.trainer == "grpo" else ()),
        examples=LEARNS_FROM[config.trainer],
        requires=frozenset({"reference"} if config.refers else ()),
    )
    return Plugin("objective", NAME, trl, "built-in")


@cache
def argument_names(trainer: str) -> frozenset[str]:
    """Fields of the trainer's config class, read from source: importing them would load torch.

    Raises ValueError where TRL is not installed.
    """
    trl, transformers = find_spec("trl"), find_spec("transformers")
    if trl is None or trl.origin is None:
        raise ValueError("TRL is not installed: pip install 'strop[trl]'")
    assert transformers is not None
    assert transformers.origin is not None
    folder = Path(trl.origin).parent / "trainer"
    files = (
        folder / f"{trainer}_config.py",
        folder / "base_config.py",
        Path(transformers.origin).parent / "training_args.py",
    )
    return frozenset(name for file in files for name in _fields(file))


def _fields(file: Path) -> list[str]:
    """Annotated names in the bodies of the file's classes."""
    classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    annotated = [item for node in classes for item in node.body if isinstance(item, ast.AnnAssign)]
    return [item.target.id for item in annotated if isinstance(item.target, ast.Name)]
