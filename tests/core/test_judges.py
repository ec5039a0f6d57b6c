"""Rollouts judged one at a time, in real processes: what an item does to its process happens to that item alone."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from strop.core import judges
from strop.core.execute import PluginRef, verify
from strop.core.plugin import Config, PerRollout, stage
from strop.storage.errors import PluginError, StageError
from strop.storage.tables import Problem, Rollout, Score

PLUGIN = '''
"""Does to itself what the completion says."""
import ctypes, os, signal, subprocess, sys, time
from strop.core.plugin import PerRollout, Task, stage
from strop.storage.errors import PluginError
from strop.storage.tables import Problem, Score

class Nothing(PerRollout):
    """Nothing else to set."""

@stage("verify")
def odd(config: Nothing, *, rollout, problem, scores, round):
    match rollout.completion.split():
        case ["count"]:
            while True:
                pass
        case ["deaf"]:
            10 ** (10 ** 10)
        case ["stubborn"]:
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass
        case ["sleep"]:
            time.sleep(600)
        case ["eat"]:
            return bytearray(1 << 40)
        case ["crash"]:
            ctypes.string_at(0)
        case ["leave"]:
            os._exit(0)
        case ["exit"]:
            sys.exit(4)
        case ["kill", path]:
            if not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        case ["start", path]:
            child = subprocess.Popen(["sleep", "600"])
            open(path, "w").write(str(child.pid))
            os.kill(os.getpid(), signal.SIGKILL)
        case ["raise"]:
            raise KeyError(rollout.sample_index)
        case ["refuse"]:
            raise PluginError("write something else")
        case ["text"]:
            return "pass"
        case ["said"]:
            return Score(subject_id=0, verdict="pass", value=1.0, answer=",".join(s.answer for s in scores))
    right = rollout.completion == problem.reference
    return Score(subject_id=1, problem_id=2, verdict="pass" if right else "fail", value=float(right), answer=str(round))

@stage("verify")
def needy(config: Nothing, *, rollout, tasks):
    return tasks["ones"].score(None, rollout.completion)

@stage("verify", imports=["no_such_module"])
def absent(config: Nothing, *, rollout):
    return None

@stage("task")
def ones(config: Nothing, *, seed):
    return Task(list, score=lambda p, text: Score(subject_id=0, verdict="pass", value=1.0, answer=f"{text} {seed}"))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("odd")
    (made / "odd.py").write_text(PLUGIN)
    return made


@pytest.fixture
def judge(folder):
    """judge(completions, **settings) -> their scores, by two processes."""

    def call(
        completions, name="odd", *, scores=(), tasks=(), judges=2, suspicious=False, report=lambda n: None, **settings
    ):
        rollouts = [
            Rollout(rollout_id=100 + i, problem_id=7, sample_index=i, completion=text)
            for i, text in enumerate(completions)
        ]
        problems = {7: Problem(problem_id=7, prompt="", reference="1")}
        handles = {"rollouts": rollouts, "problems": problems, "scores": scores, "seed": 0, "round": 3}
        refs = [PluginRef("task", f"./odd.py:{name}", folder, {}, name) for name in tasks]
        ref = PluginRef("verify", f"./odd.py:{name}", folder, settings, name)
        return verify(ref, handles, refs, 5, judges=judges, suspicious=suspicious, report=report)

    return call


def said(scores):
    return [(s.verdict, s.value, s.reason) for s in scores]


PASS = ("pass", 1.0, None)


def test_every_rollout_gets_its_score_in_order_whoever_judges_it(judge):
    texts = ["1" if i % 3 else "2" for i in range(700)]
    reports = []
    for processes in (1, 3):
        found = judge(texts, judges=processes, report=reports.append)
        assert [s.subject_id for s in found] == list(range(100, 800))
        assert {(s.subject_kind, s.problem_id, s.answer) for s in found} == {("rollout", 7, "3")}
        assert [s.verdict == "pass" for s in found] == [bool(i % 3) for i in range(700)]
    assert judge([]) == []


@pytest.mark.parametrize("what", ["count", "deaf", "stubborn"])
def test_an_item_whose_processor_time_is_up_is_an_error_whether_it_hears_the_alarm_or_not(judge, what):
    found = judge(["1", what, *["1"] * 20], timeout_s=0.3)
    reason = "timed out after 0.3 s of processor time"
    assert said(found) == [PASS, ("error", None, reason), *[PASS] * 20]


def test_an_item_that_hangs_is_an_error_after_six_times_as_long(judge):
    found = judge(["sleep", *["1"] * 8], timeout_s=0.2)
    assert said(found) == [("error", None, "timed out after 1.2 s of waiting"), *[PASS] * 8]


def test_an_item_that_wants_more_memory_than_it_may_is_an_error_with_the_limit(judge):
    found = judge(["1", "eat", "1"], memory_gb=0.5)
    assert said(found) == [PASS, ("error", None, "out of memory: it may take 0.5 GB (`memory_gb`)"), PASS]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("crash", "its process was ended by SIGSEGV"),
        ("leave", "it left with code 0"),
        ("exit", "SystemExit: 4"),
        ("raise", "KeyError: 9"),
    ],
)
def test_an_item_that_takes_its_process_along_or_raises_is_an_error_with_the_reason(judge, what, reason):
    found = judge([*["1"] * 9, what, *["1"] * 9], suspicious=True)
    assert said(found) == [*[PASS] * 9, ("error", None, reason), *[PASS] * 9]


def test_an_item_whose_process_somebody_killed_is_judged_again(judge, tmp_path):
    texts = ["1"] * 30
    texts[11] = f"kill {tmp_path / 'once'}"
    assert [s.verdict for s in judge(texts)] == ["fail" if i == 11 else "pass" for i in range(30)]
    assert (tmp_path / "once").exists()


def test_what_a_verifier_has_started_ends_with_its_process(judge, tmp_path):
    (found,) = judge([f"start {tmp_path / 'pid'}"])
    assert found.reason == "its process was ended by SIGKILL"
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while time.monotonic() < until and os.path.exists(f"/proc/{child}") and not zombie(child):
        time.sleep(0.02)
    assert zombie(child) or not os.path.exists(f"/proc/{child}")


def zombie(process):
    return "Z" in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_verifier_that_raises_on_every_one_of_the_first_rollouts_stops_the_run_with_its_traceback(judge, capfd):
    with pytest.raises(
        StageError, match=r"verify plugin 'odd' failed: KeyError: 0 \(on each of the first 16.*odd\.py, line \d+"
    ):
        judge([*["raise"] * 16, "1"], suspicious=True)
    assert "Traceback" in capfd.readouterr().err
    almost = judge([*["raise"] * 15, "1"], suspicious=True)
    assert [s.verdict for s in almost] == ["error"] * 15 + ["pass"]
    assert {s.verdict for s in judge(["raise"] * 3, suspicious=True)} == {"error"}
    assert {s.verdict for s in judge(["raise"] * 40)} == {"error"}


def test_a_verifier_that_returns_no_score_or_refuses_stops_the_run(judge):
    with pytest.raises(PluginError, match=r"verify plugin 'odd' must return a Score, it returned str: 'pass'"):
        judge(["1", "text"])
    with pytest.raises(PluginError, match="write something else"):
        judge(["1", "refuse"])
    assert said(judge(["1"])) == [PASS]


def test_it_is_handed_the_scores_of_its_rollout_and_the_tasks_of_the_recipe(judge):
    before = [Score(subject_id=i, verdict="pass", answer=str(i)) for i in (100, 101, 101)]
    assert [s.answer for s in judge(["said", "said", "said"], scores=before)] == ["100", "101,101", ""]
    assert [s.answer for s in judge(["a", "b"], "needy", tasks=["ones"])] == ["a 5", "b 5"]


def test_a_module_that_is_not_there_is_named(judge):
    with pytest.raises(PluginError, match=r"verify plugin 'absent' needs no_such_module: .*install it"):
        judge(["1"], "absent")


def test_the_process_that_starts_the_others_may_be_killed_between_shards_and_in_one(judge):
    judge(["1"])
    server = judges._SERVERS[0].process
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert said(judge(["1"])) == [PASS]
    timer = threading.Timer(0.3, judges._SERVERS[0].process.kill)
    timer.start()
    with pytest.raises(StageError, match="ended by SIGKILL; the same command goes on"):
        judge(["sleep", "sleep"])
    assert said(judge(["1"])) == [PASS]


def test_judging_works_in_a_thread(judge):
    found = []
    thread = threading.Thread(target=lambda: found.extend(judge(["1", "2"])))
    thread.start()
    thread.join()
    assert [s.verdict for s in found] == ["pass", "fail"]


def test_the_mark_refuses_what_does_not_go_together():
    with pytest.raises(PluginError, match=r"`problem` comes with `rollout`"):

        @stage("verify")
        def one(config: PerRollout, *, rollouts, problem): ...

    with pytest.raises(PluginError, match="judges one at a time and is not handed problems, engine"):

        @stage("verify")
        def two(config: PerRollout, *, rollout, problems, engine): ...

    with pytest.raises(PluginError, match=r"derive Config from strop\.core\.plugin\.PerRollout"):

        @stage("verify")
        def three(config: Config, *, rollout): ...
