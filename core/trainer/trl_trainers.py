"""TRL's trainers on examples that have token ids already, and on rollouts that were sampled already.

Each overrides one method of TRL 1.16's: the one that tokenises, and for GRPO the one that samples, whose result lacks
the log-probabilities of sampling. Under another name in another TRL the columns would not fit, and training would stop.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from strop.core.trainer.encode import Item
from strop.core.trainer.job import TrainJob
from strop.core.trainer.trl_config import Trl
from strop.core.trainer.trl_data import (
    IGNORED,
    Member,
    dpo_columns,
    group_size,
    groups_of,
    kto_columns,
    sft_columns,
    shuffled,
)
from strop.storage.errors import StageError

Made = Callable[..., Any]
"""Of model, args, reference model and the other keywords that all of TRL's trainers take: the trainer."""


def trainer_of(job: TrainJob, config: Trl, items: Sequence[Item], args: dict[str, Any]) -> Made:
    """A function that makes the trainer; `args` are of its config class, and are completed."""
    make = {"sft": _sft, "dpo": _dpo, "kto": _kto, "grpo": _grpo}[config.trainer]
    return make(job, config, items, args)


def _trl() -> Any:
    return importlib.import_module("trl")


def _sft(job: TrainJob, config: Trl, items: Sequence[Item], args: dict[str, Any]) -> Made:
    from datasets import Dataset

    trainer = _counting(_trl().SFTTrainer, lambda inputs: inputs["labels"] != IGNORED)
    args.setdefault("max_length", None)
    made = _trl().SFTConfig(**args)
    data = Dataset.from_dict(sft_columns(items))
    return lambda model, reference, **named: trainer(model=model, args=made, train_dataset=data, **named)


def _dpo(job: TrainJob, config: Trl, items: Sequence[Item], args: dict[str, Any]) -> Made:
    from datasets import Dataset

    trainer = _tokenised(_counting(_trl().DPOTrainer, lambda inputs: inputs["completion_mask"]))
    args.setdefault("max_length", None)
    made = _trl().DPOConfig(**args)
    data = Dataset.from_dict(dpo_columns(items))
    return lambda model, reference, **named: trainer(
        model=model, ref_model=reference, args=made, train_dataset=data, **named
    )


def _kto(job: TrainJob, config: Trl, items: Sequence[Item], args: dict[str, Any]) -> Made:
    from datasets import Dataset

    trainer = _tokenised(_counting(_trl().KTOTrainer, lambda inputs: inputs["completion_mask"]))
    args.setdefault("max_length", None)
    made = _trl().KTOConfig(**args)
    columns = kto_columns(items, config, made.per_device_train_batch_size, job.seed)
    if made.loss_type == "apo_zero_unpaired":  # the one that estimates no KL
        del columns["KL_completion_ids"]
    data = Dataset.from_dict(columns)
    return lambda model, reference, **named: trainer(
        model=model, ref_model=reference, args=made, train_dataset=data, **named
    )


def _grpo(job: TrainJob, config: Trl, items: Sequence[Item], args: dict[str, Any]) -> Made:
    """The passes over the groups lie one behind the other: TRL would begin each anew after a kill, in another order.

    Raises StageError: a batch that does not hold whole groups.
    """
    from datasets import Dataset

    size = group_size(items)
    args.setdefault("per_device_train_batch_size", size * max(1, 8 // size))
    epochs = float(args.pop("num_train_epochs", _trl().GRPOConfig.num_train_epochs))
    passes = max(1, math.ceil(epochs))
    made = _whole_groups(_trl().GRPOConfig, {**args, "num_train_epochs": epochs / passes}, size)
    groups = groups_of(items, size, made.generation_batch_size // size)
    trainer = _stored(_counting(_trl().GRPOTrainer, lambda inputs: inputs["completion_mask"] * inputs["tool_mask"]))
    data = Dataset.from_dict({"prompt": [str(i) for i in shuffled(len(groups), passes, job.seed)]})

    def make(model: Any, reference: Any, **named: Any) -> Any:
        found = trainer(
            model=model,
            args=made,
            train_dataset=data,
            reward_funcs=stored,
            rollout_func=_sampled_before(groups),
            **named,
        )
        if reference is not None and found.ref_model is not None:  # it loads the policy that training starts from
            found.ref_model.load_state_dict(reference.state_dict())
        return found

    return make


def _whole_groups(config: Any, args: dict[str, Any], size: int) -> Any:
    try:
        return config(**args, num_generations=size, shuffle_dataset=False)
    except ValueError as error:
        if "must be divisible by num_generations" not in str(error):
            raise
        raise StageError(
            f"the largest group has {size} completions, and a batch of TRL's holds whole groups: leave "
            "args.per_device_train_batch_size out, or make it (times gradient_accumulation_steps) a multiple of that"
        ) from error


def _sampled_before(groups: Sequence[Sequence[Member]]) -> Callable[[list[str], Any], dict[str, list[Any]]]:
    """In place of sampling. A prompt is the number of its group and comes once for each member."""

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        seen: Counter[str] = Counter()
        members = []
        for prompt in prompts:
            members.append(groups[int(prompt)][seen[prompt]])
            seen[prompt] += 1
        return {
            "prompt_ids": [m.prompt_ids for m in members],
            "completion_ids": [m.completion_ids for m in members],
            "logprobs": [m.logps for m in members],
            "env_mask": [m.mask for m in members],
            "stored_reward": [m.reward for m in members],
        }

    return rollouts


def stored(*, stored_reward: list[float | None], **_: Any) -> list[float | None]:
    return stored_reward


def _counting(trainer: Any, covered: Callable[[Any], Any]) -> Any:
    """The trainer with `tokens` in its log: target tokens since the last one, `covered` is their mask in a batch."""

    class Counting(trainer):  # type: ignore[misc]
        _covered = 0

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            self._covered += int(covered(inputs).sum())
            return super().compute_loss(model, inputs, *rest, **named)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            logs["tokens"], self._covered = self._covered, 0
            super().log(logs, start_time)

    return Counting


def _tokenised(trainer: Any) -> Any:
    class Tokenised(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Tokenised


def _stored(trainer: Any) -> Any:
    class Stored(trainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            return {**batch, "old_per_token_logps": batch["sampling_per_token_logps"]}

    return Stored
