"""`train: {use: trl}`: TRL's trainers get what was sampled, and one step of theirs is one of Strop's objective."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny_run
import torch
import trainer_tiny
from rerun_tools import query
from safetensors.torch import load_file
from test_reference_logps import PLUGINS, ROUND

from strop.core import recipe as recipes
from strop.core import training
from strop.core.trainer import loop, trl_config, trl_train
from strop.core.trainer.train import train
from strop.core.trainer.trl_config import Trl, argument_names
from strop.core.yaml_source import Source
from strop.storage.errors import RecipeError, StageError

pytestmark = pytest.mark.filterwarnings("default")  # TRL's own
RATE = 0.5
PLAIN = {"optim": "sgd", "learning_rate": RATE, "max_grad_norm": 1e9, "num_train_epochs": 1}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return [trainer_tiny.make_policy(folder / str(seed), seed=seed) for seed in range(2)]


def group_rows(sizes=(3, 3, 3), unknown=()):
    """Members with token ids that no text gives, and log-probabilities that both sides of the clip know."""
    rng = random.Random(1)
    rows = []
    for group, size in enumerate(sizes):
        prompt = trainer_tiny.sft_rows(9)[group]["prompt"]
        for _ in range(size):
            ids = [rng.randrange(3, 30) for _ in range(rng.randint(1, 5))] + [2]
            rows.append(
                {
                    "example_id": len(rows),
                    "kind": "group",
                    "group_id": group,
                    "prompt": prompt,
                    "completion": "",
                    "completion_token_ids": ids,
                    "behaviour_logps": [rng.uniform(-6, -1) for _ in ids],
                    "reward": None if len(rows) in unknown else rng.choice([0.0, 0.25, 1.0]),
                }
            )
    return rows


def job_of(folder, policies, objective, rows, settings, reference=0):
    more = {"reference": policies[reference], "train": settings, "seed": 4}
    return trainer_tiny.job(folder, policies[0], rows, objective, **more)


def by_trl(folder, policies, trainer, rows, args, progress=lambda _: None, reference=0, **settings):
    settings = {"trainer": trainer, "args": args, **settings}
    job = job_of(folder, policies, f"trl {trainer}", rows, settings, reference)
    return trl_train.train(job, progress), weights(job.output)


def weights(directory):
    return load_file(directory / "model.safetensors")


def one_step(folder, policies, objective, rows, monkeypatch, reference=0, **config):
    """The weights after one step of plain gradient descent along Strop's own objective."""
    monkeypatch.setattr(loop, "_optimizer", lambda trained, config, device: torch.optim.SGD(trained.values()))
    settings = {"lr": RATE, "epochs": 1, "batch_tokens": 10**6, "max_grad_norm": 1e9}
    job = job_of(folder, policies, objective, rows, settings, reference)
    job = replace(job, objective_config=config)
    assert train(job).steps == 1
    return weights(job.output)


def assert_close(found, expected, start):
    moved = 0.0
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5, rtol=1e-5), name
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3, "a step that moves nothing compares nothing"


