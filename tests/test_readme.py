"""Everything README tells a reader to type is typed here, in its order, in an empty folder."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strop.core.recipe import load
from strop.storage.console import open_console

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.strip().splitlines()]
QUERIES = [line for language, text in BLOCKS if language == "sql" for line in text.strip().splitlines()]
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("reader")
    (home / "short_and_right.py").write_text(blocks("python")[0])
    yield home
    subprocess.run([BIN / "strop", "server", "stop"], cwd=home, capture_output=True, check=False)


@pytest.fixture(scope="module")
def typed(folder):
    """Types every command once, in order; line -> what came of it."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = {}
    for line in COMMANDS:
        if line.startswith("make "):
            done[line] = shell(f"{line} --dry-run", ROOT, environment)
        elif line.startswith("strop serve "):
            done[line] = until_served(line, folder, environment)
        else:
            done[line] = shell(line, folder, environment)
    return done


def shell(line, where, environment):
    return subprocess.run(line, shell=True, cwd=where, env=environment, capture_output=True, text=True, check=False)


def until_served(line, where, environment):
    """A schedule runs until Ctrl-C: give it that, once it says that it waits."""
    log = where / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(shlex.split(line), cwd=where, env=environment, stdout=out, stderr=out)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None and "Ctrl-C" not in log.read_text():
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    return subprocess.CompletedProcess(line, 0 if code in (0, 130) else code, log.read_text(), "")


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_works(line, typed):
    done = typed[line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_leave_what_readme_says(typed, folder):
    with open_console(folder / "lake") as console:
        rounds = console.query("SELECT round, pass_at_1 FROM v_rounds WHERE run_id = 'first' ORDER BY round").rows
    assert [round for round, _ in rounds] == [0, 1, 2, 3]
    assert (folder / "my-loop" / "recipe.yaml").is_file()
    assert '"$schema"' in (folder / "recipe.schema.json").read_text()


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_answers(query, smoke):
    with open_console(smoke.lake) as console:
        assert console.query(query.rstrip(";")).rows


def test_the_recipe_loads(tmp_path):
    for text in blocks("yaml"):
        (tmp_path / "mine.yaml").write_text(text)
        shutil.copy(ROOT / "examples" / "problems.jsonl", tmp_path)
        assert load(str(tmp_path / "mine.yaml")).name == "mine"


def test_every_page_and_folder_named_is_there():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_figures_are_filled_in():
    assert "@@" not in (ROOT / "README.md").read_text()
