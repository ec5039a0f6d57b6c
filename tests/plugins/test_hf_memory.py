"""The hf engine in less memory than it wants: an address space that really ends."""

import json
import subprocess
import sys

import pytest
import torch
from tiny_llama import write_character_llama

from strop.plugins.engines._memory import cache_bytes, out_of_memory
from strop.plugins.engines.hf import Hf, hf

SAMPLE = """
import json, resource, sys
from pathlib import Path
from strop.core.engine import Request, Sampling
from strop.plugins.engines.hf import Hf, hf

directory = Path(sys.argv[1])
requests = [Request(prompt="1+2=" if i % 2 else "12+34=", seeds=(10 * i,)) for i in range(60)]
for megabytes in map(int, sys.argv[2:]):
    engine = hf(Hf(device="cpu", batch_rows=64, cache_gb=8), directory=directory, threads=1)
    engine.sample(requests[:2], Sampling(max_tokens=2))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + megabytes * 2**20 if megabytes else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    prefill, halve, made, prefilled, failed, told, finished = (
        engine.model.prefill, engine._halve, engine._completions, [], [], [], []
    )
    engine.model.prefill = lambda ids, *rest: prefilled.append(len(ids)) or prefill(ids, *rest)
    engine._halve = lambda rows, error: failed.append(rows) or halve(rows, error)
    engine._completions = lambda some, *rest: finished.append(len(some)) or made(some, *rest)
    try:
        found = engine.sample(requests, Sampling(max_tokens=400), lambda *numbers: told.append(numbers))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    else:
        answer = {"ids": [c.token_ids for cs in found for c in cs]}
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    lists = {"prefilled": prefilled, "failed": failed, "told": told[-1:], "finished": sum(finished)}
    print(json.dumps(answer | {"rows": engine.rows} | lists))
    del prefill, made
    engine.close()
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A policy whose keys and values are large and whose completions often end early."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "tie_word_embeddings": False}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 256}
    directory = tmp_path_factory.mktemp("wide")
    return write_character_llama(directory, 600, change=lambda model: model.lm_head.weight.mul_(3), **shape, **heads)


def test_where_memory_runs_out_batches_are_halved_and_nothing_finished_is_sampled_again(wide):
    command = [sys.executable, "-c", SAMPLE, str(wide), "5", "80", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    none, halved, free = map(json.loads, done.stdout.splitlines())
    assert none["error"].startswith("StageError: memory ran out while the policy in")
    assert (free["rows"], free["failed"], free["prefilled"]) == (64, [], [32, 28])
    assert halved["rows"] == halved["failed"][-1] // 2
    assert halved["ids"] == free["ids"]
    assert halved["told"] == free["told"] == [[60, sum(map(len, free["ids"]))]]
    assert halved["finished"] == free["finished"] == 60
    begun_again = sum(halved["prefilled"]) - 60
    assert 0 < begun_again < sum(halved["failed"])


def test_other_errors_are_not_taken_for_want_of_memory():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_cache_takes_a_share_of_what_is_free_and_the_settings_win(wide):
    import psutil

    engine = hf(Hf(device="cpu"), directory=wide, threads=1)
    a_token = 2 * 2 * 8 * 256 * 4
    assert 0.05 * psutil.virtual_memory().available < engine.cached_tokens * a_token < psutil.virtual_memory().total / 3
    assert cache_bytes(torch.device("cpu")) <= psutil.virtual_memory().total / 4
    assert hf(Hf(device="cpu", cache_gb=0.5), directory=wide, threads=1).cached_tokens == 5e8 // a_token
    assert (engine.rows, hf(Hf(device="cpu", batch_rows=9), directory=wide, threads=1).rows) == (1024, 9)
