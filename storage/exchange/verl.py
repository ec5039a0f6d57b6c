"""The reward function file of a verl export: the run's own verifiers behind the signature that verl calls.

Source: verl (Sheng et al. 2024, 2409.19256), `custom_reward_function.path` and `.name`; its naive reward manager calls
`compute_score(data_source, solution_str, ground_truth, extra_info)` and takes a number or a dict with `score`, its
batch manager the same with plural names and lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TEMPLATE = '''\
"""Reward function for verl: the verifiers of the Strop run {run}.

    custom_reward_function.path=<this file> custom_reward_function.name=compute_score

or `compute_scores` with the `batch` reward manager, which is faster where a verifier starts a process (`math`).
A completion that could not be judged scores 0 and has `verifier_error` 1.
"""

from pathlib import Path

try:
    from strop.core.reward import VerlReward
except ImportError as error:
    raise ImportError(
        "this reward function runs Strop's verifiers, and Strop {version} or newer is not installed in this "
        "environment: pip install strop"
    ) from error

SPEC = r"""
{spec}
"""

_reward = VerlReward(SPEC, Path(__file__).resolve().parent)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The score of one completion."""
    return _reward.one(data_source, solution_str, ground_truth, extra_info)


def compute_scores(data_sources, solution_strs, ground_truths, extra_infos=None, **_):
    """The scores of many."""
    return _reward.batch(data_sources, solution_strs, ground_truths, extra_infos)
'''


def reward_file(spec: Mapping[str, Any], *, run: str, version: str) -> str:
    """The text of `reward.py`."""
    text = json.dumps(spec, indent=2, ensure_ascii=True)  # quotes and backslashes stay inside a raw string
    return TEMPLATE.format(run=run, version=version, spec=text)
