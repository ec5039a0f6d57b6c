import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strop.core.workers import Workers
from strop.storage.errors import RecipeError, StageError


def double(value, report):
    report(value)
    return value * 2


def pid(_, report):
    return os.getpid()


def fail(value, report):
    raise ValueError(f"bad {value}")


def refuse(value, report):
    raise RecipeError(f"write {value} instead")


def die(_, report):
    os.kill(os.getpid(), signal.SIGKILL)


def hoard(size, report):
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    return len(bytearray(size))


def nap(seconds, report):
    report(os.getpid())
    time.sleep(seconds)


@pytest.fixture
def workers(tmp_path):
    pool = Workers(2, tmp_path, preload=())
    yield pool
    pool.release()


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def gone(process: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while alive(process) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(process)


def test_results_and_reports_carry_the_index_of_their_argument(workers):
    reports = {}
    results = dict(workers.run(double, [5, 6, 7], reports.__setitem__))
    assert results == {0: 10, 1: 12, 2: 14}
    assert reports == {0: 5, 1: 6, 2: 7}


def test_workers_are_other_processes_and_are_used_again(workers):
    first = {value for _, value in workers.run(pid, [0, 0, 0, 0])}
    again = {value for _, value in workers.run(pid, [0])}
    assert os.getpid() not in first
    assert len(first) <= 2
    assert again <= first


def test_an_exception_stops_the_stage_with_its_message_and_leaves_the_traceback_in_the_log(workers, tmp_path):
    with pytest.raises(StageError, match="ValueError: bad 3"):
        list(workers.run(fail, [3]))
    assert "Traceback" in (tmp_path / "worker-0.log").read_text()


def test_an_error_meant_for_the_user_keeps_its_type(workers):
    with pytest.raises(RecipeError, match="write this instead"):
        list(workers.run(refuse, ["this"]))


def test_a_killed_worker_is_reported_with_its_signal_and_log(workers):
    with pytest.raises(StageError, match=r"ended by signal SIGKILL.*worker-0\.log"):
        list(workers.run(die, [0]))


def test_a_worker_that_gets_no_memory_says_so_with_the_name_of_its_job(workers):
    with pytest.raises(StageError, match=r"^shard 2 of 2: out of memory \(MemoryError\): free some, or lower"):
        list(workers.run(hoard, [1, 1 << 40], names=["shard 1 of 2", "shard 2 of 2"]))
    assert dict(workers.run(double, [1])) == {0: 2}


def test_release_ends_a_busy_worker(workers):
    seen = []

    def interrupt(_, value):
        seen.append(value)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(workers.run(nap, [60], interrupt))
    assert gone(seen[0])


def test_kill_9_of_the_parent_ends_the_workers(tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_workers import nap; from strop.core.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    pool = Workers(1, Path(sys.argv[2]), preload=())\n"
        "    list(pool.run(nap, [60], lambda i, v: print(v, flush=True)))\n"
    )
    file = tmp_path / "parent.py"
    file.write_text(script)
    with subprocess.Popen(
        [sys.executable, str(file), str(Path(__file__).parent), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    assert gone(worker)


def test_a_worker_killed_while_it_had_nothing_to_do_is_replaced(workers):
    [(_, first)] = workers.run(pid, [0])
    os.kill(first, signal.SIGKILL)
    workers._workers[0].process.join(5)
    [(_, second)] = workers.run(pid, [0])
    assert second != first
