"""Policies to try an engine on, transformers alone to hold it against, and checks that hold for every engine."""

import math
from pathlib import Path

import numpy as np
import torch
from tiny_llama import write_character_llama

from strop.core.chars import VOCABULARY, character_tokenizer
from strop.core.engine import Request, Sampling
from strop.plugins.engines.hf import Hf, hf

EOS = VOCABULARY.index("<eos>")
CONTEXT = 288
PROMPTS = ["1+2=", "3*4+5=", "7-1=", "2+2+2+2+2=", "9="]
LONG = "".join(str(i % 10) for i in range(150))
"""Longer than a block of the prefix cache, which holds 128 tokens on CPU."""


def make_policy(directory: Path, seed: int, tied: bool = True) -> Path:
    """A random model whose next-token distributions are neither flat nor certain; vLLM wants heads of 32."""

    def change(model) -> None:
        for name, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
            if "embed" in name:
                weight.mul_(2)

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 1, "tie_word_embeddings": tied}
    tokens = {"bos_token_id": None, "pad_token_id": 0}
    return write_character_llama(directory, CONTEXT, seed=seed, change=change, **shape, **tokens)


def make_adapter(
    base: Path, directory: Path, seed: int, rank: int = 4, modules: str | list[str] = "all-linear"
) -> Path:
    """A LoRA adapter that changes a lot."""
    import peft
    import transformers

    from strop.core.trainer.policy import quiet

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=rank, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM")
    with quiet():
        adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    character_tokenizer(CONTEXT).save_pretrained(directory)
    return directory


def requests(n: int, prompts: list[str] = PROMPTS) -> list[Request]:
    return [Request(prompt=p, seeds=tuple(1000 * i + j for j in range(n))) for i, p in enumerate(prompts)]


def ids_of(text: str) -> list[int]:
    return [VOCABULARY.index(c) for c in text]


class Plain:
    """transformers alone."""

    def __init__(self, directory: Path) -> None:
        from strop.core.trainer.policy import load_model

        self.model = load_model(directory)[0].eval()

    def logits(self, ids: list[int]) -> np.ndarray:
        """[T, V] in float64."""
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].double().numpy()

    def logps(self, prompt: str, completion: list[int], sampling: Sampling) -> np.ndarray:
        """[T] under the tempered, truncated distribution."""
        rows = self.logits(ids_of(prompt) + completion)[len(prompt) - 1 : -1]
        return np.array([math.log(truncated(row, sampling)[t]) for row, t in zip(rows, completion, strict=True)])


def truncated(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Temperature, min-p, top-k, then top-p of what is left, the slow and obvious way."""
    p = np.exp((logits - logits.max()) / sampling.temperature)
    p[p < sampling.min_p] = 0
    p /= p.sum()
    order = np.argsort(-p, kind="stable")[: sampling.top_k or None]
    kept = np.zeros_like(p)
    mass, total = 0.0, p[order].sum()
    for i in order:
        if mass >= sampling.top_p:
            break
        kept[i] = p[i]
        mass += p[i] / total
    return kept / kept.sum()


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Statistic over cells of at least 5 expected, in standard deviations above its mean."""
    big = expected >= 5
    cells = [*zip(observed[big], expected[big], strict=True), (observed[~big].sum(), expected[~big].sum())]
    statistic = sum((o - e) ** 2 / e for o, e in cells if e > 0)
    freedom = sum(e > 0 for _, e in cells) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def check(found, asked, directory, sampling, atol=2e-4):
    """Log-probabilities are those of the policy in `directory`."""
    plain = Plain(directory)
    for request, completions in zip(asked, found, strict=True):
        for completion in completions:
            expected = plain.logps(request.prompt, completion.token_ids, sampling)
            np.testing.assert_allclose(completion.logps, expected, atol=atol)


def check_frequencies(engine, directory: Path, sampling: Sampling, n: int) -> None:
    """First tokens sampled are spread as the policy's tempered, truncated distribution has it."""
    prompt = "2+2+2+2+2="
    (completions,) = engine.sample([Request(prompt=prompt, seeds=tuple(range(n)))], sampling)
    p = truncated(Plain(directory).logits(ids_of(prompt))[-1], sampling)
    observed = np.bincount([c.token_ids[0] for c in completions], minlength=64)
    assert observed[p == 0].sum() == 0
    assert abs(chi_square(observed, p * n)) < 4


def check_greedy(engine, directory: Path) -> None:
    """Without chance the engine says what hf says."""
    sampling = Sampling(temperature=0, max_tokens=15)
    reference = hf(Hf(device="cpu"), directory=directory, threads=1).sample(requests(1), sampling)
    for (mine,), (theirs,) in zip(engine.sample(requests(1), sampling), reference, strict=True):
        assert (mine.token_ids, mine.text, mine.logps) == (theirs.token_ids, theirs.text, theirs.logps)


def check_stop_strings(engine, max_tokens: int) -> None:
    """A stop string ends a completion and is kept out of its text."""
    free = engine.sample(requests(12), Sampling(max_tokens=max_tokens))
    stop = next(c for cs in free for c in cs if len(c.text) >= 12).text[5:7]
    stopped = engine.sample(requests(12), Sampling(max_tokens=max_tokens, stop=(stop, "never")))
    met = 0
    for before, after in zip((c for cs in free for c in cs), (c for cs in stopped for c in cs), strict=True):
        at = before.text.find(stop)
        if at < 0:
            assert after.token_ids == before.token_ids
            continue
        met += 1
        assert (after.text, after.finish_reason) == (before.text[:at], "stop")
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        assert len(after.logps) == len(after.token_ids)
        assert "".join(VOCABULARY[i] for i in after.token_ids).endswith(stop)
    assert met >= 1
