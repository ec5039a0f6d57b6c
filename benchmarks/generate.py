"""Tokens per second of the hf engine, of transformers' own `generate`, and of vLLM bare and through Strop.

    python benchmarks/generate.py [policy directory] [--rows 64 128 256 512] [--generate] [--vllm]

Without a directory the default base policy is pretrained first, into a temporary folder. Times are CPU seconds, so
that a busy machine changes them less; one thread, but for vLLM. vLLM's two sides take turns on the same prompts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from strop.core.engine import Request, Sampling
from strop.core.seeds import derive
from strop.plugins.base.pretrained_char import PretrainedChar, pretrained_char
from strop.plugins.engines.hf import Hf, hf
from strop.plugins.tasks.chain_arithmetic import ChainArithmetic, heldout_problems, score_answer

SAMPLING = Sampling(max_tokens=96)


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, nargs="?")
    parser.add_argument("--n", type=int, default=8, help="samples of each of the 600 held-out problems")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256, 512], help="batch_rows to try")
    parser.add_argument("--problems", type=int, default=600, help="problems, for vLLM")
    parser.add_argument("--vllm", action="store_true", help="time vLLM bare, and through Strop")
    parser.add_argument("--passes", type=int, default=3, help="passes of each side, for vLLM; the best one counts")
    parser.add_argument("--generate", action="store_true", help="also time transformers' generate")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        policy = chosen.policy or pretrained(Path(folder))
        for rows in chosen.rows:
            engine_line(policy, chosen.n, rows)
        if chosen.generate:
            generate_line(policy)
        if chosen.vllm:
            vllm_lines(policy, chosen.n, chosen.problems, chosen.passes)


def pretrained(folder: Path) -> Path:
    """The default base policy, and how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = pretrained_char(PretrainedChar(), directory=folder / "base", seed=0, progress=lambda *_: None)
    print(f"pretraining: {time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} CPU s")
    return made


def engine_line(policy: Path, n: int, rows: int) -> None:
    """Speed, and how well the policy does."""
    engine = hf(Hf(device="cpu", batch_rows=rows), directory=policy, threads=1)
    problems = heldout_problems(ChainArithmetic())
    requests = [Request(prompt=p.prompt, seeds=tuple(derive(0, p.prompt, i) for i in range(n))) for p in problems]
    engine.sample(requests[:20], SAMPLING)
    wall, cpu = time.perf_counter(), time.process_time()
    completions = engine.sample(requests, SAMPLING)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(len(c.token_ids) for group in completions for c in group)
    solved = [
        [score_answer(p, c.text).verdict == "pass" for c in group]
        for p, group in zip(problems, completions, strict=True)
    ]
    one, best = sum(map(sum, solved)) / (n * len(problems)), sum(map(any, solved)) / len(problems)
    print(
        f"batch_rows {rows:4}: {tokens / cpu:7,.0f} tokens per CPU s ({tokens / wall:,.0f} per s), "
        f"{tokens:,} tokens, pass@1 {one:.3f}, pass@{n} {best:.3f}"
    )


def generate_line(policy: Path, batch: int = 64) -> None:
    """transformers' `generate` on the same prompts once each, a length at a time, so that none is padded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    prompts = sorted((p.prompt for p in heldout_problems(ChainArithmetic())), key=len)
    tokens, cpu = 0, time.process_time()
    while prompts:
        same = [p for p in prompts[:batch] if len(p) == len(prompts[0])]
        prompts = prompts[len(same) :]
        ids = tokenizer(same, return_tensors="pt")["input_ids"]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=96, pad_token_id=0
        )
        tokens += int((out[:, ids.shape[1] :] != 0).sum())
    print(f"transformers generate, batch {batch}: {tokens / (time.process_time() - cpu):,.0f} tokens per CPU s")


def vllm_lines(policy: Path, n: int, count: int, passes: int) -> None:
    """vLLM by a script of its own and through Strop, in turns; the ratio of the best passes."""
    import psutil

    from strop.plugins.engines._vllm_process import find_python
    from strop.plugins.engines.vllm import Vllm, vllm

    prompts = [p.prompt for p in heldout_problems(ChainArithmetic())][:count]
    threads = len(psutil.Process().cpu_affinity())
    engine = vllm(Vllm(), directory=policy, threads=threads)
    child = psutil.Process(engine.processes[0].process.pid)
    arguments = engine._arguments()
    shared = {"logprobs_mode", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "disable_log_stats", "seed"}
    kept = arguments["cpu"] | {k: v for k, v in arguments["any"].items() if k in shared}
    passed: dict[str, list[tuple[int, float, float]]] = {"bare": [], "strop": []}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "prompts.json", Path(folder) / "arguments.json"]
        files[0].write_text(json.dumps(prompts))
        files[1].write_text(json.dumps(kept))
        script = Path(__file__).with_name("bare_vllm.py")
        settings = [str(policy), str(files[0]), str(n), str(SAMPLING.max_tokens), str(files[1])]
        with subprocess.Popen(
            [find_python(""), str(script), *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**psutil.Process().environ(), **engine._environment(None)},
        ) as bare:
            assert bare.stdin is not None
            assert bare.stdout is not None
            if not any("ready" in line for line in bare.stdout):
                raise SystemExit("the bare vLLM script has failed; run it by hand to see why")
            for number in range(passes + 1):  # the first one warms up
                bare.stdin.write(f"{1000 * number}\n")
                bare.stdin.flush()
                took = json.loads(bare.stdout.readline())
                passed["bare"].append((took["tokens"], took["wall"], took["cpu"]))
                requests = [Request(prompt=p, seeds=tuple(derive(number, p, i) for i in range(n))) for p in prompts]
                before, wall, cpu = sum(child.cpu_times()[:2]), time.perf_counter(), time.process_time()
                found = engine.sample(requests, SAMPLING)
                tokens = sum(len(c.token_ids) for group in found for c in group)
                cpu = time.process_time() - cpu + sum(child.cpu_times()[:2]) - before
                passed["strop"].append((tokens, time.perf_counter() - wall, cpu))
            bare.stdin.close()
    engine.close()
    best = {side: [max(t[0] / t[k] for t in times[1:]) for k in (1, 2)] for side, times in passed.items()}
    for side, (per_s, per_cpu) in best.items():
        print(f"vllm {side:5}: {per_s:7,.0f} tokens per s, {per_cpu:7,.0f} per CPU s, {passed[side][-1][0]:,} tokens")
    print(f"vllm_over_bare: {best['strop'][0] / best['bare'][0]:.3f} (CPU {best['strop'][1] / best['bare'][1]:.3f})")


if __name__ == "__main__":
    main()
