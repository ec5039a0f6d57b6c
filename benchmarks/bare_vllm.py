"""vLLM alone, for `generate.py --vllm`: run by an interpreter that has it, a pass for every line on standard input.

    python benchmarks/bare_vllm.py POLICY PROMPTS.json N MAX_TOKENS ENGINE_ARGUMENTS.json

Prints {"ready": true}, then after each pass its tokens and wall and CPU seconds: what a user's own script would do to
get texts, token ids and log-probabilities of seeded completions.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Load, then time a pass a line."""
    from vllm import LLM, SamplingParams

    policy, prompts, n, max_tokens, arguments = sys.argv[1:]
    texts = json.loads(Path(prompts).read_text())
    llm = LLM(model=policy, **json.loads(Path(arguments).read_text()))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        sampling = [
            SamplingParams(n=int(n), temperature=1.0, max_tokens=int(max_tokens), logprobs=0, seed=int(line) + i)
            for i in range(len(texts))
        ]
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = llm.generate(texts, sampling, use_tqdm=False)
        tokens = sum(len(c.token_ids) for o in outputs for c in o.outputs)
        took = {"tokens": tokens, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
