"""The mark of a stage: what a function must look like, and what is said when it does not."""

import pytest
from pydantic import ValidationError

from strop.core.plugin import STAGES, Config, PassRate, stage
from strop.storage.errors import PluginError
from strop.storage.tables import Row


class Some(Config):
    """Settings."""

    size: int = 1
    """How big."""


def test_the_mark_says_what_the_function_declares():
    @stage("verify", version="4", needs=["logps"], requires=["score"])
    def mine(config: Some, *, rollouts, engine, seed):
        return []

    mark = mine.__strop__
    assert (mark.stage, mark.version, mark.config) == ("verify", "4", Some)
    assert mark.handles == ("rollouts", "engine", "seed")
    assert (mark.needs, mark.requires) == (frozenset({"logps"}), frozenset({"score"}))


def test_a_marked_function_is_still_that_function():
    @stage("filter")
    def mine(config: Some, *, rollouts):
        return [config.size, rollouts]

    assert mine(Some(size=3), rollouts="r") == [3, "r"]


def test_an_unknown_stage_is_answered_with_the_nearest():
    with pytest.raises(PluginError, match="no such stage; did you mean 'verify'"):
        stage("verfy")


def no_config(*, rollouts): ...


def wrong_name(settings: Some, *, rollouts): ...


def not_annotated(config, *, rollouts): ...


def not_a_config(config: dict, *, rollouts): ...


def positional(config: Some, rollouts): ...


def everything(config: Some, **handles): ...


def not_a_handle(config: Some, *, rolouts): ...


def of_another_stage(config: Some, *, champion): ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_config, "the first parameter must be `config`"),
        (wrong_name, "the first parameter must be `config`"),
        (not_annotated, "annotate `config`"),
        (not_a_config, "annotate `config`"),
        (positional, r"put `\*` after `config`.*'rollouts'"),
        (everything, r"put `\*` after `config`.*'handles'"),
        (not_a_handle, "no handle 'rolouts'; did you mean 'rollouts'"),
        (of_another_stage, "a filter plugin has no handle 'champion'; there is: "),
    ],
)
def test_a_signature_that_does_not_fit_is_refused_by_name(function, says):
    with pytest.raises(PluginError, match=says) as caught:
        stage("filter")(function)
    assert function.__name__ in str(caught.value)


def test_configs_are_frozen_strict_and_carry_their_docs():
    assert Some.model_fields["size"].description == "How big."
    with pytest.raises(ValidationError, match="frozen"):
        Some().size = 2
    with pytest.raises(ValidationError, match="Extra inputs"):
        Some(weight=2)


def test_every_stage_says_what_it_is():
    for name, contract in STAGES.items():
        assert contract.name == name
        assert contract.doc.endswith(".")
        assert all(contract.handles.values())
        assert contract.reads <= set(contract.handles)
        assert all(issubclass(row, Row) for row in contract.returns)


def test_a_pass_rate_is_a_share():
    assert PassRate(problem_id=1, n=8, passed=2, round=1).rate == 0.25
