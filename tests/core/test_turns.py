"""Two kinds of examples in turns, through a loop with a real policy and trainer."""

import json

import real_training
from rerun_tools import query


def test_relift_takes_a_turn_at_demonstrations_once_enough_wait(tmp_path, monkeypatch):
    first, second = real_training.loop(
        tmp_path,
        monkeypatch,
        {"build": {"use": "relift", "wait": 9}},
        {"train": {"objective": "relift", "lr": 1e-3, "epochs": 1, "batch_tokens": 40}},
        rounds=2,
    )
    shown = [[step["demonstrated"] for step in training.result.metrics] for training in (first, second)]
    assert set(shown[0]) == {0.0}
    assert shown[1] == sorted(shown[1])
    assert set(shown[1]) == {0.0, 1.0}
    demonstrations = [r for r in second.examples.to_pylist() if r["stratum"] == 1]
    assert {(r["completion"], r["reward"]) for r in demonstrations} == {("1", None)}
    assert len({r["prompt"] for r in demonstrations}) == len(demonstrations) >= 9
    assert query(
        tmp_path,
        "SELECT count(*) FILTER (stratum = 1) FROM policy_examples JOIN examples USING (example_id) WHERE stratum = 1",
    ) == [(len(demonstrations),)]
    waiting = query(tmp_path, "SELECT round, len(state_json) FROM plugin_state WHERE stage = 'build' ORDER BY round")
    assert waiting[0][1] > waiting[1][1]


def test_c3po_learns_from_pairs_of_three_scopes(tmp_path, monkeypatch):
    lines = [
        {"question": f"{i}+{i}=", "scope": ("in", "near", "out")[i % 3], "reference": f"{i}={2 * i}"} for i in range(12)
    ]
    (tmp_path / "feedback.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (training,) = real_training.loop(
        tmp_path,
        monkeypatch,
        {"build": "scoped"},
        {"train": {"objective": "c3po", "lr": 1e-3, "epochs": 1, "micro_batch_tokens": 60}},
        tasks=[{"use": "jsonl", "path": str(tmp_path / "feedback.jsonl"), "prompt": "question", "heldout": 0.2}],
    )
    rows = training.examples.to_pylist()
    assert {r["stratum"] for r in rows} == {0, 1, 2}
    for row in rows:
        same = row["chosen"] == row["rejected"] and row["chosen_token_ids"] == row["rejected_token_ids"]
        assert same == (row["stratum"] > 0)
    assert training.result.metrics[0]["margin"] == 0.0
