"""A plugin package of somebody else, really installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("engine_tools")


@pytest.fixture(scope="session")
def third_party(tmp_path_factory) -> str:
    """The folder `tests/third_party` was installed to: put it on the path, and its entry point is there."""
    source = tmp_path_factory.mktemp("third_party") / "source"
    shutil.copytree(Path(__file__).parent.parent / "third_party", source)
    target = source.parent / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(target), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    return str(target)
