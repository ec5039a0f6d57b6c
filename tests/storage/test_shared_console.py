"""The SQL console of a lake on S3: it opens the objects of its snapshot and nothing else, and no SQL tells the keys."""

from __future__ import annotations

import duckdb
import pytest
import servers
from lake_rows import ledger, rollouts

from strop.storage.console import open_console
from strop.storage.data_files import data_files
from strop.storage.errors import LakeError
from strop.storage.lake import open_lake
from strop.storage.place import place_of

TOKEN = "t0ken-that-nobody-reads"
SECRETS = (servers.KEYS["AWS_SECRET_ACCESS_KEY"], servers.PASSWORD, TOKEN)
ANSWERED = (
    "SELECT * FROM duckdb_functions() WHERE function_name LIKE '%s3%'",
    "SELECT count(*) FROM rollouts",
)
REFUSED = (
    "SELECT * FROM duckdb_secrets()",
    "FROM duckdb_secrets(redact = false)",
    "SELECT * FROM which_secret('{data}/data/x.parquet', 's3')",
    "SELECT * FROM duckdb_settings()",
    "SELECT current_setting('s3_secret_access_key')",
    "SELECT current_setting('s3_access_key_id')",
    "SELECT current_setting('s3_session_token')",
    "FROM duckdb_logs",
    "FROM duckdb_external_file_cache()",
    "SELECT getenv('AWS_SECRET_ACCESS_KEY')",
    "CREATE SECRET mine (TYPE s3, SCOPE '{data}', ENDPOINT '127.0.0.1:1')",
    "DROP SECRET strop_data",
    "SET s3_endpoint = '127.0.0.1:1'",
    "RESET s3_secret_access_key",
    "COPY (SELECT 1) TO '{data}/data/x.parquet'",
    "SELECT * FROM '{data}/data/other.parquet'",
    "SELECT * FROM read_parquet('{data}/data/other.parquet')",
    "SELECT * FROM read_blob('{data}/**')",
    "SELECT * FROM glob('{data}/**')",
    "SELECT * FROM parquet_metadata('{data}/data/other.parquet')",
    "ATTACH '{catalog}' AS pg (TYPE postgres)",
    "SELECT * FROM postgres_scan('{catalog}', 'public', 'ducklake_snapshot')",
    "SELECT * FROM read_text('http://127.0.0.1:1/')",
    "LOAD postgres_scanner",
)
BEYOND_THE_GATE = (
    "SELECT * FROM read_parquet('{data}/data/other.parquet')",
    "SELECT * FROM glob('{data}/**')",
    "SELECT * FROM read_text('{endpoint}/moto-api/')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_text('{root}/lake.toml')",
    "COPY (SELECT 1) TO '{data}/data/x.parquet'",
    "SET s3_secret_access_key = 'x'",
    "SET allowed_paths = ['{data}/data/other.parquet']",
    "SET enable_external_access = true",
)


@pytest.fixture
def words(machines, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A lake with a row, an object that is not the lake's, and what statements may name."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    with open_lake(machines.a) as lake:
        lake.commit(ledger("k"), rows={"rollouts": rollouts(2)})
        registered = next(f.location for f in data_files(lake.place).list("data/main/rollouts"))
    files = data_files(place_of(machines.a))
    files.put({files.at("data/other.parquet"): files.read(registered)})
    return {
        "data": machines.data,
        "catalog": machines.catalog,
        "endpoint": machines.endpoint,
        "root": str(machines.a),
    }


def test_no_sql_tells_the_keys_or_opens_what_is_not_the_snapshots(machines, words) -> None:
    with open_console(machines.a) as console:
        for sql in ANSWERED:
            said = repr(console.query(sql))
            assert not any(secret in said for secret in SECRETS), sql
        assert servers.KEYS["AWS_ACCESS_KEY_ID"] not in repr([console.query(sql) for sql in ANSWERED])
        for sql in REFUSED:
            with pytest.raises(LakeError) as raised:
                console.query(sql.format(**words))
            assert not any(secret in str(raised.value) for secret in SECRETS), sql


def test_the_second_wall_stands_without_the_gate(machines, words) -> None:
    with open_console(machines.a) as console:
        console.query("SELECT count(*) FROM rollouts")
        raw = console._connection
        for sql in BEYOND_THE_GATE:
            with pytest.raises(duckdb.Error, match=r"disabled by configuration|has been locked"):
                print(sql, raw.execute(sql.format(**words)).fetchall())
        told = [*raw.execute("FROM duckdb_settings()").fetchall(), *raw.execute("FROM duckdb_secrets()").fetchall()]
        assert not any(secret in repr(told) for secret in SECRETS)
    files = data_files(place_of(machines.a))
    assert files.size(files.at("data/x.parquet")) is None


def test_a_store_that_is_gone_is_said_without_the_keys(machines, words) -> None:
    text = (machines.a / "lake.toml").read_text()
    (machines.a / "lake.toml").write_text(text.replace(machines.endpoint, f"http://127.0.0.1:{servers.free_port()}"))
    with pytest.raises(LakeError, match=r"rollouts|schema_versions") as raised, open_console(machines.a) as console:
        console.query("SELECT count(completion) FROM rollouts")
    assert not any(secret in str(raised.value) for secret in SECRETS)
