"""What the default recipe learns: held-out pass@1 round by round over seeds, and the same with shuffled verdicts.

    python benchmarks/default_loop.py --lake /tmp/learn [--seeds 3] [--json]

The lake keeps every run, and the same line resumes. Shuffled runs have no gate: otherwise the champion would stay the
base and show nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from strop.core.recipe import RECIPES, Recipe, load
from strop.core.round import run_loop
from strop.storage.lake import open_lake
from strop.storage.tables import Metric, Policy


def shuffled_recipe(folder: Path) -> Path:
    """The default recipe with shuffled verdicts and without its gate."""
    text = (RECIPES / "default.yaml").read_text()
    plugin = Path(__file__).with_name("shuffled.py").resolve()
    text = text.replace("- filter: correct", f"- filter: {plugin}:shuffled").replace("  - gate: bootstrap_better\n", "")
    path = folder / "shuffled.yaml"
    path.write_text(text.replace("name: default", "name: shuffled"))
    return path


def measured(recipe: Recipe, lake: Path, run_id: str) -> dict[str, object]:
    """Run it, or go on with it, and read what it learnt."""
    summary = run_loop(recipe, lake=lake, run_id=run_id)
    with open_lake(lake, read_only=True) as opened:
        rows = opened.rows(Metric, "run_id = ? AND slice = 'heldout'", [run_id])
        policies = opened.rows(Policy, "run_id = ?", [run_id])
    by_name: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.round):
        by_name.setdefault(row.name, []).append(round(row.value or 0.0, 3))
    champion = next(p.round for p in policies if p.status == "champion")
    return {"run": run_id, "champion_round": champion, "seconds": round(summary.seconds, 1), **by_name}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [measured(load("default", seed=s), options.lake, f"default-{s}") for s in range(options.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        recipe = load(str(shuffled_recipe(Path(folder))))
        found.append(measured(recipe, options.lake, "shuffled-0"))
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        print(row["run"], "pass@1", row["pass@1"], "pass@8", row["pass@8"], "diversity", row["diversity"])
    gains = [row["pass@1"][row["champion_round"]] - row["pass@1"][0] for row in found[:-1]]  # type: ignore[index, operator]
    print(f"gain of the champion: mean {statistics.mean(gains):.3f}, {min(gains):.3f} to {max(gains):.3f}")


if __name__ == "__main__":
    main()
