"""The sides of `generate.py`: each takes prompts and returns how many tokens it sampled, in what time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from generate_policies import Subject

from strop.core.engine import Request, Sampling
from strop.core.seeds import derive
from strop.core.workers import Job, Workers
from strop.plugins.engines.hf import Hf, hf
from strop.plugins.engines.vllm import Vllm, vllm

CORES = len(psutil.Process().cpu_affinity())


@dataclass(frozen=True)
class Pass:
    """One pass over the prompts."""

    tokens: int
    wall_s: float
    cpu_s: float


Side = Callable[..., Pass]
"""side(prompts, n, seed), and the batch size of `generate`"""
Share = tuple[Subject, list[str], int, int, int, int]
"""Subject, prompts, n, seed, threads, batch size"""


@contextlib.contextmanager
def in_workers(job: Job, subject: Subject, processes: int, threads: int) -> Iterator[Side]:
    """A side that deals the prompts out to so many workers, as the loop does."""
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(processes, Path(folder), threads=threads)

        def side(prompts: list[str], n: int, seed: int, batch: int = 0) -> Pass:
            wall = time.perf_counter()
            shares = [(subject, prompts[i::processes], n, seed, threads, batch) for i in range(processes)]
            done = [result for _, result in workers.run(job, shares)]
            return Pass(sum(t for t, _ in done), time.perf_counter() - wall, sum(cpu for _, cpu in done))

        try:
            yield side
        finally:
            workers.release()


_LOADED: dict[Path, Any] = {}
"""In a worker: what samples."""


def sampled(argument: Share, report: Callable[[Any], None]) -> tuple[int, float]:
    """By the hf engine: how many tokens, and CPU seconds without loading."""
    subject, prompts, n, seed, threads, _ = argument
    if subject.directory not in _LOADED:
        _LOADED[subject.directory] = hf(Hf(device="cpu"), directory=subject.directory, threads=threads)
    cpu = time.process_time()
    found = _LOADED[subject.directory].sample(requests(prompts, n, seed), Sampling(max_tokens=subject.max_tokens))
    return sum(len(c.token_ids) for group in found for c in group), time.process_time() - cpu


def generated(argument: Share, report: Callable[[Any], None]) -> tuple[int, float]:
    """By transformers' `generate` as its documentation has it: in the order given, padded on the left."""
    subject, prompts, n, seed, threads, batch = argument
    if subject.directory not in _LOADED:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        model = AutoModelForCausalLM.from_pretrained(subject.directory).eval()
        _LOADED[subject.directory] = model, AutoTokenizer.from_pretrained(subject.directory, padding_side="left")
    model, tokenizer = _LOADED[subject.directory]
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokens, cpu = 0, time.process_time()
    each = max(1, batch // n)
    for at in range(0, len(prompts), each):
        given = tokenizer(prompts[at : at + each], return_tensors="pt", padding=True, return_token_type_ids=False)
        for done in range(0, n, batch):
            out = model.generate(
                **given,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                num_return_sequences=min(n - done, batch),
                max_new_tokens=subject.max_tokens,
            )
            ends = out[:, given["input_ids"].shape[1] :] == model.config.eos_token_id
            tokens += int((ends.cumsum(1) - ends.long() == 0).sum())  # up to the end of sequence, which counts
    return tokens, time.process_time() - cpu


def requests(prompts: list[str], n: int, seed: int) -> list[Request]:
    """Each prompt with n seeds."""
    return [Request(prompt=p, seeds=tuple(derive(seed, p, i) for i in range(n))) for p in prompts]


@contextlib.contextmanager
def served(subject: Subject) -> Iterator[dict[str, Side]]:
    """vLLM through Strop and by a script of its own, with the same arguments."""
    from strop.plugins.engines._vllm_process import find_python

    strop = vllm(Vllm(), directory=subject.directory, threads=CORES)
    child = psutil.Process(strop.processes[0].process.pid)
    arguments = strop._arguments()
    shared = {"logprobs_mode", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "disable_log_stats", "seed"}
    kept = arguments["cpu"] | {k: v for k, v in arguments["any"].items() if k in shared}
    script = Path(__file__).with_name("bare_vllm.py")
    with subprocess.Popen(
        [find_python(""), str(script), str(subject.directory), json.dumps(kept)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**psutil.Process().environ(), **strop._environment(None)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout
        if not any("ready" in line for line in answers):
            raise SystemExit("the bare vLLM script has failed; run it by hand to see why")

        def bare(prompts: list[str], n: int, seed: int) -> Pass:
            to.write(json.dumps({"prompts": prompts, "n": n, "seed": seed, "max_tokens": subject.max_tokens}) + "\n")
            to.flush()
            return Pass(**json.loads(answers.readline()))

        def through(prompts: list[str], n: int, seed: int) -> Pass:
            before, wall, cpu = sum(child.cpu_times()[:2]), time.perf_counter(), time.process_time()
            found = strop.sample(requests(prompts, n, seed), Sampling(max_tokens=subject.max_tokens))
            cpu = time.process_time() - cpu + sum(child.cpu_times()[:2]) - before
            tokens = sum(len(c.token_ids) for group in found for c in group)
            return Pass(tokens, time.perf_counter() - wall, cpu)

        try:
            yield {"bare vllm": bare, "vllm": through}
        finally:
            to.close()
            strop.close()
