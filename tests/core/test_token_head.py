"""One number a token beside a policy: the head's arithmetic, its file, and what loads a policy that has one."""

import pytest
import torch
import trainer_tiny
from plain_training import assert_same
from transformers import AutoModelForCausalLM

from strop.core.trainer.token_head import TokenHead, load_head, save_head
from strop.storage.errors import StageError


@pytest.fixture
def policy(tmp_path):
    return trainer_tiny.make_policy(tmp_path / "policy")


def model_in(directory):
    return AutoModelForCausalLM.from_pretrained(directory)


def test_a_fresh_head_says_zero_and_learns(policy):
    head = load_head(policy, "value", model_in(policy))
    hidden = torch.randn(2, 3, 32)
    found = head(hidden)
    assert found.shape == (2, 3)
    assert (found == 0).all()
    found.sum().backward()
    torch.testing.assert_close(head.weight.grad[0], hidden.sum((0, 1)))
    assert head.bias.grad.item() == 6.0


def test_it_computes_in_float32_under_bfloat16_arithmetic():
    head = TokenHead(8)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden @ head.weight[0])


def test_a_saved_head_is_loaded_again_and_the_policy_stays_one(policy):
    model = model_in(policy)
    head = load_head(policy, "value", model)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    save_head(head, policy, "value")
    found = load_head(policy, "value", model)
    assert_same(dict(found.named_parameters()), dict(head.named_parameters()), 0)
    assert (load_head(policy, "reward", model).weight == 0).all()
    assert_same(*(dict(m.named_parameters()) for m in (model_in(policy), model)), 0)


def test_a_head_of_another_model_is_refused(policy):
    save_head(TokenHead(16), policy, "value")
    with pytest.raises(StageError, match=r"value\.safetensors .*\(1, 16\).*\(1, 32\)"):
        load_head(policy, "value", model_in(policy))
