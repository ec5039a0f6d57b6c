"""A run that samples behind hints: what is learnt has none, and a problem solved behind one is not solved."""

from strop.storage.lake import open_lake

SELECT = """
from strop.storage.tables import Plan


@stage("select")
def all_of_them(config: Nothing, *, problems, pass_rates):
    rates = {i: f"{rate.passed}/{rate.n}" for i, rate in pass_rates.items()}
    return [Plan(problem_id=p.problem_id, reason=rates.get(p.problem_id, "new")) for p in problems]
"""


def test_hints_are_in_the_prompt_and_in_nothing_else(tiny, tmp_path):
    rules = [{"match": "answer is 1", "replies": ["1"]}, {"match": "", "replies": ["2"]}]
    stages = tiny.stages(select="./mine.py:all_of_them", generate={"use": "hinted", "n": 2, "max_tokens": 4})
    recipe = tiny.write(tmp_path, stages, SELECT, engine={"use": "scripted", "rules": rules})
    tiny.run(recipe, tmp_path)
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        rows = lake.query("SELECT prompt, train_prompt, completion FROM rollouts WHERE split = 'train' AND round = 1")
        assert len(rows) == 12 * 3
        hinted = [row for row in rows if row[0].startswith("The answer is 1.\n\n")]
        assert len(hinted) == 12
        assert all(prompt.endswith(learnt) and text == "1" for prompt, learnt, text in hinted)
        assert {row[1:] for row in rows if row not in hinted} == {(None, "2")}
        groups = lake.query("SELECT DISTINCT group_id FROM rollouts WHERE split = 'train' AND round = 1")
        assert len(groups) == 12
        learnt = lake.query("SELECT prompt, completion FROM examples WHERE round = 1")
        assert {("answer" in prompt, text) for prompt, text in learnt} == {(False, "1")}
        reasons = lake.query("SELECT DISTINCT round, reason FROM plans ORDER BY round")
        assert reasons == [(1, "new"), (2, "0/2")]
