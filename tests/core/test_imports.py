"""Imports: what the files hold is what the lake holds, once, and their own numbers come out of our SQL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from strop.core.imports import shards
from strop.core.imports.formats import find
from strop.core.imports.job import Imported, import_files
from strop.core.imports.sample import Options
from strop.storage.console import open_console
from strop.storage.errors import DataError, LakeError
from strop.storage.exchange.export import export
from strop.storage.exchange.selection import Selection
from strop.storage.lake import open_lake
from strop.storage.tables import Policy, Problem, Rollout, Run, Score, StageRun

FOREIGN = Path(__file__).parent / "foreign"
RECORDED = os.environ.get("STROP_NEMO_SKILLS")
"""A checkout of NeMo-Skills, whose recorded outputs the same test then reads."""

RIGHT = "right"
MATH = [[RIGHT] * 3] * 4 + [["300"] * 3, [RIGHT, RIGHT, "2"], ["271", RIGHT, "1"]]
GPQA = [[RIGHT] * 4, [RIGHT, "B", "D", "D"], [RIGHT, RIGHT, RIGHT, None], ["B"] * 4]
"""Answers by problem and sample, made up so that the shares are those NeMo-Skills records for its own."""
EXPECTED = {"math": (71.43, 85.71, 76.19), "gpqa": (50.0, 75.0, 50.0)}
"""pass@1[avg-of-k], pass@k, majority@k in percent: `tests/data/eval_outputs/summarize_results_output.txt` there."""


def take(lake: Path, format: str, paths: Sequence[Path], run_id: str = "r", **options: Any) -> Imported:
    skip_bad = options.pop("skip_bad", False)
    with open_lake(lake, create=True) as opened:
        return import_files(opened, find(format), paths, run_id, Options(**options), skip_bad=skip_bad)


def rows(lake: Path, kind: Any, where: str = "true") -> list[Any]:
    with open_console(lake) as console:
        found = console.query(f"SELECT * FROM {kind.TABLE} WHERE {where} ORDER BY {kind.ID or 'stage_run_id'}")
    return [kind(**dict(zip(found.columns, row, strict=True))) for row in found.rows]


def ask(lake: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_console(lake) as console:
        return console.query(sql).rows


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def nemo(folder: Path, answers: Sequence[Sequence[str | None]], **more: Any) -> Path:
    """The answers as output-rs*.jsonl."""
    for sample in range(len(answers[0])):
        made = [
            {
                "problem": f"problem {number}",
                "expected_answer": RIGHT,
                "generation": f"so it is {members[sample]}",
                "predicted_answer": members[sample],
                "symbolic_correct": members[sample] == RIGHT,
                "num_generated_tokens": 7,
                "reward_model_score": 0.5,
                "id": f"p{number}",
                **more,
            }
            for number, members in enumerate(answers)
        ]
        write_lines(folder / f"output-rs{sample}.jsonl", made)
    return folder


def at_k(lake: Path, task: str) -> tuple[float, float, float]:
    """(mean, pass, majority) over all samples, in percent."""
    (found,) = ask(
        lake,
        "SELECT avg(mean_at_k), avg(pass_at_k), avg(majority_at_k) FROM v_at_k "
        f"WHERE task = '{task}' AND scorer = 'symbolic_correct' AND k = n",
    )
    return round(100 * found[0], 2), round(100 * found[1], 2), round(100 * found[2], 2)


@pytest.fixture(scope="session")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once and then copied: making one takes longer than most tests."""
    root = tmp_path_factory.mktemp("template") / "lake"
    open_lake(root, create=True).close()
    return root


@pytest.fixture
def lake(empty_lake: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty_lake, tmp_path / "lake"))


@pytest.mark.parametrize(("task", "answers"), [("math", MATH), ("gpqa", GPQA)])
def test_nemo_skills_numbers_come_out_of_our_sql(lake: Path, tmp_path: Path, task: str, answers: Any) -> None:
    take(lake, "nemo-skills", [nemo(tmp_path / task, answers)])
    assert at_k(lake, task) == EXPECTED[task]


