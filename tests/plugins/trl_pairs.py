"""TRL 1.16's preference losses on given log-probabilities: value and gradient, with a stand-in for its trainers."""

from unittest.mock import MagicMock

import torch
from trl_oracle import trl

from strop.core.trainer.objective import PairBatch, SequenceBatch

Found = tuple[float, tuple[torch.Tensor, torch.Tensor]]


def _sides(batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.chosen_logps.detach().clone().requires_grad_(), batch.rejected_logps.detach().clone().requires_grad_()


def _outputs(logps: torch.Tensor, mask: torch.Tensor) -> MagicMock:
    zeros = torch.zeros_like(logps)
    return MagicMock(log_probs=logps * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0)


def _inputs(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    n, width = mask.shape
    return {
        "input_ids": torch.zeros(n, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(n, width + 1),
        "completion_mask": torch.cat([torch.zeros(n, 1), mask], dim=1).long(),
    }


def _trainer(settings: dict[str, object]) -> MagicMock:
    this = MagicMock()
    for name, value in settings.items():
        setattr(this, name, value)
        setattr(this.args, name, value)
    this.accelerator.device = "cpu"
    this.accelerator.gather = this.accelerator.gather_for_metrics = lambda values: values
    return this


def dpo(batch: PairBatch, types=("sigmoid",), loss_weights=(1.0,), **settings) -> Found:
    """DPOTrainer's loss with these loss types; `settings` are attributes of the trainer or of its args.

    With `ld_alpha` TRL reads the reference itself, so the model is called twice.
    """
    chosen, rejected = _sides(batch)
    mask = torch.cat([batch.chosen_mask, batch.rejected_mask])
    reference = torch.cat(batch.reference_logps)
    defaults = {
        "beta": 0.1,
        "loss_types": list(types),
        "loss_weights": list(loss_weights),
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "label_smoothing": 0.0,
        "discopop_tau": 0.05,
        "use_weighting": False,
        "aux_loss_enabled": False,
        "gradient_checkpointing_kwargs": None,
    }
    this = _trainer(defaults | settings)
    this.precompute_ref_logps = this.ld_alpha is None
    this.ref_model = MagicMock(return_value=_outputs(reference, mask))
    sums = [
        (of * m).sum(1) for of, m in zip(batch.reference_logps, (batch.chosen_mask, batch.rejected_mask), strict=True)
    ]
    inputs = _inputs(mask) | {"ref_chosen_logps": sums[0], "ref_rejected_logps": sums[1]}
    model = MagicMock(return_value=_outputs(torch.cat([chosen, rejected]), mask))
    loss = trl("DPOTrainer")._compute_loss(this, model, inputs, False)
    return loss.item(), torch.autograd.grad(loss, (chosen, rejected))


def _of_lengths(batch: PairBatch, averaged: bool):
    chosen, rejected = _sides(batch)
    scores = [(logps * mask).sum(1) for logps, mask in ((chosen, batch.chosen_mask), (rejected, batch.rejected_mask))]
    if averaged:
        scores = [
            score / mask.sum(1) for score, mask in zip(scores, (batch.chosen_mask, batch.rejected_mask), strict=True)
        ]
    nll = -(chosen * batch.chosen_mask).sum() / batch.chosen_mask.sum()
    return (chosen, rejected), scores, nll


def cpo(batch: PairBatch, *, cpo_alpha: float = 1.0, averaged: bool = False, **settings) -> Found:
    """CPOTrainer's whole loss; `averaged` as its loss types ipo and simpo have their log-probabilities."""
    from trl.experimental.cpo import CPOTrainer

    sides, scores, nll = _of_lengths(batch, averaged)
    defaults = {"beta": 0.1, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5, "loss_type": "sigmoid"}
    this = _trainer(defaults | {"cpo_alpha": cpo_alpha, "aux_loss_enabled": False} | settings)
    this.concatenated_forward.return_value = (*scores, torch.zeros(1), torch.zeros(1), nll)
    this.cpo_loss = lambda *given: CPOTrainer.cpo_loss(this, *given)
    loss, _ = CPOTrainer.get_batch_loss_metrics(this, MagicMock(), {})
    return loss.item(), torch.autograd.grad(loss, sides)


def orpo(batch: PairBatch, **settings) -> Found:
    """ORPOTrainer's whole loss, the NLL being that of the completion alone."""
    from trl.experimental.orpo import ORPOTrainer

    sides, scores, nll = _of_lengths(batch, averaged=True)
    this = _trainer({"beta": 0.1, "aux_loss_enabled": False} | settings)
    this.concatenated_forward.return_value = (*scores, torch.zeros(1), torch.zeros(1), nll)
    this.odds_ratio_loss = lambda *given: ORPOTrainer.odds_ratio_loss(this, *given)
    loss, _ = ORPOTrainer.get_batch_loss_metrics(this, MagicMock(), {})
    return loss.item(), torch.autograd.grad(loss, sides)


def kto(batch: SequenceBatch, desirable: torch.Tensor, **settings) -> tuple[float, torch.Tensor]:
    """KTOTrainer's loss for labels [S]; `mismatched` of the batch's step stands for the second pass over the model."""
    logps = batch.logps.detach().clone().requires_grad_()
    defaults = {
        "beta": 0.1,
        "loss_type": "kto",
        "calculate_KL": batch.step.mismatched is not None,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "precompute_ref_logps": True,
        "aux_loss_enabled": False,
        "_tp_size": 1,
        "_total_train_tokens": 0,
    }
    this = _trainer(defaults | settings)
    this._compute_kl_logps.return_value = batch.step.mismatched
    inputs = _inputs(batch.mask) | {
        "label": desirable,
        "ref_logps": (batch.reference_logps * batch.mask).sum(1),
        "ref_KL_logps": torch.zeros(len(logps), dtype=logps.dtype),
    }
    loss = trl("KTOTrainer")._compute_loss(this, MagicMock(return_value=_outputs(logps, batch.mask)), inputs, False)
    (slope,) = torch.autograd.grad(loss, logps)
    return loss.item(), slope
