"""The house rules a program can check: layers import downwards, every package ships, light things stay light."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["storage", "core", "plugins", "flows"]


def sources(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: absolute imports only"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer):
    above = {f"strop.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]}
    for path in sources(layer):
        wrong = {name for name in imported(path) if any(name == a or name.startswith(a + ".") for a in above)}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_every_package_is_listed_for_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        "strop." + ".".join(path.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("__init__.py")
    }
    assert listed == there


def test_there_is_no_package_file_at_the_root():
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["validate", "default"], ["status"], ["plugins", "list"]]
)
def test_light_commands_load_neither_torch_nor_prefect(arguments, tmp_path):
    code = (
        "import sys\n"
        "from strop.flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'prefect', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