@pytest.mark.skipif(RECORDED is None, reason="STROP_NEMO_SKILLS names no checkout of NeMo-Skills")
@pytest.mark.parametrize("task", EXPECTED)
def test_the_numbers_nemo_skills_recorded_come_out_of_its_own_files(lake: Path, tmp_path: Path, task: str) -> None:
    outputs = Path(str(RECORDED)) / "tests" / "data" / "eval_outputs" / "eval-results" / task
    take(lake, "nemo-skills", sorted(outputs.glob("output-rs*.jsonl-test")))
    assert at_k(lake, task) == EXPECTED[task]


def test_nemo_skills_rows(lake: Path, tmp_path: Path) -> None:
    done = take(lake, "nemo-skills", [nemo(tmp_path / "math", MATH)], model="some/model", split="heldout")
    assert done.counts == {"problems": 7, "rollouts": 21, "scores": 42}
    (run,) = rows(lake, Run)
    assert run.recipe == "import:nemo-skills"
    assert [file["name"] for file in json.loads(run.sources_json)["files"]] == [f"output-rs{i}.jsonl" for i in range(3)]
    (policy,) = rows(lake, Policy)
    assert (policy.name, policy.kind, policy.path) == ("r/some/model", "external", "")
    problem = rows(lake, Problem)[5]
    assert (problem.prompt, problem.reference, problem.task, problem.split) == ("problem 5", RIGHT, "math", "heldout")
    mine = rows(lake, Rollout, f"problem_id = {problem.problem_id}")
    assert [(r.sample_index, r.completion, r.n_tokens) for r in mine] == [
        (0, "so it is right", 7),
        (1, "so it is right", 7),
        (2, "so it is 2", 7),
    ]
    assert len({r.group_id for r in mine}) == 1
    assert json.loads(mine[0].detail) == {"id": "p5"}
    said = rows(lake, Score, f"subject_id = {mine[2].rollout_id}")
    assert [(s.scorer, s.verdict, s.value, s.answer, s.problem_id) for s in said] == [
        ("symbolic_correct", "fail", 0.0, "2", problem.problem_id),
        ("reward_model_score", None, 0.5, None, problem.problem_id),
    ]
    assert {s.kind for s in rows(lake, StageRun)} == {"import"}


