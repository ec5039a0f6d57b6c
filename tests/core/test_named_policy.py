"""A stage that names a policy in its settings is handed that one, and what the lake knows of the rollouts under it."""

import pytest
import tiny_run
from rerun_tools import query, rerun

from strop.plugins.engines.scripted import ScriptedEngine
from strop.storage.errors import StageError

LIKELY = {"verify": {"use": "likelihood", "policy": "base"}}
ROUND = [*tiny_run.stages()[:3], LIKELY, *tiny_run.stages()[3:]]


@pytest.fixture
def scored(monkeypatch):
    """Pairs that some engine scored."""
    found = []
    original = ScriptedEngine.score
    monkeypatch.setattr(ScriptedEngine, "score", lambda self, pairs: found.extend(pairs) or original(self, pairs))
    return found


def test_log_probabilities_under_a_named_policy_are_kept_and_not_computed_twice(tiny, scored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.run(tiny.write(tmp_path, ROUND), tmp_path)
    ids = query(tmp_path, "SELECT rollout_id FROM rollouts ORDER BY 1")
    assert query(tmp_path, "SELECT rollout_id FROM token_logps ORDER BY 1") == ids
    assert len(scored) == len(ids)
    base = query(tmp_path, "SELECT policy_id, content_hash FROM policies WHERE kind = 'base'")
    assert query(tmp_path, "SELECT DISTINCT policy_id, policy_hash FROM token_logps") == base
    assert query(tmp_path, "SELECT count(*) FROM scores WHERE scorer = 'likelihood'") == [(len(ids),)]
    again = rerun(tmp_path, "tiny", start="verify")
    assert len(scored) == len(ids), "the rerun found them in the lake"
    counted = "SELECT count(*) FROM scores WHERE scorer = 'likelihood' AND run_id = ?"
    assert query(tmp_path, counted, again)[0][0] > 0


def test_a_teacher_is_a_directory_and_its_rows_name_no_policy_of_the_lake(tiny, scored, tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text('{"a": 1}')
    likely = {"verify": {"use": "likelihood", "policy": "./teacher"}}
    tiny.run(tiny.write(tmp_path, [*ROUND[:3], likely, *ROUND[4:]], rounds=1), tmp_path)
    assert scored
    assert query(tmp_path, "SELECT DISTINCT policy_id FROM token_logps") == [(None,)]
    hashes = query(tmp_path, "SELECT DISTINCT policy_hash FROM token_logps")
    assert hashes != query(tmp_path, "SELECT content_hash FROM policies WHERE kind = 'base'")


def test_a_policy_that_is_none_is_named_with_what_there_is(tiny, tmp_path):
    likely = {"verify": {"use": "likelihood", "policy": "bsae"}}
    with pytest.raises(StageError, match=r"'bsae' is neither base, previous, champion.*did you mean 'base'"):
        tiny.run(tiny.write(tmp_path, [*ROUND[:3], likely, *ROUND[4:]], rounds=1), tmp_path)
