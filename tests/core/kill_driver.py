"""Runs a recipe and kills its own process with SIGKILL at one point: python kill_driver.py RECIPE LAKE RUN_ID POINT.

POINT: `commit:before:N` or `commit:after:N` (the N-th commit this process makes), `event:KIND:STAGE:ROUND` (when the
loop reports it: stage_start, progress, stage_done, round_done), or `never`.
"""

import os
import signal
import sys
from pathlib import Path

from strop.core.recipe import load
from strop.core.round import run_loop
from strop.storage.lake import Lake


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm_commits(when: str, number: int) -> None:
    plain, made = Lake.commit, [0]

    def commit(self, *arguments, **keywords):
        made[0] += 1
        if made[0] == number and when == "before":
            die()
        result = plain(self, *arguments, **keywords)
        if made[0] == number and when == "after":
            die()
        return result

    Lake.commit = commit


def main(recipe: str, lake: str, run_id: str, point: str) -> None:
    how, *rest = point.split(":")
    watch = tuple(rest) if how == "event" else None
    if how == "commit":
        arm_commits(rest[0], int(rest[1]))

    def on_event(event):
        if watch == (event.kind, event.stage, str(event.round)):
            die()

    summary = run_loop(load(recipe), lake=Path(lake), run_id=run_id, on_event=on_event)
    print(summary.champion_hash)


if __name__ == "__main__":
    main(*sys.argv[1:])
