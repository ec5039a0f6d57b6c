"""vLLM alone, for `generate.py --vllm`: run by an interpreter that has it, a pass for every line on standard input.

    python benchmarks/bare_vllm.py POLICY ENGINE_ARGUMENTS

A line is {"prompts": [...], "n": 8, "seed": 0, "max_tokens": 96}. Prints {"ready": true}, then after each pass its
tokens and wall and CPU seconds: what a user's own script would do to get texts, token ids and log-probabilities of
seeded completions.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Load, then time a pass a line."""
    from vllm import LLM, SamplingParams

    policy, arguments = sys.argv[1:]
    llm = LLM(model=policy, **json.loads(arguments))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        n, most, seed = asked["n"], asked["max_tokens"], 1000 * asked["seed"]
        sampling = [
            SamplingParams(n=n, temperature=1.0, max_tokens=most, logprobs=0, seed=seed + i)
            for i in range(len(asked["prompts"]))
        ]
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = llm.generate(asked["prompts"], sampling, use_tqdm=False)
        tokens = sum(len(c.token_ids) for o in outputs for c in o.outputs)
        took = {"tokens": tokens, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
