"""One Prefect server per project: started once, found again, stopped, and never confused with another process."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from pathlib import Path

import psutil
import pytest

from strop.flows import server
from strop.flows.server import ServerError


def test_the_server_is_found_again_and_answers(prefect_home: Path) -> None:
    info = server.find(prefect_home)
    assert info is not None
    assert info.url.startswith("http://127.0.0.1:")
    assert server.healthy(info.url)
    assert server.status(prefect_home) == ("running", info)


def test_a_second_start_returns_the_same_process(prefect_home: Path) -> None:
    before = server.find(prefect_home)
    assert before is not None
    assert server.start(prefect_home).pid == before.pid


def test_the_server_lives_in_a_session_of_its_own(prefect_home: Path) -> None:
    info = server.find(prefect_home)
    assert info is not None
    assert info.pid is not None
    assert os.getsid(info.pid) == info.pid != os.getsid(0)


def test_two_at_once_start_one_server_and_stop_ends_it(tmp_path: Path) -> None:
    found: list[server.ServerInfo] = []
    threads = [threading.Thread(target=lambda: found.append(server.start(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({info.pid for info in found}) == 1
    assert server.stop(tmp_path)
    assert not psutil.pid_exists(found[0].pid or 0)
    assert server.find(tmp_path) is None
    assert not server.stop(tmp_path)


def write_state(home: Path, pid: int, started: float, url: str = "http://127.0.0.1:9/api") -> None:
    path = server.state_file(home)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"url": url, "pid": pid, "started": started, "port": 9}))


def test_a_state_file_of_a_dead_process_is_stale(tmp_path: Path) -> None:
    write_state(tmp_path, pid=2**22 + 1, started=1.0)
    assert server.find(tmp_path) is None
    assert server.status(tmp_path) == ("stale", None)


def test_another_process_with_the_same_pid_is_not_taken_for_the_server_nor_ended(tmp_path: Path) -> None:
    write_state(tmp_path, pid=os.getpid(), started=psutil.Process().create_time() - 100)
    assert server.status(tmp_path) == ("stale", None)
    assert not server.stop(tmp_path)  # and this process still runs
    assert not server.state_file(tmp_path).exists()


def test_a_state_file_with_nonsense_in_it_is_stale(tmp_path: Path) -> None:
    server.state_file(tmp_path).parent.mkdir()
    server.state_file(tmp_path).write_text("{half")
    assert server.status(tmp_path) == ("stale", None)


def test_a_server_that_dies_at_start_is_reported_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho no such database\nexit 3\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ServerError, match=r"(?s)ended before it answered.*no such database.*--no-prefect"):
        server.start(tmp_path)
    assert not server.state_file(tmp_path).exists()


def test_a_server_that_never_answers_is_ended_after_the_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ServerError, match=r"does not answer after 0\.3 s"):
        server.start(tmp_path, timeout_s=0.3)
    assert server.status(tmp_path) == ("stopped", None)


def test_the_server_the_user_named_is_used_and_none_is_started(
    tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = server.find(prefect_home)
    assert running is not None
    monkeypatch.setenv("PREFECT_API_URL", running.url)
    assert server.ensure(tmp_path) == server.ServerInfo(url=running.url, home=tmp_path)
    assert not (tmp_path / ".prefect").exists()


def test_a_named_server_that_does_not_answer_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ServerError, match=r"PREFECT_API_URL=http://127.0.0.1:9/api.*--no-prefect"):
        server.ensure(tmp_path)


def test_the_home_of_a_lake_is_the_folder_that_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert server.home_of(Path("lake")) == tmp_path
    assert server.home_of(tmp_path / "a" / "lake") == tmp_path / "a"


def test_a_loopback_server_is_reached_in_spite_of_a_proxy(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = server.find(prefect_home)
    assert info is not None
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert server.healthy(info.url)


def test_use_points_this_process_and_its_children_at_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    before = dict(os.environ)
    info = server.ServerInfo("http://127.0.0.1:4/api", tmp_path, 1, 1.0, tmp_path / "log")
    try:
        server.use(info)
        assert os.environ["PREFECT_API_URL"] == info.url
        assert os.environ["PREFECT_HOME"] == str(tmp_path / ".prefect")
        assert os.environ["DO_NOT_TRACK"] == "1"
        assert os.environ["NO_PROXY"].split(",")[0] == "example.org"
        assert "127.0.0.1" in os.environ["NO_PROXY"].split(",")
    finally:
        os.environ.clear()
        os.environ.update(before)