def test_nemo_skills_judgements_and_files_without_texts(lake: Path, tmp_path: Path) -> None:
    judged = ["Reasoning\nJudgement: Yes", "Judgement: No, Judgement: no", "I cannot say"]
    write_lines(tmp_path / "a" / "output.jsonl", [{"judgement": text, "predicted_answer": 3} for text in judged])
    take(lake, "nemo-skills", [tmp_path / "a"])
    said = rows(lake, Score)
    assert [s.verdict for s in said] == ["pass", "fail", "fail"], "as NeMo-Skills counts an unreadable one"
    assert said[2].reason is not None
    assert said[0].answer == "3"
    assert [p.prompt for p in rows(lake, Problem)] == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize(
    ("file", "line", "text", "said"),
    [
        (1, 3, "{oops", "not JSON"),
        (1, 3, '["a"]', "a JSON object is expected"),
        (2, 7, '{"problem": "problem 6", "expected_answer": "x"}', "another problem or expected answer"),
        (0, 1, '{"symbolic_correct": "yes"}', "'symbolic_correct' must be true or false"),
        (2, 2, "", "no line here"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(
    lake: Path, tmp_path: Path, file: int, line: int, text: str, said: str
) -> None:
    path = nemo(tmp_path / "math", MATH) / f"output-rs{file}.jsonl"
    before = path.read_text().splitlines()
    path.write_text("\n".join([*before[: line - 1], text, *before[line:]]) + "\n")
    with pytest.raises(DataError, match=rf"output-rs{file}\.jsonl:{line}: {said}"):
        take(lake, "nemo-skills", [path.parent])
    assert ask(lake, "SELECT count(*) FROM stage_runs") == [(0,)]
    done = take(lake, "nemo-skills", [path.parent], skip_bad=True)
    left = 20 if line > 1 else 19  # the first line of the first file sets the problem: the others then differ
    assert done.counts["rollouts"] == (left if line > 1 else 21 - len(done.skipped))
    assert (str(path), line) in [(name, number) for name, number, _ in done.skipped]


def test_verifiers_traces_as_its_own_writer_leaves_them(lake: Path, tmp_path: Path) -> None:
    """`verifiers_traces.jsonl` was written by verifiers 0.4.0's `write_episode` from traces made for this test."""
    done = take(lake, "verifiers", [FOREIGN / "verifiers_traces.jsonl"])
    assert done.counts == {"problems": 2, "rollouts": 5, "scores": 14}
    one, other, tools, failed, never = rows(lake, Rollout)
    assert (one.completion, one.token_ids, one.logps, one.temperature, one.max_tokens) == (
        "5",
        [4, 1],
        [-0.5, -0.25],
        0.7,
        64,
    )
    assert [r.sample_index for r in (one, other, tools, failed)] == [0, 1, 0, 1]
    assert tools.completion == "Calling. 8It is 8."
    assert (tools.turn_offsets, tools.turn_roles) == ([0, 9, 10], ["assistant", "tool", "assistant"])
    assert tools.loss_spans == [0, 9, 10, 18], "the tool's words are not the policy's"
    assert (tools.token_ids, tools.n_tokens, tools.finish_reason) == (None, 3, "length")
    detail = json.loads(tools.detail)
    assert detail["turns"][0]["tool_calls"][0]["name"] == "add"
    assert detail["branches"][0][0]["message"]["content"] == "an earlier branch"
    assert (failed.finish_reason, failed.error) == ("error", "TimeoutError: no reply in 10 s")
    assert (never.finish_reason, never.error) == ("error", "SandboxError: no machine")
    sums, chat = rows(lake, Problem)
    assert (sums.prompt, sums.reference, sums.messages, sums.task) == ("2+3=", "5", None, "sums")
    assert json.loads(chat.messages)[0] == {"role": "system", "content": "Use the tool."}
    assert never.problem_id == sums.problem_id
    assert [p.name for p in rows(lake, Policy, "status = 'champion'")] == ["r/tiny/model"]
    said = {(s.subject_id, s.scorer): (s.verdict, s.value) for s in rows(lake, Score)}
    assert said[one.rollout_id, "reward"] == ("pass", pytest.approx(1.0 + 0.2 * 0.5))
    assert said[other.rollout_id, "reward"] == ("fail", pytest.approx(0.1))
    assert said[one.rollout_id, "reward.short"] == (None, 0.5)
    assert said[one.rollout_id, "metric.length"] == (None, 1.0)
    assert said[failed.rollout_id, "reward"] == ("error", None)
    assert said[failed.rollout_id, "reward.exact"] == ("error", None)
    assert ask(lake, "SELECT n, passed FROM v_pass_rates WHERE scorer = 'reward' ORDER BY n") == [(1, 1), (2, 1)]


def test_verifiers_results_of_before_v1(lake: Path, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "2+2="}]
    metadata = {"env_id": "sums", "model": "m/x", "pass_threshold": 0.9, "sampling_args": {"temperature": 0.5}}
    folder = tmp_path / "run"
    good = {"example_id": 0, "prompt": prompt, "answer": "4", "reward": 0.95, "metrics": {"exact": 1.0}, "exact": 1.0}
    reply = [{"role": "assistant", "content": "4"}]
    write_lines(
        folder / "results.jsonl",
        [
            {**good, "completion": reply, "token_usage": {"output_tokens": 9.0}},
            {**good, "completion": reply, "reward": 0.8, "is_truncated": True},
            {**good, "completion": None, "error": {"error": "ModelError", "error_chain_repr": "ModelError('x')"}},
        ],
    )
    (folder / "metadata.json").write_text(json.dumps(metadata))
    take(lake, "verifiers", [folder])
    made = rows(lake, Rollout)
    assert [(r.completion, r.n_tokens, r.finish_reason, r.temperature) for r in made] == [
        ("4", 9, "stop", 0.5),
        ("4", 0, "length", 0.5),
        ("", 0, "error", 0.5),
    ]
    said = rows(lake, Score, "scorer = 'reward'")
    assert [(s.verdict, s.value) for s in said] == [("pass", 0.95), ("fail", 0.8), ("error", None)]
    (problem,) = rows(lake, Problem)
    assert (problem.task, problem.reference, problem.prompt) == ("sums", "4", "2+2=")
    take(lake, "verifiers", [folder], run_id="lenient", pass_threshold=0.5)
    assert [s.verdict for s in rows(lake, Score, "run_id = 'lenient' AND scorer = 'reward'")] == ["pass"] * 2 + [
        "error"
    ]


def test_the_same_files_again_change_nothing_and_others_are_refused(lake: Path, tmp_path: Path) -> None:
    lake, folder = lake, nemo(tmp_path / "math", MATH)
    assert take(lake, "nemo-skills", [folder]).new == 3
    before = ask(lake, "SELECT count(*) FROM stage_runs")
    (tmp_path / "moved").mkdir()
    folder = folder.rename(tmp_path / "moved" / "math")
    assert take(lake, "nemo-skills", [folder]).new == 0, "wherever they lie"
    assert ask(lake, "SELECT count(*) FROM stage_runs") == before
    with pytest.raises(LakeError, match=r"from other files or with other options \(options were \{\}, now"):
        take(lake, "nemo-skills", [folder], task="other")
    (folder / "output-rs1.jsonl").write_text((folder / "output-rs0.jsonl").read_text())
    with pytest.raises(LakeError, match=r"1 differ, 'output-rs1\.jsonl' among them"):
        take(lake, "nemo-skills", [folder])
    with pytest.raises(LakeError, match="is one of 'import:nemo-skills'"):
        take(lake, "verifiers", [FOREIGN / "verifiers_traces.jsonl"])


def test_a_killed_import_goes_on(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(
        tmp_path / "x.jsonl", [{"problem": f"p{i // 2}", "completion": f"c{i}", "rollout_id": i + 1} for i in range(40)]
    )
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom strop.core.imports import shards, job\n"
        "job.SHARD = 8\n"
        "from strop.core.imports.formats import find\nfrom strop.core.imports.sample import Options\n"
        "from strop.storage.lake import Lake, open_lake\n"
        "real, left = Lake.commit, int(sys.argv[3])\n"
        "def commit(self, *a, **k):\n"
        "    global left\n    left -= 1\n    if left < 0: os._exit(9)\n    return real(self, *a, **k)\n"
        "Lake.commit = commit\n"
        "with open_lake(Path(sys.argv[1]), create=True) as lake:\n"
        "    job.import_files(lake, find('strop'), [Path(sys.argv[2])], 'r', Options())\n"
    )
    committed = []
    for left in (0, 1, 3, 99):
        done = subprocess.run([sys.executable, "-c", code, lake, source, str(left)], check=False)
        assert done.returncode == (0 if left == 99 else 9)
        committed += ask(lake, "SELECT count(*) FROM stage_runs")[0]
    assert committed == [0, 1, 4, 7]
    found = rows(lake, Rollout)
    assert sorted(r.completion for r in found) == sorted(f"c{i}" for i in range(40))
    assert len({r.rollout_id for r in found}) == 40


def test_a_round_trip_keeps_everything_but_ids(smoke: Any, lake: Path, tmp_path: Path) -> None:
    first = _lines(smoke.lake, tmp_path / "first.jsonl")
    take(lake, "strop", [tmp_path / "first.jsonl"], run_id="copy")
    second = _lines(lake, tmp_path / "second.jsonl")
    assert len(first) == len(second) > 1000
    renamed = {"rollout_id", "problem_id", "policy_id", "group_id", "plan_id", "run_id", "stage_run_id"}

    def bare(line: dict[str, Any]) -> str:
        kept = {key: value for key, value in line.items() if key not in renamed}
        return json.dumps({**kept, "policy": line["policy"].rpartition("/")[2]}, sort_keys=True)

    assert sorted(map(bare, first)) == sorted(map(bare, second))

    def together(lines: list[dict[str, Any]], key: str) -> dict[Any, int]:
        sizes: dict[Any, int] = {}
        for line in lines:
            sizes[line[key]] = sizes.get(line[key], 0) + 1
        return sizes

    for key in ("problem_id", "policy_id", "group_id"):
        assert sorted(together(first, key).values()) == sorted(together(second, key).values()), key
    rates = "SELECT round, task, split, category, n, passed FROM v_pass_rates ORDER BY ALL"
    assert ask(smoke.lake, rates) == ask(lake, rates)
    keys = "SELECT DISTINCT p.problem_key FROM rollouts JOIN problems p USING (problem_id) ORDER BY 1"
    assert ask(smoke.lake, keys) == ask(lake, keys), "the same problems in every lake"


def _lines(lake: Path, path: Path) -> list[dict[str, Any]]:
    with open_console(lake) as console:
        export(console, "rollouts", "strop", path, Selection())
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_parents_are_found_across_shards(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from strop.core.imports import job

    monkeypatch.setattr(job, "SHARD", 2)
    made = [{"problem": "p", "completion": str(i), "rollout_id": 100 + i} for i in range(5)]
    made[4]["parent_rollout_id"] = 101
    made[3]["parent_rollout_id"] = 7
    take(lake, "strop", [write_lines(tmp_path / "x.jsonl", made)])
    found = {r.completion: r for r in rows(lake, Rollout)}
    assert found["4"].parent_rollout_id == found["1"].rollout_id
    assert found["3"].parent_rollout_id is None, "its parent is not in the file"
    assert sorted(r.sample_index for r in found.values()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"completion": "x"}, "a line needs `problem`"),
        ({"problem": "p"}, "a line needs `completion`"),
        ({"problem": {"prompt": "p", "referenc": "1"}, "completion": ""}, "did you mean 'reference'"),
        ({"problem": "p", "completion": "", "complettion": ""}, "did you mean 'completion'"),
        ({"problem": "p", "completion": "", "token_ids": [1, "2"]}, r"'token_ids\[1\]' must be a number"),
        ({"problem": "p", "completion": "", "token_ids": [1 << 31]}, "is too large"),
        ({"problem": "p", "completion": "", "split": "test"}, "'split' is 'train' or 'heldout'"),
        ({"problem": "p", "completion": "", "scores": [{"value": 1}]}, "a score needs `scorer`"),
        ({"problem": "p", "completion": "", "scores": [{"scorer": "s", "verdict": "ok"}]}, "'verdict' is"),
        ({"problem": "p", "completion": "", "round": -1}, "'round' counts from 0"),
    ],
)
def test_strop_lines_are_checked_by_type(lake: Path, tmp_path: Path, line: dict[str, Any], said: str) -> None:
    good = {"problem": "p", "completion": "c"}
    path = write_lines(tmp_path / "x.jsonl", [good, line])
    with pytest.raises(DataError, match=rf"x\.jsonl:2: .*{said}"):
        take(lake, "strop", [path])


