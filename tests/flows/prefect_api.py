"""Questions to a Prefect server, over its HTTP API."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from strop.flows import server


def api(info: server.ServerInfo, path: str, body: dict[str, Any]) -> Any:
    """A POST to the server."""
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{info.url}{path}", data, headers), timeout=10) as reply:
        return json.load(reply)


def flow_runs(info: server.ServerInfo, which: dict[str, Any]) -> list[dict[str, Any]]:
    """Flow runs by a filter of the API, newest first."""
    return list(api(info, "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "flow_runs": which}))


def flow_run(info: server.ServerInfo, name: str) -> dict[str, Any]:
    """The newest flow run of that name."""
    found = flow_runs(info, {"name": {"any_": [name]}})
    assert found, f"no flow run {name}"
    return found[0]


def task_runs(info: server.ServerInfo, run: dict[str, Any]) -> dict[str, str]:
    """Task runs of a flow run: name -> state."""
    found = api(info, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return {task["name"]: task["state_name"] for task in found}


def eventually(check: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """The server records task runs in batches."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.2)
    return False
