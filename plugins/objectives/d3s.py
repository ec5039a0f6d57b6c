"""Down-sampling on two levels: completions whose advantages lie far apart, and in them the tokens that decide.

Of the step's completions the part of largest variance of A is kept, A standardised in each group; of their tokens those
with the largest |A| H, H the entropy of the policy. L = mean over the kept tokens of
-min(A rho, A clip(rho, 1 - low, 1 + high)). Both shares go linearly to their last values over the training: little and
telling at first, all at the end, lest the policy overfit to what tells most.

Source: D3S, 2509.22115. The authors' shares were not at hand: the defaults are not their word. What is left out here is
computed all the same, so it saves no time.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from strop.core.algebra.advantages import standardised
from strop.core.algebra.clip import Clip, surrogate
from strop.core.algebra.schedules import linear
from strop.core.algebra.selectors import mean_of_chosen, step_entropy, top_tokens, widest
from strop.core.plugin import stage
from strop.core.trainer.objective import Loss, SequenceBatch

Share = Annotated[float, Field(gt=0, le=1)]


class D3s(Clip):
    """Configuration of `d3s`."""

    completions: Share = 0.5
    """Share of the step's completions at first."""
    completions_last: Share = 1.0
    """And at the end of the training."""
    tokens: Share = 0.2
    """Share of their tokens at first."""
    tokens_last: Share = 1.0
    """And at the end."""


@stage("objective", examples="group", needs=("logps",), requires=("step_entropy",))
def d3s(config: D3s, *, batch: SequenceBatch) -> Loss:
    """Metric `kept`: the share of the step's tokens that are trained on."""
    step = batch.step
    advantage = standardised(step.rewards, step.group_ids)
    scored = ~step.rewards.isnan()
    n = max(2, int(linear(batch.progress, config.completions, config.completions_last) * int(scored.sum()) + 1e-6))
    kept = scored.clone()
    kept[scored] = widest(advantage[scored], n)
    share = linear(batch.progress, config.tokens, config.tokens_last)
    chosen = top_tokens(advantage.abs()[:, None] * step_entropy(step), step.mask * kept[:, None], share)
    loss = surrogate(config, batch.of(advantage)[:, None], batch)
    metric = float((batch.of(chosen) * batch.mask).sum()) / batch.step_tokens
    return Loss(mean_of_chosen(loss, batch, chosen), {"kept": metric})