SAME = {
    "sft": ("sft", "sft", trainer_tiny.sft_rows(9), {}, {}, 0),
    "dpo": ("dpo", "dpo", trainer_tiny.pair_rows(9), {"beta": 0.3}, {"beta": 0.3}, 1),
    "kto": ("kto", "kto", group_rows(unknown={4}), {"beta": 0.3}, {"beta": 0.3}, 0),
    "grpo": ("grpo", "grpo", group_rows(unknown={4}), {"loss_type": "grpo"}, {}, 0),
    "grpo with a reference": (
        "grpo",
        "grpo",
        group_rows(),
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
        {"kl": 0.1},
        1,
    ),
    "dapo, groups that differ": (
        "grpo",
        "dapo",
        group_rows((3, 1, 4)),
        {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 10.0},
        {"cap": None},
        0,
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_one_step_of_trl_is_one_of_strops_objective(tmp_path, policies, monkeypatch, case):
    trainer, objective, rows, args, config, reference = SAME[case]
    size = 12 if trainer == "grpo" and case.startswith("dapo") else 9
    args = {**PLAIN, **args, "per_device_train_batch_size": size}
    args.pop("delta", None)
    result, found = by_trl(tmp_path / "trl", policies, trainer, rows, args, reference=reference)
    assert (result.steps, result.examples) == (1, len(rows))
    own = one_step(tmp_path / "own", policies, objective, rows, monkeypatch, reference, **config)
    assert_close(found, own, weights(policies[0]))


def test_spans_of_the_loss_and_exact_ids_reach_trl(tmp_path, policies, monkeypatch):
    rows = [
        {**row, "loss_spans": [0, 1], "completion_token_ids": [7, 9, 11, 2]}
        for row in trainer_tiny.sft_rows(4)
    ]  # fmt: skip
    args = {**PLAIN, "per_device_train_batch_size": 4}
    result, found = by_trl(tmp_path / "trl", policies, "sft", rows, args)
    assert result.tokens == 4
    assert_close(found, one_step(tmp_path / "own", policies, "sft", rows, monkeypatch), weights(policies[0]))


def test_a_step_is_logged_and_reported(tmp_path, policies):
    seen = []
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    rows = trainer_tiny.sft_rows(16)
    result, _ = by_trl(tmp_path, policies, "sft", rows, args, seen.append)
    targets = sum(len(row["completion"]) + 1 for row in rows)
    assert result.tokens == 2 * targets == seen[-1]["tokens"]
    assert [m["step"] for m in result.metrics] == [1, 2, 3, 4] == [s["step"] for s in seen]
    assert {"loss", "lr", "grad_norm", "tokens", "mean_token_accuracy"} <= set(result.metrics[0])
    assert result.metrics[0]["lr"] > result.metrics[-1]["lr"] > 0
    assert {s["steps"] for s in seen} == {4}


@pytest.mark.parametrize("trainer", ["dpo", "grpo"])
def test_a_killed_training_goes_on_from_trls_last_whole_checkpoint(tmp_path, policies, trainer):
    rows = trainer_tiny.pair_rows(16) if trainer == "dpo" else group_rows((4, 4, 4, 3))
    args = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2, "save_steps": 2}
    if trainer == "grpo":  # it shuffles within a batch, and AdamW would make much of the rounding
        args |= {"optim": "sgd", "learning_rate": 0.1}
    settings = {"lora": {"r": 2, "dropout": 0.3}} if trainer == "dpo" else {}
    whole, expected = by_trl(tmp_path / "whole", policies, trainer, rows, args, **settings)

    def killed(report):
        if report["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_trl(tmp_path / "killed", policies, trainer, rows, args, killed, **settings)
    (folder,) = (tmp_path / "killed" / "work").glob("trl-*")
    (folder / "checkpoint-6").mkdir()
    (folder / "checkpoint-6" / "trainer_state.json").write_text('{"half": ')
    steps = []
    result, found = by_trl(
        tmp_path / "killed", policies, trainer, rows, args, lambda r: steps.append(r["step"]), **settings
    )
    assert steps == [5, 6, 7, 8]
    for name, value in expected.items():
        assert torch.equal(found[name], value) or (trainer == "grpo" and torch.allclose(found[name], value, atol=1e-6))
    assert [m["loss"] for m in result.metrics] == pytest.approx([m["loss"] for m in whole.metrics], abs=1e-6)
    assert not folder.exists()
    again, _ = by_trl(tmp_path / "killed", policies, trainer, rows, args, killed, **settings)
    assert again == result, "a finished job is not trained again"


def test_adapters_are_merged_or_kept_and_trained_on(tmp_path, policies):
    rows, args = trainer_tiny.pair_rows(8), {"learning_rate": 1e-2, "num_train_epochs": 1}
    merged, full = by_trl(tmp_path / "merged", policies, "dpo", rows, args, lora={"r": 2})
    assert merged.kind == "full"
    start = weights(policies[0])
    assert set(full) == set(start)
    assert any(not torch.equal(full[name], start[name]) for name in start)
    first = tmp_path / "first"
    settings = {"trainer": "dpo", "args": args, "lora": {"r": 2, "merge": False}}
    kept = trl_train.train(job_of(first, policies, "trl dpo", rows, settings))
    assert kept.kind == "lora"
    described = json.loads((first / "policy" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(policies[0])
    second = tmp_path / "second"
    on = trl_train.train(job_of(second, [first / "policy"], "trl dpo", rows, settings))
    old, new = (load_file(folder / "policy" / "adapter_model.safetensors") for folder in (first, second))
    assert set(old) == set(new)
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert on.metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-4), "the reference is where it starts"


@pytest.mark.parametrize(
    ("trainer", "rows", "args", "complaint"),
    [
        ("sft", [{**trainer_tiny.sft_rows(1)[0], "weight": 2.0}], {}, r"have weights.*example ids 100"),
        ("kto", [{**row, "loss_spans": [0, 1]} for row in group_rows()], {}, "only a part .* KTOTrainer"),
        ("kto", [{**row, "reward": None} for row in group_rows()], {}, "every example's is null"),
        ("dpo", trainer_tiny.sft_rows(3), {}, "learns from 'pair' examples"),
        ("grpo", [{**row, "behaviour_logps": None} for row in group_rows()], {}, "'behaviour_logps', which is null"),
        ("grpo", group_rows(), {"per_device_train_batch_size": 4}, "the largest group has 3 completions"),
        ("sft", trainer_tiny.sft_rows(3), {"max_length": 8}, "longer than args.max_length, 8 tokens"),
        ("sft", trainer_tiny.sft_rows(8), {"learning_rate": 1e30, "max_grad_norm": 1e30}, "at step [23]: lower"),
    ],
)
def test_what_trl_would_lose_or_spoil_is_refused_and_no_policy_is_left(
    tmp_path, policies, trainer, rows, args, complaint
):
    with pytest.raises(StageError, match=complaint):
        by_trl(tmp_path, policies, trainer, rows, args)
    assert not (tmp_path / "policy").exists()


def recipe_of(train, build="best_worst"):
    top = {
        "name": "x",
        "rounds": 1,
        "base": "pretrained_char",
        "tasks": ["chain_arithmetic"],
        "round": [
            {"select": {"use": "uniform", "problems": 2}},
            {"generate": {"use": "sample", "n": 2, "max_tokens": 4}},
            {"verify": "answer"},
            {"build": build},
            {"train": train},
        ],
    }
    return recipes.build(Source("x.yaml", top, {}), None)


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        ("trl", r"say which of TRL's trainers: `train: \{use: trl, trainer: dpo\}`"),
        ({"use": "trol", "trainer": "dpo"}, "there is 'trl'; got 'trol'"),
        ({"use": "trl"}, "'trainer' is required"),
        ({"use": "trl", "trainer": "ppo"}, "'sft', 'dpo', 'kto' or 'grpo'"),
        ({"use": "trl", "trainer": "dpo", "args": {"bta": 0.1}}, "DPOConfig .* has no 'bta'; did you mean 'beta'"),
        ({"use": "trl", "trainer": "sft", "args": {"beta": 0.1}}, "SFTConfig .* has no 'beta'"),
        ({"use": "trl", "trainer": "dpo", "args": {"output_dir": "x"}}, "'output_dir' is not set here: checkpoints"),
        ({"use": "trl", "trainer": "dpo", "arg": {}}, "unknown key 'arg'; did you mean 'args'"),
        (
            {"use": "trl", "trainer": "grpo", "args": {"beta": 0.1}, "lora": {}, "reference": "base"},
            "write reference: init",
        ),
    ],
)
def test_a_mistake_is_refused_when_the_recipe_is_read(train, complaint):
    with pytest.raises(RecipeError, match=complaint):
        recipe_of(train)


def test_without_trl_the_recipe_says_what_to_install(monkeypatch):
    monkeypatch.setattr(trl_config, "find_spec", lambda name: None)
    argument_names.cache_clear()
    with pytest.raises(RecipeError, match=r"pip install 'strop\[trl\]'"):
        recipe_of({"use": "trl", "trainer": "dpo"})
    argument_names.cache_clear()


def test_the_names_are_those_of_trls_config_classes():
    import dataclasses

    import trl

    for trainer in ("sft", "dpo", "kto", "grpo"):
        fields = {f.name for f in dataclasses.fields(getattr(trl, f"{trainer.upper()}Config")) if f.init}
        assert fields == argument_names(trainer) & fields
        assert argument_names(trainer) - fields <= {"default_optim"}


def test_what_is_read_of_the_rollouts_follows_the_trainer():
    grpo = recipe_of({"use": "trl", "trainer": "grpo"}, "grouped").round[-1].plugin.mark
    assert (grpo.needs, grpo.examples, grpo.requires) == ({"logps"}, "group", frozenset())
    dpo = recipe_of({"use": "trl", "trainer": "dpo"}).round[-1].plugin.mark
    assert (dpo.needs, dpo.examples, dpo.requires) == (frozenset(), "pair", {"reference"})
    assert Trl(trainer="grpo", args={"beta": 0.1}).refers


def test_a_recipe_with_trl_is_read_without_it_and_without_torch():
    code = (
        "import sys; from strop.core.trainer.trl_config import Trl, trains_with\n"
        "import strop.core.recipe\n"
        "trains_with(Trl(trainer='dpo', args={'beta': 0.2}))\n"
        "print(sorted({'torch', 'trl', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_loop_takes_trls_checkpoint_into_lineage(tmp_path, monkeypatch, capsys):
    from strop.flows import cli

    monkeypatch.chdir(tmp_path)
    in_own_process = training._in_own_process
    tiny_run.inline(monkeypatch)
    monkeypatch.setattr(training, "_in_own_process", in_own_process)
    base = trainer_tiny.make_policy(tmp_path / "policy", seed=3)
    train = {
        "use": "trl",
        "trainer": "dpo",
        "args": {"beta": 0.2, "learning_rate": 1e-3, "num_train_epochs": 1},
        "init_from": "previous",
        "reference": "base",
        "data_window": 2,
    }
    stages = [*ROUND[:4], {"train": train}]
    recipe = tiny_run.write(
        tmp_path, stages, PLUGINS, base={"use": "huggingface", "model": str(base)}, engine="hf", rounds=2
    )
    tiny_run.run(recipe, tmp_path)
    made = query(
        tmp_path,
        "SELECT round, objective, kind, examples, parent_policy_id, reference_policy_id, path, policy_id "
        "FROM policies ORDER BY round",
    )
    (base_row, first, second) = made
    assert [row[1:3] for row in made[1:]] == [("trl dpo", "full")] * 2
    assert (second[4], second[5]) == (first[7], base_row[7])
    links = dict(query(tmp_path, "SELECT policy_id, count(*) FROM policy_examples GROUP BY 1"))
    assert links == {first[7]: first[3], second[7]: second[3]}
    assert second[3] > first[3] > 2
    assert not torch.equal(
        *(weights(tmp_path / "lake" / row[6])["model.embed_tokens.weight"] for row in (first, second))
    )
    assert cli.invoke(["explain", "tiny/r2", "--lake", str(tmp_path / "lake")]) == 0
    told = capsys.readouterr().out
    assert "with trl dpo, kept near tiny/r0," in told
    assert f"Those are {second[3]} pair examples of rounds 1 and 2" in told
    with pytest.raises(RecipeError, match=r"args\.beta"):
        tiny_run.run(recipe.override(["train.args.beta=0.4"]), tmp_path)
