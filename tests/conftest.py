"""What the whole suite shares: a cache of its own for base policies, and one finished run of the smoke recipe.

`make test` runs the files in two processes. What takes long is made by one of them, in the folder both have.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
from filelock import FileLock

from strop.core.events import Event, RunSummary

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are taken


LONG = (
    "test_crash_matrix",
    "test_benchmarks",
    "test_readme",
    "test_rerun",
    "test_loop",
    "test_migrations",
    "test_session",
    "test_ready_views",
    "test_train_reward",
    "test_imports",
    "test_gc",
    "test_links",
    "test_flow",
    "test_server",
    "test_fsck",
)
"""Files by the time their tests take, slow ones included, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: of two processes, neither has one left when the other has nothing more to do."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@dataclass(frozen=True)
class FinishedRun:
    lake: Path
    run_id: str
    summary: RunSummary
    events: list[Event]


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """The session's folder: that of all its processes, where it has several."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared):
    """Base policies made by tests are kept for the session, away from the user's cache."""
    before = {name: os.environ.get(name) for name in ("STROP_CACHE", "STROP_LAKE")}
    os.environ["STROP_CACHE"] = os.environ.get("STROP_TEST_CACHE") or str(shared / "cache")
    os.environ.pop("STROP_LAKE", None)
    yield Path(os.environ["STROP_CACHE"])
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, shared, own_cache) -> FinishedRun:
    """The smoke recipe, run once without Prefect; every process has a copy of the lake."""
    from strop.core.recipe import load
    from strop.core.round import run_loop

    made, told = shared / "smoke-run", shared / "smoke-run.pickle"
    with FileLock(shared / "smoke-run.lock"):
        if not told.is_file():
            events: list[Event] = []
            summary = run_loop(load("smoke"), lake=made, run_id="smoke", on_event=events.append)
            told.write_bytes(pickle.dumps((summary, events)))
    lake = tmp_path_factory.mktemp("smoke") / "lake"
    shutil.copytree(made, lake)
    return FinishedRun(lake, "smoke", *pickle.loads(told.read_bytes()))


@dataclass(frozen=True)
class Machines:
    """Two folders that are one lake, as if each were on a machine of its own."""

    catalog: str
    data: str
    endpoint: str
    a: Path
    b: Path


@pytest.fixture(scope="session")
def postgres_server():
    try:
        with servers.postgres() as uri:
            yield uri
    except servers.NoServerError as error:
        pytest.skip(f"no PostgreSQL runs here: {error}")


@pytest.fixture(scope="session")
def s3_server():
    try:
        with servers.s3() as url:
            yield url
    except servers.NoServerError as error:
        pytest.skip(f"no S3 server runs here: {error}")


_NUMBER = itertools.count()


@pytest.fixture
def credentials(monkeypatch):
    """What a user has in the environment."""
    servers.set_environment(monkeypatch.setenv)


@pytest.fixture
def database(postgres_server, credentials) -> str:
    """An empty database."""
    return servers.make_database(postgres_server, f"lake{next(_NUMBER)}")


@pytest.fixture
def bucket(s3_server, credentials) -> str:
    """An empty bucket."""
    return servers.make_bucket(s3_server, f"bucket{next(_NUMBER)}")


@pytest.fixture(scope="session")
def shared_template(postgres_server, s3_server, tmp_path_factory) -> Machines:
    """One empty lake on PostgreSQL and S3, made once and then copied."""
    from strop.storage import postgres
    from strop.storage.joining import join

    with pytest.MonkeyPatch.context() as patch:
        servers.set_environment(patch.setenv)
        root = tmp_path_factory.mktemp("shared") / "template"
        catalog = servers.make_database(postgres_server, "template_lake")
        made = Machines(catalog, servers.make_bucket(s3_server, "template") + "/my lake", s3_server, root, root)
        join(root, {"catalog": made.catalog, "data": made.data, "endpoint": made.endpoint})
        postgres.close_idle()  # a database that somebody uses cannot be copied
    return made


@pytest.fixture
def machines(shared_template, postgres_server, bucket, tmp_path) -> Machines:
    """A lake on PostgreSQL and S3, joined from two folders."""
    old = shared_template
    catalog = servers.make_database(postgres_server, f"lake{next(_NUMBER)}", template="template_lake")
    made = Machines(catalog, f"{bucket}/my lake", old.endpoint, tmp_path / "a", tmp_path / "b")
    servers.move_data(catalog, old.endpoint, old.data, made.data)
    for root in (made.a, made.b):
        shutil.copytree(old.a, root)
        text = (root / "lake.toml").read_text().replace(old.catalog, catalog).replace(old.data, made.data)
        (root / "lake.toml").write_text(text)
    return made
