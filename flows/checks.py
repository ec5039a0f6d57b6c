"""What `strop doctor` looks at: one function a check, each saying what it found and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from strop.storage.errors import StropError
from strop.storage.place import place_of


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    level: str
    """'ok', 'warn' (works, but) or 'fail'."""
    found: str
    do: str = ""


def run_all(lake: Path) -> list[Check]:
    """Every check in order; one that breaks is itself a finding."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", python),
        ("versions", versions),
        ("duckdb extensions", lambda: extensions(lake)),
        ("disk", lambda: disk(lake)),
        ("cpu", cpu),
        ("torch", torch_threads),
        ("gpu", gpu),
        ("prefect server", lambda: prefect_server(lake)),
        ("lake", lambda: lake_opens(lake)),
        ("recipes", recipes),
    ]
    found = []
    for name, check in checks:
        try:
            found.append(check())
        except Exception as error:
            found.append(Check(name, "fail", f"{type(error).__name__}: {error}"))
    return found


def python() -> Check:
    """Which Python, on a system with fork servers and file locks."""
    text = f"{sys.version.split()[0]} on {sys.platform} ({sys.executable})"
    if not sys.platform.startswith("linux"):
        return Check("python", "warn", text, "Strop is tested on Linux; on Windows use WSL")
    return Check("python", "ok", text)


def versions() -> Check:
    """Every requirement of the distribution, extras aside, is installed in a version it allows."""
    from packaging.requirements import Requirement

    wrong, seen = [], 0
    for line in metadata.requires("strop") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        seen += 1
        try:
            have = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            wrong.append(f"{wanted.name} is {have}, wanted {wanted.specifier}")
    if wrong:
        return Check("versions", "fail", "; ".join(wrong), "pip install --upgrade strop")
    return Check("versions", "ok", f"strop {metadata.version('strop')}, {seen} requirements as pinned")


def extensions(lake: Path) -> Check:
    """DuckLake and what the lake's catalog and data need load from their wheels, offline."""
    import duckdb

    from strop.storage.extensions import connect

    try:
        place = place_of(lake)
        connect(place).close()
    except StropError as error:
        return Check("duckdb extensions", "fail", str(error), "pip install --force-reinstall strop")
    loaded = f"ducklake, {'postgres' if place.catalog else 'sqlite'}{' and httpfs' if place.data else ''}"
    return Check("duckdb extensions", "ok", f"{loaded} load into DuckDB {duckdb.__version__}")


def disk(lake: Path) -> Check:
    """Room where the lake is: 50k rollouts of a real model take about 120 MB, a checkpoint what the model weighs."""
    folder = next(p for p in [lake.resolve(), *lake.resolve().parents] if p.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if free < 1:
        return Check("disk", "fail", f"{free:.1f} GB free at {folder}", "free some, or put the lake elsewhere: --lake")
    if free < 10:
        return Check("disk", "warn", f"{free:.1f} GB free at {folder}", "a checkpoint of a 1B model takes 2 GB a round")
    return Check("disk", "ok", f"{free:.0f} GB free at {folder}")


def cpu() -> Check:
    """Cores this process may use, and the memory it can get."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().available / 1e9
    text = f"{cores} core{'s' * (cores != 1)}, {memory:.1f} GB of memory free"
    if memory < 2:
        return Check("cpu", "warn", text, "each worker takes about 0.5 GB: set `workers: 1` in the recipe")
    return Check("cpu", "ok", text)


def torch_threads() -> Check:
    """torch imports; Strop gives each worker its threads itself. In a process of its own: it takes seconds."""
    code = "import torch; print(torch.__version__, torch.get_num_threads(), torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("torch", "fail", f"does not import: {last}", "pip install --force-reinstall torch")
    version, threads, cuda = done.stdout.split()
    limits = ", ".join(f"{k}={v}" for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if (v := os.environ.get(k)))
    text = f"{version}, {threads} threads" + (f" ({limits})" if limits else "") + (", CUDA" if cuda == "True" else "")
    return Check("torch", "ok", text)


def gpu() -> Check:
    """What nvidia-smi says; none is fine."""
    if shutil.which("nvidia-smi") is None:
        return Check("gpu", "ok", "none: recipes run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return Check("gpu", "warn", "nvidia-smi fails", "check the driver: nvidia-smi")
    return Check("gpu", "ok", "; ".join(done.stdout.strip().splitlines()) + " free")


def prefect_server(lake: Path) -> Check:
    """The project's server, or the one of PREFECT_API_URL."""
    from strop.flows import server

    state, info = server.status(server.home_of(lake))
    at = f" at {info.ui}" if info else ""
    if state == "unreachable":
        return Check(
            "prefect server", "fail", f"PREFECT_API_URL{at} does not answer", "start it, or unset PREFECT_API_URL"
        )
    if state == "stale":
        return Check("prefect server", "ok", "not running (the last one died); `strop run` starts one")
    if state == "starting":
        return Check("prefect server", "warn", f"its process lives but does not answer{at}", "strop server stop")
    return Check("prefect server", "ok", f"running{at}" if info else "not running; `strop run` starts one")


def lake_opens(lake: Path) -> Check:
    """The lake opens and answers; none yet is fine."""
    if not place_of(lake).exists:
        return Check("lake", "ok", f"none at {lake} yet; `strop run` makes it")
    from strop.flows import runs

    try:
        found = runs.states(lake)
    except StropError as error:
        return Check("lake", "fail", str(error), "name another with --lake")
    return Check("lake", "ok", f"{lake}: {len(found)} run{'s' * (len(found) != 1)}")


def recipes() -> Check:
    """Every shipped recipe loads with the plugins that are installed."""
    from strop.core import recipe

    wrong = []
    for name in recipe.shipped():
        try:
            recipe.load(name)
        except StropError as error:
            wrong.append(str(error))
    if wrong:
        return Check("recipes", "fail", "; ".join(wrong), "pip install --force-reinstall strop")
    return Check("recipes", "ok", f"{len(recipe.shipped())} shipped recipes load")
