"""TRL 1.16's own losses on given log-probabilities: `_compute_loss` called on a stand-in for its trainer."""

import warnings
from unittest.mock import MagicMock

import torch

from strop.core.trainer.objective import SequenceBatch


def trl(name: str):
    """A trainer class of TRL's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl as library

        return getattr(library, name)


def grpo(batch: SequenceBatch, advantages: torch.Tensor, **settings) -> tuple[float, torch.Tensor]:
    """Value and gradient [S, T] of GRPOTrainer's loss for advantages [S] and the batch's behaviour log-probabilities.

    `settings` are attributes of the trainer or of its args, e.g. loss_type, epsilon_high, beta.
    """
    logps = batch.logps.detach().clone().requires_grad_()
    entropies = torch.zeros_like(logps) if batch.entropy is None else batch.entropy.detach()
    this = MagicMock()
    chosen = {
        "loss_type": "grpo",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "delta": None,
        "importance_sampling_level": "token",
        "use_bias_correction_kl": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "max_completion_length": batch.mask.shape[1],
        "current_gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
        "aux_loss_enabled": False,
    } | settings
    for name, value in chosen.items():
        setattr(this, name, value)
        setattr(this.args, name, value)
    this._entropy_bonus_enabled = chosen["entropy_coef"] != 0
    this.accelerator.num_processes = 1
    this.accelerator.gather = lambda values: values
    this._get_per_token_logps_and_entropies.return_value = logps, entropies, None
    this.get_gamma_weights = trl("GRPOTrainer").get_gamma_weights
    inputs = {
        "prompt_ids": torch.zeros(len(logps), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(logps), 1),
        "completion_ids": torch.zeros(logps.shape, dtype=torch.long),
        "completion_mask": batch.mask,
        "advantages": advantages,
        "old_per_token_logps": batch.behaviour_logps,
        "num_items_in_batch": batch.mask.sum(),
    }
    if chosen["beta"]:
        inputs["ref_per_token_logps"] = batch.reference_logps
    loss = trl("GRPOTrainer")._compute_loss(this, MagicMock(), inputs)
    (slope,) = torch.autograd.grad(loss, logps)
    return loss.item(), slope


def rloo(batch: SequenceBatch, advantages: torch.Tensor, **settings) -> tuple[float, torch.Tensor]:
    """Value and gradient [S, T] of RLOOTrainer's loss for advantages [S]."""
    logps = batch.logps.detach().clone().requires_grad_()
    this = MagicMock()
    for name, value in (
        {"epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0, "aux_loss_enabled": False} | settings
    ).items():
        setattr(this, name, value)
        setattr(this.args, name, value)
    this.accelerator.gather = lambda values: values
    this.current_gradient_accumulation_steps = 1
    this._entropy_bonus_enabled = False
    this._get_per_token_logps_and_entropies.return_value = logps, torch.zeros_like(logps), None
    inputs = {
        "prompt_ids": torch.zeros(len(logps), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(logps), 1),
        "completion_ids": torch.zeros(logps.shape, dtype=torch.long),
        "completion_mask": batch.mask,
        "advantages": advantages,
        "old_logps": (batch.behaviour_logps * batch.mask).sum(1),
    }
    loss = trl("RLOOTrainer")._compute_loss(this, MagicMock(), inputs)
    (slope,) = torch.autograd.grad(loss, logps)
    return loss.item(), slope