def test_pairs_come_in_both_types_and_go_out_again(lake: Path, tmp_path: Path) -> None:
    say = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    asked = [{"role": "user", "content": "2+2="}]
    path = write_lines(
        tmp_path / "x.jsonl",
        [
            {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
            {"prompt": asked, "chosen": say("4"), "rejected": say("5"), "score_chosen": 9, "score_rejected": 2.5},
            {"chosen": asked + say("4"), "rejected": asked + say("6")},
        ],
    )
    assert take(lake, "pairs", [path]).counts == {"examples": 3}
    with open_console(lake) as console:
        export(console, "pairs", "trl", tmp_path / "y.jsonl", Selection())
        margins = console.query("SELECT margin FROM examples ORDER BY example_id").rows
    assert [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()] == [
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
        {"prompt": "2+2=", "chosen": "4", "rejected": "6"},
    ]
    assert margins == [(None,), (6.5,), (None,)]
    with pytest.raises(DataError, match=r"z\.jsonl:1: a pair needs `prompt`"):
        take(lake, "pairs", [write_lines(tmp_path / "z.jsonl", [{"chosen": "a", "rejected": "b"}])], run_id="z")


def test_shards_are_of_one_round_each(lake: Path, tmp_path: Path) -> None:
    made = [{"problem": "p", "completion": str(i), "round": i % 2} for i in range(4)]
    take(lake, "strop", [write_lines(tmp_path / "x.jsonl", made)])
    found = ask(
        lake,
        "SELECT round, shard, shards, rows_json FROM stage_runs WHERE stage = 'import' ORDER BY ALL",
    )
    assert found == [(r, s, 2, '{"rollouts":1}') for r in (0, 1) for s in (0, 1)]
    assert all(r.rollout_id >> 20 == r.stage_run_id for r in rows(lake, Rollout))
    assert shards.SHARD == 4096
