"""The reward function exported for verl, alone and, where verl is installed, inside its own classes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strop.core.recipe import load
from strop.core.reward import Reward, local_files, spec
from strop.flows import cli
from strop.storage.console import open_console
from strop.storage.errors import PluginError
from strop.storage.exchange import selection
from strop.storage.tables import Problem


@pytest.fixture(scope="module")
def exported(smoke: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verl") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "BATCH", 100)  # so that the index runs over several batches
        assert cli.invoke(["export", "prompts", "verl", "-o", str(out), "--lake", str(smoke.lake)]) == 0
    return out


def loaded(path: Path) -> Any:
    """The module, as verl imports it: from its path, under a name of its own."""
    made = importlib.util.spec_from_file_location("custom_module", path)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


def test_the_files_hold_what_verl_reads(exported: Path, smoke: Any) -> None:
    """Columns as `RLHFDataset`, the reward managers and the validation metrics take them (verl 0.9)."""
    import datasets

    with open_console(smoke.lake) as console:
        counts = dict(console.query("SELECT split, count(*) FROM problems WHERE status = 'active' GROUP BY ALL").rows)
    for name, split in (("train.parquet", "train"), ("test.parquet", "heldout")):
        data = datasets.load_dataset(
            "parquet", data_files=str(exported / name), split="train", cache_dir=str(exported.parent / "cache")
        )
        assert len(data) == counts[split]
        for i in (0, len(data) - 1):
            row = data[i]
            assert [set(message) for message in row["prompt"]] == [{"role", "content"}]
            assert row["extra_info"]["index"] == i
            assert row["extra_info"]["split"] == split
            assert row["reward_model"]["style"] == "rule"
            question, truth = row["extra_info"]["question"], row["reward_model"]["ground_truth"]
            assert question == row["prompt"][0]["content"]
            assert eval(question.removesuffix("=")) == int(truth)
            assert row["data_source"] == "chain_arithmetic"


def test_the_reward_is_the_recipes_own_verdict(exported: Path, smoke: Any) -> None:
    module = loaded(exported / "reward.py")
    with open_console(smoke.lake) as console:
        judged = console.query(
            "SELECT r.completion, p.reference, p.task, p.prompt, s.value, s.answer FROM rollouts r "
            "JOIN problems p USING (problem_id) JOIN scores s ON s.subject_id = r.rollout_id "
            "WHERE r.finish_reason = 'stop' ORDER BY r.rollout_id LIMIT 300"
        ).rows
    assert {row[4] for row in judged} == {0.0, 1.0}
    infos = [{"question": row[3], "aux": None, "index": 0, "num_turns": 2} for row in judged]
    many = module.compute_scores(
        data_sources=[row[2] for row in judged],
        solution_strs=[row[0] for row in judged],
        ground_truths=[row[1] for row in judged],
        extra_infos=infos,
    )
    assert [one["score"] for one in many] == [row[4] for row in judged]
    assert [one["pred"] for one in many] == [row[5] or "" for row in judged]
    one = module.compute_score(
        data_source=judged[0][2], solution_str=judged[0][0], ground_truth=judged[0][1], extra_info=infos[0]
    )
    assert one == many[0]
    assert set(one) == {"score", "acc", "pred", "verifier_error"}


def test_an_unjudged_completion_is_marked(exported: Path) -> None:
    module = loaded(exported / "reward.py")
    assert module.compute_score("chain_arithmetic", "5", "") == {
        "score": 0.0,
        "acc": 0.0,
        "pred": "",
        "verifier_error": 1.0,
    }


def test_without_strop_it_says_what_to_install(exported: Path, tmp_path: Path) -> None:
    text = (exported / "reward.py").read_text()
    (tmp_path / "reward.py").write_text(text)
    code = f"import sys\nsys.modules['strop'] = None\nsys.path.insert(0, {str(tmp_path)!r})\nimport reward"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "pip install strop" in done.stderr.splitlines()[-1]


def test_several_verifiers_must_agree_and_a_task_may_judge(tmp_path: Path) -> None:
    short = tmp_path / "short.py"
    short.write_text(
        '"""Short.\n\nSource: none.\n"""\n'
        "from strop.core.plugin import Config, stage\nfrom strop.storage.tables import Score\n\n\n"
        "class Short(Config):\n    most: int = 3\n\n\n"
        '@stage("verify")\ndef short(config: Short, *, rollouts) -> list[Score]:\n'
        "    return [Score(subject_id=r.rollout_id, verdict='pass' if len(r.completion) <= config.most else 'fail')"
        " for r in rollouts]\n"
    )
    (tmp_path / "r.yaml").write_text(
        "name: two\nrounds: 1\nbase: pretrained_char\ntasks: [chain_arithmetic]\nround:\n"
        "  - select: {use: uniform, problems: 4}\n  - generate: {use: sample, n: 2, max_tokens: 8}\n"
        "  - verify: own\n  - verify: {use: './short.py:short', most: 2}\n"
    )
    recipe = load(str(tmp_path / "r.yaml"))
    found = json.loads(json.dumps(spec(recipe.canonical(), 0)))
    assert local_files(found) == ["short.py"]
    reward = Reward(found, tmp_path)
    problem = Problem(task="chain_arithmetic", prompt="2+3=", reference="5")
    judged = reward([problem] * 3, ["5", "2+3=5", "6"])
    assert [(j.verdict, j.score) for j in judged] == [("pass", 1.0), ("fail", 0.0), ("fail", 0.0)]
    with pytest.raises(PluginError, match="there is no file"):
        Reward(found, tmp_path / "elsewhere")


def test_a_recipe_without_a_verifier_is_refused() -> None:
    with pytest.raises(PluginError, match="has no `verify` stage"):
        spec({"name": "import:nemo-skills"}, 0)


def test_verl_itself_takes_both(exported: Path) -> None:
    """Its data set, its loader of reward functions, its naive and batch managers. Needs verl installed."""
    pytest.importorskip("verl")
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
    from verl.workers.reward_manager.batch import BatchRewardManager
    from verl.workers.reward_manager.naive import NaiveRewardManager

    from strop.core.chars import character_tokenizer

    tokenizer = character_tokenizer(256)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings = {"max_prompt_length": 32, "filter_overlong_prompts_workers": 1, "cache_dir": str(exported / "cache")}
    data = RLHFDataset([str(exported / "train.parquet")], tokenizer, OmegaConf.create(settings))
    rows = [data[0], data[1]]
    ids = [tokenizer(text).input_ids for text in (rows[0]["reward_model"]["ground_truth"], "999")]
    width = max(map(len, ids))
    masks = [[1] * 4 + [1] * len(i) + [0] * (width - len(i)) for i in ids]
    for name, manager in (("compute_score", NaiveRewardManager), ("compute_scores", BatchRewardManager)):
        function = {"path": str(exported / "reward.py"), "name": name, "reward_kwargs": {}}
        reward = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
        batch = DataProto.from_dict(
            tensors={
                "responses": torch.tensor([i + [0] * (width - len(i)) for i in ids]),
                "prompts": torch.zeros((2, 4), dtype=torch.long),
                "attention_mask": torch.tensor(masks),
            },
            non_tensors={k: v for k, v in collate_fn(rows).items() if k != "dummy_tensor"},
        )
        made = manager(tokenizer, num_examine=0, compute_score=reward)(batch, return_dict=True)
        assert made["reward_tensor"].sum(dim=1).tolist() == [1.0, 0.0]
