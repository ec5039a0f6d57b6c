"""Which earlier examples are trained on beside this round's."""

from collections import Counter

import pytest
import tiny_run
import trainer_tiny
from rerun_tools import query

from strop.core import training
from strop.core.replay import replayed
from strop.core.trainer.config import Replay, Train
from strop.core.trainer.train import train


def test_all_of_this_round_and_the_share_of_earlier_ones():
    rounds = [1] * 50 + [2] * 50 + [3] * 21
    chosen = replayed(rounds, [None] * 121, 3, Replay(share=0.3), 0)
    assert chosen == sorted(set(chosen))
    assert [i for i in chosen if rounds[i] == 3] == list(range(100, 121))
    assert len(chosen) == 30  # 21 are seven tenths


def test_fewer_than_wanted_are_all_used_and_nothing_new_means_nothing():
    assert replayed([1, 2, 2, 2], [None] * 4, 2, Replay(share=0.9), 0) == [0, 1, 2, 3]
    assert replayed([1, 2], [None] * 2, 3, Replay(), 0) == []
    assert replayed([], [], 3, Replay(), 0) == []


def test_recent_rounds_are_drawn_by_a_power_of_their_age():
    rounds = [4] * 100 + [3] * 100 + [1] * 100 + [5]  # gaps 1, 2, 4 have shares .571, .286, .143
    one = Replay(share=0.5, recency=1.0)
    drawn = [replayed(rounds, [None] * 301, 5, one, seed)[0] for seed in range(3000)]
    found = Counter(rounds[i] for i in drawn)
    for made, share in ((4, 0.571), (3, 0.286), (1, 0.143)):
        assert found[made] / 3000 == pytest.approx(share, abs=0.03)  # standard deviation .009
    alike = [replayed(rounds, [None] * 301, 5, Replay(share=0.5, recency=0), seed)[0] for seed in range(3000)]
    for count in Counter(rounds[i] for i in alike).values():
        assert count / 3000 == pytest.approx(1 / 3, abs=0.03)


def test_a_group_is_drawn_whole_and_the_seed_decides_which():
    rounds, groups = [1] * 40 + [2] * 4, [i // 4 for i in range(40)] + [0] * 4
    seen = set()
    for seed in range(20):
        chosen = replayed(rounds, groups, 2, Replay(share=0.5), seed)
        old = [i for i in chosen if rounds[i] == 1]
        assert len(old) == 4
        assert len({groups[i] for i in old}) == 1
        assert chosen == replayed(rounds, groups, 2, Replay(share=0.5), seed)
        seen.add(groups[old[0]])
    assert len(seen) > 3


def test_replay_without_earlier_rounds_in_the_window_says_what_to_write():
    with pytest.raises(ValueError, match="set data_window to how many, or to all"):
        Train(replay={"share": 0.2})
    assert Train(replay={}, data_window="all").replay.share == 0.3


def test_a_recipe_without_replay_or_dora_stays_the_recipe_it_was():
    assert "replay" not in Train().decisive()
    assert "replay" in Train(replay={}, data_window=3).decisive()
    plain, weighed = (Train(lora={"r": 8, "dora": dora}).decisive()["lora"] for dora in (False, True))
    assert weighed == plain | {"dora": True}
    assert "dora" not in plain


def trained(folder, monkeypatch, rounds, **settings):
    """Run a tiny loop with `reinforce` and a real trainer."""
    tiny_run.inline(monkeypatch)
    monkeypatch.setattr(training, "_in_own_process", lambda session, job, at, step: train(job))
    base = trainer_tiny.make_policy(folder / "policy", seed=3)
    stages = [
        {"select": {"use": "uniform", "problems": 6}},
        {"generate": {"use": "sample", "n": 4, "max_tokens": 8}},
        {"verify": "answer"},
        {"build": "grouped"},
        {"train": {"objective": "reinforce", "lr": 1e-3, **settings}},
    ]
    base_settings = {"use": "huggingface", "model": str(base)}
    tiny_run.run(tiny_run.write(folder, stages, "", base=base_settings, engine="hf", rounds=rounds), folder)


def test_a_loop_trains_on_what_it_drew_and_says_so(tmp_path, monkeypatch):
    trained(tmp_path, monkeypatch, 3, replay={"share": 0.25}, data_window="all")
    used = query(
        tmp_path,
        "SELECT p.round, count(*) FILTER (e.round = p.round), count(*) FILTER (e.round < p.round), "
        "count(DISTINCT e.group_id) FILTER (e.round < p.round) "
        "FROM policy_examples p JOIN examples e USING (example_id) GROUP BY 1 ORDER BY 1",
    )
    assert used == [(1, 24, 0, 0), (2, 24, 8, 2), (3, 24, 8, 2)]


def test_what_is_held_back_did_not_make_the_policy(tmp_path, monkeypatch):
    trained(tmp_path, monkeypatch, 1, validation={"share": 0.5}, epochs=2)
    assert query(
        tmp_path,
        "SELECT p.examples, count(DISTINCT example_id), count(DISTINCT e.group_id), (SELECT count(*) FROM examples) "
        "FROM policies p JOIN policy_examples x USING (policy_id) JOIN examples e USING (example_id) GROUP BY ALL",
    ) == [(12, 12, 3, 24)]
    assert query(tmp_path, "SELECT count(*) FROM train_metrics WHERE name = 'validation_loss'")[0][0] in (1, 2)
