"""Samples with vLLM in a child process: for local GPUs, and on CPU with vLLM's CPU build.

The child may have an environment of its own (`python`); it sees token ids alone. It is started when the policy is
loaded and gone when the engine is closed, so training finds the memory free. A policy that is a LoRA adapter is swapped
in without a reload, other weights of the same shape are loaded into the live child.

Source: Kwon et al. 2023, 2309.06180 (paged attention).
Left out: entropy and self-certainty, which need every token's probability and are null; hidden states and next logits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from strop.core.engine import Completion, Progress, Request, Sampling
from strop.core.plugin import Config, stage
from strop.core.workers import SPIN
from strop.plugins.engines._adapter import ADAPTER, adapter_of
from strop.storage.errors import StageError

if TYPE_CHECKING:
    from strop.plugins.engines._texts import Texts
    from strop.plugins.engines._vllm_process import VllmProcess

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank of an adapter."""
_HEAD = "lm_head"
"""The output layer; vLLM gives no log-probabilities of prompts where an adapter may change it."""
_NAMES = frozenset({"_name_or_path", "transformers_version"})
"""Entries of a config.json that say nothing of the shape."""
_LABELS = 100
"""Most log-probabilities asked for at one place; vLLM allows 128."""


class Vllm(Config):
    """Where and how the policy runs."""

    python: str = ""
    """Interpreter that has vllm. Empty = $STROP_VLLM_PYTHON, else this one, else the one in `.venv-vllm`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto = float32 on CPU; on an accelerator the checkpoint's, float32 ones in half precision."""
    tensor_parallel: PositiveInt = 1
    """GPUs a replica is spread over."""
    data_parallel: PositiveInt = 1
    """Replicas, each a child process with its own GPUs (or its share of the threads)."""
    memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that weights and cache may take."""
    cache_gb: PositiveFloat | None = None
    """Memory for keys and values of a replica. None = what `memory` leaves; 1 GB on CPU."""
    context: PositiveInt | None = None
    """Longest sequence, where the policy's own leaves the cache no room; None = the policy's."""
    batch_rows: PositiveInt = 256
    """Most completions sampled at a time."""
    prefix_caching: bool = True
    """Compute what prompts have in common once; whole blocks of tokens only (16 on a GPU, 128 on CPU)."""
    compile: bool | None = None
    """Compile the model and capture graphs when it is loaded. None = on a GPU."""
    chat_template: Literal["auto", "off"] = "auto"
    """auto = the tokenizer's own where it has one; off = prompts as they are."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm.LLM`, e.g. {quantization: fp8}; they win over the above."""


@stage("engine")
def vllm(config: Vllm, *, directory: Path, threads: int) -> VllmEngine:
    """The policy, loaded in its child process."""
    return VllmEngine(config, directory, threads)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a policy's weights are."""

    base: Path
    adapter: Path | None = None
    rank: int = 0
    """Of the adapter."""
    modules: frozenset[str] = frozenset()
    """Names of the layers it changes."""


def locate(directory: Path) -> Place:
    """The checkpoint itself, or the one that its adapter belongs to. Raises StageError when that one is missing."""
    found = adapter_of(directory)
    if found is None:
        return Place(directory)
    adapter, base = found
    modules = adapter["target_modules"]
    if not isinstance(modules, list):
        raise StageError(
            f"{directory / ADAPTER} names its target_modules by a pattern, {modules!r}; "
            "vLLM needs a list of layer names"
        )
    names = frozenset(module.rsplit(".", 1)[-1] for module in modules)
    return Place(base, directory, max([adapter["r"], *adapter.get("rank_pattern", {}).values()]), names)


