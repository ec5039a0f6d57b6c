"""Strata from the builder through the lake to the objective, in a loop of its own."""

import tiny_run
import trainer_tiny
from rerun_tools import query

from strop.core import training
from strop.core.trainer import job as job_file
from strop.core.trainer.train import train


def test_a_loop_compares_completions_of_one_answer_with_each_other(tmp_path, monkeypatch):
    tiny_run.inline(monkeypatch)
    seen = []

    def here(session, job, at, step):
        seen.append(job_file.read_examples(job.examples).select(["stratum", "weight"]).to_pydict())
        return train(job)

    monkeypatch.setattr(training, "_in_own_process", here)
    base = trainer_tiny.make_policy(tmp_path / "policy", seed=3)
    stages = [
        {"select": {"use": "uniform", "problems": 6}},
        {"generate": {"use": "sample", "n": 4, "max_tokens": 3}},
        {"verify": "answer"},
        {"build": {"use": "grouped", "stratum": "answer", "difficulty": "linear"}},
        {"train": {"objective": "copo", "lr": 1e-3}},
    ]
    recipe = tiny_run.write(
        tmp_path, stages, "", base={"use": "huggingface", "model": str(base)}, engine="hf", rounds=1
    )
    tiny_run.run(recipe, tmp_path)
    strata = "SELECT stratum, weight FROM examples ORDER BY builder, example_id"
    stored = query(tmp_path, strata)
    assert [(s, w) for s, w in zip(seen[0]["stratum"], seen[0]["weight"], strict=True)] == stored
    assert len({s for s, _ in stored}) > 1
    apart = query(
        tmp_path,
        "SELECT count(*) FROM (SELECT count(DISTINCT coalesce(s.answer, '')) AS answers, "
        "count(DISTINCT e.stratum) AS strata FROM examples e JOIN scores s ON s.subject_id = e.rollout_id "
        "GROUP BY e.group_id) WHERE answers <> strata",
    )
    assert apart == [(0,)]
    assert query(tmp_path, "SELECT count(*) FROM policies WHERE objective = 'copo' AND steps > 0") == [(1,)]
