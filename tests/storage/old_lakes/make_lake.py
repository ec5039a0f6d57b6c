"""Makes vN.tar.xz, a lake of schema version N: python make_lake.py CHECKOUT OUT.tar.xz, with a checkout of that time.

    git worktree add --detach /tmp/v3 59edb86
    python tests/storage/old_lakes/make_lake.py /tmp/v3 tests/storage/old_lakes/v3.tar.xz

Version 1 was made with a checkout of 03bc656, version 2 with one of a24cc70, version 3 with one of 59edb86. The
checkout's own code runs its own `tests/core/tiny_run.py`: a finished run of three rounds, and one that is killed in its
second round. Small files are merged every 16 snapshots instead of every 64, so that there are merged files. Beside the
lake lie the recipe and its plugin file, so that the killed run can go on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def grow(folder: Path) -> None:
    """In the old code: both runs; the second one ends by SIGKILL, and this process with it."""
    import pytest
    import tiny_run

    from strop.storage import lake as lake_module

    socket.gethostname = lambda: "host"
    lake_module.EVERY = 16
    tiny_run.inline(pytest.MonkeyPatch())
    recipe = tiny_run.write(folder, rounds=3)
    tiny_run.run(recipe, folder, run_id="whole")

    def die(event) -> None:
        if (event.kind, event.stage, event.round) == ("stage_start", "verify", 2):
            os.kill(os.getpid(), signal.SIGKILL)

    tiny_run.run(recipe, folder, run_id="halfway", on_event=die)


def main(checkout: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        link, folder = Path(made) / "path", Path(made) / out.name.partition(".")[0]
        link.mkdir()
        (link / "strop").symlink_to(checkout.absolute())
        path = os.pathsep.join([str(link), str(checkout.absolute() / "tests" / "core")])
        done = subprocess.run(
            [sys.executable, __file__, "grow", folder], env={**os.environ, "PYTHONPATH": path}, check=False
        )
        assert done.returncode == -signal.SIGKILL, done
        for name in ("logs", "locks"):
            for left in (folder / "lake" / name).rglob("*.*"):
                left.unlink()
        with tarfile.open(out, "w:xz", preset=9) as tar:
            tar.add(folder, arcname=folder.name, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uname = member.gname = ""
    return None if "__pycache__" in member.name else member


if __name__ == "__main__":
    if sys.argv[1] == "grow":
        grow(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
