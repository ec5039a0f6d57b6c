"""The benchmarks still run, and say what the documentation promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def told(name: str, *arguments: str | Path) -> dict[str, Any]:
    """The JSON object that a benchmark's quick form prints."""
    command = [sys.executable, BENCHMARKS / name, "--quick", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_part_of_the_lakes_benchmark_is_one_json_object(tmp_path: Path) -> None:
    found = told("lake.py", "--folder", tmp_path, "--only", "commit", "files")
    assert set(found) == {"commit", "files", "targets"}
    assert found["targets"]["commit.wall_ms"]["found"] == found["commit"]["wall_ms"]
    assert found["files"]["1000"]["catalog_mb"] > found["files"]["100"]["catalog_mb"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_quick_benchmark_says_how_every_target_was_met(tmp_path: Path) -> None:
    found = told("lake.py", "--folder", tmp_path)
    assert set(found) == {"append", "commit", "memory", "stores", "queries", "console", "files", "targets"}
    assert found["targets"]["append.size_ratio"]["met"]
    assert found["targets"]["memory.above_batch_mb"]["met"]


@pytest.mark.slow
def test_the_engine_is_compared_with_generate_in_one_json_object() -> None:
    found = told("generate.py", "--sizes", "3M", "--n", "8")
    assert set(found) == {"hf_over_generate", "cpu"}
    assert found["hf_over_generate"]["3M"]["n=8"] > 1
    assert found["cpu"]["hf_over_generate"]["3M"]["n=8"] > 1


@pytest.mark.slow
def test_the_trainer_is_compared_with_trl_in_one_json_object() -> None:
    found = told("train.py")
    ratios = {f"{objective}_over_trl{plain}" for objective in ("sft", "dpo") for plain in ("", "_plain")}
    assert set(found) == ratios | {"memory_over_trl", "memory_mb", "trl_settings", "cpu"}
    assert found["sft_over_trl"]["0.6M"]["sums"] > 1
    assert found["cpu"]["dpo_over_trl"]["0.6M"]["sums"] > 1
    assert found["memory_over_trl"]["sft"] < 1
