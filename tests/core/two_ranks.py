"""Trains pickled jobs one after the other in two processes: python two_ranks.py JOBS.pickle [STOP_AFTER_STEP].

Stopped so, the first process ends with code 3 right after its progress was told; the other one is then killed.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path


def together(jobs, folder, stop_after=0):
    """Run them; the exit code of the first process."""
    folder.mkdir(parents=True)
    path = folder / "jobs.pickle"
    path.write_bytes(pickle.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, str(path), str(stop_after)]
    both = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    try:
        return both[0].wait(timeout=300)
    finally:
        if stop_after:
            both[1].kill()
        both[1].wait(timeout=60)


def main(path, stop_after, rank):
    from strop.core.trainer.ranks import Ranks, joined
    from strop.core.trainer.train import train

    def progress(told):
        if told["step"] == stop_after:
            os._exit(3)

    with joined(rank, 2, path.with_name("meeting"), "cpu"):
        for job in pickle.loads(path.read_bytes()):
            train(job, progress, Ranks(rank, 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
