"""What each shipped method learns at one rollout budget: docs/methods.md, its figures and its picture.

    python benchmarks/learn.py --lake /tmp/learn [--methods grpo,dpo] [--seeds 3] [--set train.lr=1e-4] [--docs DIR]
    python benchmarks/learn.py --page

One run after the other: seed 0 of every method, then seed 1, and so on. The same line goes on where it was stopped; a
run whose figures are in methods.json is not run again unless its recipe has changed. `--page` writes the page from the
figures there are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from learn_parts.figures import Run, measured, methods, read, write
from learn_parts.page import page
from learn_parts.picture import svg

from strop.core.recipe import load
from strop.storage.errors import did_you_mean

DOCS = Path(__file__).parent.parent / "docs"


def pages(runs: list[Run]) -> dict[str, str]:
    """File -> what stands in it."""
    return {"methods.md": page(runs), "methods.svg": svg(runs)}


def learn(names: list[str], seeds: int, lake: Path, docs: Path, overrides: list[str]) -> None:
    """Run what has not been run, and write figures, page and picture after each run."""
    docs.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name in names:
            recipe = load(name, overrides=overrides, seed=seed)
            others, this = [], None
            for run in read(docs / "methods.json"):
                if (run.method, run.seed) == (name, seed):
                    this = run
                else:
                    others.append(run)
            if this is None or this.recipe != recipe.identity() or this.rounds < recipe.rounds:
                write(docs / "methods.json", [*others, measured(recipe, lake)])
                publish(docs)


def publish(docs: Path) -> None:
    """Write the page and the picture from the figures."""
    for name, text in pages(read(docs / "methods.json")).items():
        (docs / name).write_text(text)


def main() -> None:
    """Run the methods, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, help="keeps every run")
    parser.add_argument("--methods", default=",".join(methods()), help="names, with commas; all of them without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, as strop run has it")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where figures, page and picture are")
    parser.add_argument("--page", action="store_true", help="run nothing")
    options = parser.parse_args()
    names = options.methods.split(",")
    for name in names:
        if name not in methods():
            parser.error(f"no method {name!r}{did_you_mean(name, methods())}")
    if options.page:
        publish(options.docs)
    elif options.lake is None:
        parser.error("name a folder for the runs, --lake /tmp/learn, or write the --page alone")
    else:
        learn(names, options.seeds, options.lake, options.docs, options.overrides)


if __name__ == "__main__":
    main()