class VllmEngine:
    """See `strop.core.engine.Engine`."""

    name = "vllm"
    capabilities = frozenset({"sample", "score", "reload"})

    def __init__(self, config: Vllm, directory: Path, threads: int) -> None:
        self.config, self.directory, self.threads = config, directory, threads
        self.processes: list[VllmProcess] = []
        self.about: dict[str, Any] = {}
        """Version of vLLM, and the device it runs on."""
        self._adapters: dict[Path, int] = {}
        self.place: Place
        self._rank: int
        self._modules: frozenset[str]
        """What adapters the children have room for."""
        self._start(locate(directory))

    def render(self, prompt: str, messages: Sequence[dict[str, str]] | None = None) -> str:
        """The prompt, or its messages, in the tokenizer's chat template where it has one."""
        return self.texts.render(prompt, messages)

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Completions per request; a prompt that leaves no room for a token gives completions with an error.

        Raises StageError when the policy's logits are not numbers, and when vLLM fails or its process is gone.
        """
        from strop.plugins.engines._texts import unsound

        prompts = self.texts.encode([r.prompt for r in requests])
        refused = [self.texts.refused(len(ids), sampling) for ids in prompts]
        out: list[list[Completion]] = [
            [no] * len(r.seeds) if no is not None else [] for r, no in zip(requests, refused, strict=True)
        ]
        wanted = [i for i, no in enumerate(refused) if no is None]
        before = sum(map(len, out))

        def tell(rollouts: int, tokens: int) -> None:
            if progress is not None:
                progress(before + rollouts, tokens)

        def message(members: list[int]) -> dict[str, Any]:
            asked = []
            for i in members:
                limit = min(sampling.max_tokens, self.texts.context - len(prompts[i]))
                asked += [(prompts[i], seed & (1 << 63) - 1, limit) for seed in requests[i].seeds]
            return {
                "do": "sample",
                "requests": asked,
                "sampling": {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")},
                "ends": sorted({*self.texts.eos, *sampling.stop_token_ids}),
                "stop": self.texts.stop_watch(sampling.stop),
                "adapter": self._adapter(),
            }

        for members, sampled in self._dealt(wanted, message, tell):
            if any(math.isnan(logp) for _, logps in sampled for logp in logps):
                raise unsound(self.directory)
            made = iter(self.texts.completions(sampled, sampling))
            for i in members:
                out[i] = [next(made) for _ in requests[i].seeds]
        return out

    def score(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[list[float]]:
        """Untempered log-probabilities of each continuation's tokens; EOS is not added.

        Pairs that differ in their last token alone, as labels of one prompt do, cost one pass together.
        Raises ValueError for an empty prompt, and for a pair longer than the context.
        """
        encoded = self.texts.encode_pairs(pairs)
        found: list[list[float]] = [[] for _ in pairs]
        groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for i, (prompt, tail) in enumerate(encoded):
            if tail:
                groups.setdefault((tuple([*prompt, *tail][:-1]), len(prompt)), []).append(i)
        items = [
            (list(ids), first, members[at : at + _LABELS])
            for (ids, first), members in groups.items()
            for at in range(0, len(members), _LABELS)
        ]

        def message(asked: list[int]) -> dict[str, Any]:
            lasts = [sorted({encoded[i][1][-1] for i in items[at][2]}) for at in asked]
            asking = [(*items[at][:2], labels) for at, labels in zip(asked, lasts, strict=True)]
            return {"do": "score", "items": asking, "adapter": self._adapter(), "whole": _HEAD not in self._modules}

        for asked, scored in self._dealt(list(range(len(items))), message):
            for at, (given, labels) in zip(asked, scored, strict=True):
                for i in items[at][2]:
                    found[i] = [*given, labels[encoded[i][1][-1]]]
        return found

    def reload(self, directory: Path) -> None:
        """Go on with another policy: in the live children where its shape allows, else in new ones."""
        from strop.plugins.engines._vllm_process import ask

        place = locate(directory)
        self.directory = directory
        fits = place.rank <= self._rank and place.modules <= self._modules
        if place.base != self.place.base:
            fits = self._rank == 0 and place.adapter is None and _shape(place.base) == _shape(self.place.base)
        if not self.processes or not fits:
            self.close()
            self._start(place)
            return
        if place.base != self.place.base:
            message = {"do": "reload", "path": str(place.base)}
            self._safely(lambda: ask(self.processes, [message] * len(self.processes)))
        self.place, self.texts = place, self._texts(place)

    def close(self) -> None:
        """End the children; their memory is free when this returns."""
        processes, self.processes = self.processes, []
        for process in processes:
            process.close()

    def _start(self, place: Place) -> None:
        from strop.plugins.engines._vllm_process import VllmProcess, answers, find_python

        self.place, self.texts = place, self._texts(place)
        self._rank = next((rank for rank in _RANKS if rank >= place.rank), place.rank) if place.adapter else 0
        self._modules = place.modules
        python = find_python(self.config.python)
        for devices in _devices(self.config):
            process = VllmProcess(python, self._arguments(), self._environment(devices))
            self.processes.append(process)
        self.about = self._safely(lambda: answers(self.processes))[0]

    def _texts(self, place: Place) -> Texts:
        from strop.plugins.engines._texts import Texts

        template, context = self.config.chat_template, self.config.context
        return Texts.read(self.directory, place.base, chat_template=template, context=context)

    def _arguments(self) -> dict[str, Any]:
        """Of vllm.LLM: any device's, and what the child adds on CPU and on a GPU."""
        config = self.config
        cache = {} if config.cache_gb is None else {"kv_cache_memory_bytes": int(config.cache_gb * 1e9)}
        lora: dict[str, Any] = {}
        if self._rank:
            lora = {"enable_lora": True, "max_lora_rank": self._rank, "max_loras": 1}
            lora["lora_target_modules"] = sorted(self._modules)
        dtype = {} if config.dtype == "auto" else {"dtype": config.dtype}
        eager = {} if config.compile is None else {"enforce_eager": not config.compile}
        return {
            "cpu": {
                "dtype": "float32",
                "enforce_eager": True,
                "kv_cache_memory_bytes": 10**9,
                "enable_chunked_prefill": False,  # with seeds it fails on CPU: "CPU Generator does not use offset"
            },
            "gpu": {"gpu_memory_utilization": config.memory},
            "any": {
                "model": str(self.place.base),
                "skip_tokenizer_init": True,
                "generation_config": "vllm",
                "logprobs_mode": "processed_logprobs",
                "max_model_len": self.texts.context,
                "max_num_seqs": config.batch_rows,
                "max_num_batched_tokens": max(8192, self.texts.context),
                "enable_prefix_caching": config.prefix_caching,
                "tensor_parallel_size": config.tensor_parallel,
                "disable_log_stats": True,
                "seed": 0,
                **dtype,
                **eager,
                **cache,
                **lora,
                **config.options,
            },
        }

    def _environment(self, devices: str | None) -> dict[str, str]:
        """Of a child. On CPU: its threads, not tied to cores, as several children would be tied to the same."""
        found = {
            "OMP_NUM_THREADS": str(max(1, self.threads // self.config.data_parallel)),
            SPIN[0]: os.environ.get(*SPIN),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
            "HF_HUB_OFFLINE": "1",
        }
        if self.config.tensor_parallel == 1:
            found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the child is the process of its own already
        if devices is not None:
            found["CUDA_VISIBLE_DEVICES"] = devices
        elif not self.config.compile and not _gpus():
            found["TORCHDYNAMO_DISABLE"] = "1"  # saves three seconds of compiling one small function
        return found

    def _adapter(self) -> tuple[int, str] | None:
        """The policy's adapter with a number that no other has in these children."""
        path = self.place.adapter
        if path is None:
            return None
        return self._adapters.setdefault(path, len(self._adapters) + 1), str(path)

    def _dealt(
        self,
        members: list[int],
        message: Callable[[list[int]], dict[str, Any]],
        progress: Progress | None = None,
    ) -> list[tuple[list[int], Any]]:
        """Deal the members out to the children; each child's share, with its answer."""
        from strop.plugins.engines._vllm_process import ask

        if not self.processes:
            raise StageError(f"the engine of {self.directory} is closed")
        count = len(self.processes)
        shares = [members[i::count] for i in range(count)]
        found = self._safely(lambda: ask(self.processes, [message(share) for share in shares], progress))
        return list(zip(shares, found, strict=True))

    def _safely(self, asking: Callable[[], list[Any]]) -> list[Any]:
        """After a failure no child is left half-way through something."""
        try:
            return asking()
        except BaseException:
            self.close()
            raise


def _shape(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    return {key: value for key, value in config.items() if key not in _NAMES}


def _gpus() -> list[str]:
    """What a child may be given, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _devices(config: Vllm) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each replica; None = as it is. Raises StageError when there are too few GPUs."""
    gpus, needed = _gpus(), config.tensor_parallel * config.data_parallel
    if not gpus or config.data_parallel == 1:
        return [None] * config.data_parallel
    if len(gpus) < needed:
        raise StageError(
            f"engine vllm: tensor_parallel {config.tensor_parallel} x data_parallel {config.data_parallel} needs "
            f"{needed} GPUs, and {len(gpus)} can be seen; lower one of them"
        )
    size = config.tensor_parallel
    return [",".join(gpus[i * size : (i + 1) * size]) for i in range(config.data_parallel)]
