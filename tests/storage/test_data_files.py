"""Files below a lake, on this disk and on S3: the same calls, the same answers."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from strop.storage.checkpoints import adopt, hash_directory, local_checkpoint, verify_checkpoint
from strop.storage.data_files import DataFiles, data_files
from strop.storage.errors import LakeError
from strop.storage.place import Place, place_of

BIG = bytes(range(256)) * (70 << 10)  # 17 MiB: several parts of an upload


@pytest.fixture(params=["disk", "s3"])
def files(request, tmp_path: Path) -> DataFiles:
    if request.param == "disk":
        return data_files(Place(tmp_path / "lake"))
    url = request.getfixturevalue("bucket")
    return data_files(Place(tmp_path / "lake", data=f"{url}/a b", endpoint=request.getfixturevalue("s3_server")))


def test_what_is_put_is_there_whole_and_replaces_what_was(files: DataFiles, tmp_path: Path) -> None:
    assert list(files.list("data")) == []
    small, big = files.at("data/main/t/x=1/small é.parquet"), files.at("data/main/t/big.parquet")
    (tmp_path / "big").write_bytes(BIG)
    files.put({small: b"one", big: tmp_path / "big"})
    assert files.read(small) == b"one"
    assert files.size(big) == len(BIG)
    files.fetch(big, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == BIG
    files.put({small: b"two"})
    assert files.read(small) == b"two"
    found = {file.location: file for file in files.list("data")}
    assert {where: file.size for where, file in found.items()} == {small: 3, big: len(BIG)}
    age = datetime.datetime.now(datetime.UTC) - found[small].modified
    assert abs(age) < datetime.timedelta(minutes=1)
    assert [file.location for file in files.list("data/main/t/x=1")] == [small]


def test_what_is_deleted_is_gone_and_may_have_been(files: DataFiles) -> None:
    one, two = files.at("data/one"), files.at("data/two")
    files.put({one: b"1", two: b"2"})
    files.delete([one, files.at("data/never")])
    assert files.size(one) is None
    assert [file.location for file in files.list("data")] == [two]
    with pytest.raises(FileNotFoundError):
        files.read(one)


def test_what_cannot_be_put_is_an_os_error(files: DataFiles, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-file"):
        files.put({files.at("data/x"): tmp_path / "no-such-file"})
    assert files.size(files.at("data/x")) is None


def made(folder: Path, weights: bytes = b"w" * 1000) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub/model.safetensors").write_bytes(weights)
    return folder


def test_a_policy_of_another_machine_is_fetched_once_and_verified(machines) -> None:
    path, content_hash = adopt(machines.a, made(machines.a / "work/x"))
    assert not (machines.a / "work/x").exists()
    assert local_checkpoint(machines.a, path, content_hash) == machines.a / path
    there = local_checkpoint(machines.b, path, content_hash)
    assert there == machines.b / path
    assert hash_directory(there) == content_hash
    store = data_files(place_of(machines.b))
    store.delete([file.location for file in store.list(path)])
    verify_checkpoint(local_checkpoint(machines.b, path, content_hash), content_hash)
    assert list((machines.b / "work").iterdir()) == []


def test_what_the_store_lost_or_changed_is_never_used(machines) -> None:
    path, content_hash = adopt(machines.a, made(machines.a / "work/x"))
    store = data_files(place_of(machines.b))
    weights = store.at(f"{path}/sub/model.safetensors")
    store.put({weights: b"v" * 1000})
    with pytest.raises(LakeError, match="not what was stored"):
        local_checkpoint(machines.b, path, content_hash)
    store.delete([file.location for file in store.list(path)])
    with pytest.raises(LakeError, match=r"policies/\w+ is gone; restore it"):
        local_checkpoint(machines.b, path, content_hash)
    assert not (machines.b / path).exists()


def test_an_upload_that_was_cut_short_is_completed_by_the_next(machines) -> None:
    path, content_hash = adopt(machines.a, made(machines.a / "work/x"))
    store = data_files(place_of(machines.a))
    store.delete([store.at(f"{path}/config.json")])
    assert adopt(machines.a, made(machines.a / "work/y")) == (path, content_hash)
    verify_checkpoint(local_checkpoint(machines.b, path, content_hash), content_hash)
