"""Checkpoints are named by what they hold."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from strop.storage.checkpoints import adopt, hash_directory, verify_checkpoint
from strop.storage.errors import LakeError


def checkpoint(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_hash_follows_names_and_bytes_alone(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "a", {"config.json": b"{}", "sub/model.safetensors": b"weights"})
    same = checkpoint(tmp_path / "b", {"sub/model.safetensors": b"weights", "config.json": b"{}"})
    (same / "config.json").chmod(0o600)
    (same / "empty").mkdir()
    assert hash_directory(one) == hash_directory(same)
    others = [
        {"config.json": b"{ }", "sub/model.safetensors": b"weights"},
        {"config.json": b"{}", "model.safetensors": b"weights"},
        {"config.json": b"{}w", "sub/model.safetensors": b"eights"},
    ]
    hashes = {hash_directory(checkpoint(tmp_path / f"c{i}", files)) for i, files in enumerate(others)}
    assert len(hashes | {hash_directory(one)}) == 4


def test_adopting_moves_the_folder_and_keeps_one_copy(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"w" * 3_000_000}
    relative, content_hash = adopt(tmp_path / "lake", checkpoint(tmp_path / "lake/work/x", files))
    assert relative == f"policies/{content_hash[:16]}"
    assert not (tmp_path / "lake/work/x").exists()
    verify_checkpoint(tmp_path / "lake" / relative, content_hash)
    again = adopt(tmp_path / "lake", checkpoint(tmp_path / "lake/work/y", files))
    assert again == (relative, content_hash)
    assert not (tmp_path / "lake/work/y").exists()
    assert len(list((tmp_path / "lake/policies").iterdir())) == 1


def test_a_changed_or_missing_checkpoint_is_noticed(tmp_path: Path) -> None:
    relative, content_hash = adopt(tmp_path, checkpoint(tmp_path / "work/x", {"model.safetensors": b"w"}))
    (tmp_path / relative / "model.safetensors").write_bytes(b"v")
    with pytest.raises(LakeError, match=r"is not what was stored: .* restore it"):
        verify_checkpoint(tmp_path / relative, content_hash)
    with pytest.raises(LakeError, match="is not what was stored"):
        adopt(tmp_path, checkpoint(tmp_path / "work/y", {"model.safetensors": b"w"}))
    assert (tmp_path / "work/y/model.safetensors").exists()
    with pytest.raises(LakeError, match="is gone"):
        verify_checkpoint(tmp_path / "policies/none", content_hash)


def test_links_and_empty_folders_are_refused(tmp_path: Path) -> None:
    linked = checkpoint(tmp_path / "a", {"config.json": b"{}"})
    (linked / "model.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(LakeError, match="is a link"):
        hash_directory(linked)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LakeError, match="holds no files"):
        adopt(tmp_path, tmp_path / "empty")
    with pytest.raises(LakeError, match="no checkpoint folder"):
        hash_directory(tmp_path / "nowhere")


def test_another_filesystem_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = checkpoint(tmp_path / "work/x", {"config.json": b"{}"})

    def across(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", across)
    with pytest.raises(LakeError, match="must be on the lake's filesystem"):
        adopt(tmp_path, work)
    assert (work / "config.json").exists()
