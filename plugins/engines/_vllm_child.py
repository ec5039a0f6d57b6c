"""The process that holds vLLM: run as a script by an interpreter that has it, it answers messages until its pipe ends.

Imports the standard library and vllm alone, since its environment may lack everything else Strop needs; nothing but
token ids comes in and goes out, so that the two environments' tokenizers cannot differ. A message is a dict; the
first is the arguments of `vllm.LLM`. An answer is ("progress", rollouts, tokens), ("done", value) or ("error", text).
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TELL_S = 0.25
"""Between two words on progress."""


def main() -> None:
    """Serve until the parent closes its end, or is gone."""
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.realpath(p) != here]  # beside this file lies another `vllm`
    inbox = Connection(int(sys.argv[1]), writable=False)
    outbox = Connection(int(sys.argv[2]), readable=False)
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    arguments = inbox.recv()
    threading.Thread(target=_listen, args=(inbox, messages), daemon=True).start()
    try:
        served = _Served(arguments)
    except BaseException as error:
        traceback.print_exc()
        outbox.send(("error", f"{type(error).__name__}: {error}"))
        return
    outbox.send(("done", served.about()))
    while True:
        message = messages.get()
        try:
            answer = getattr(served, message.pop("do"))(outbox.send, **message)
        except Exception as error:
            traceback.print_exc()
            outbox.send(("error", f"{type(error).__name__}: {error}"))
        else:
            outbox.send(("done", answer))


def _listen(inbox: Connection, messages: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Nobody is left to answer when the pipe ends: the whole process group goes, workers of vLLM's included."""
    try:
        while True:
            messages.put(inbox.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


class _Served:
    """A loaded model."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            arguments = {**arguments["cpu"], **arguments["any"]}
        else:
            arguments = {**arguments["gpu"], **arguments["any"]}
        self.llm = LLM(**arguments)
        self.platform = current_platform.device_name
        self.runs = 0

    def about(self) -> dict[str, Any]:
        """What runs where."""
        import vllm

        return {"version": vllm.__version__, "platform": self.platform}

    def sample(
        self,
        send: Callable[[Any], None],
        requests: list[tuple[list[int], int, int]],
        sampling: dict[str, Any],
        ends: list[int],
        stop: dict[str, Any] | None,
        adapter: tuple[int, str] | None,
    ) -> list[tuple[list[int], list[float]]]:
        """Token ids and log-probabilities of each (prompt ids, seed, most tokens).

        A stop string ends a completion some tokens late: the parent, which has the policy's own tokenizer, cuts it.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.CUMULATIVE if stop else RequestOutputKind.FINAL_ONLY
        greedy = sampling["temperature"] == 0
        params = [
            SamplingParams(
                **sampling,
                seed=None if greedy else seed,
                max_tokens=limit,
                stop_token_ids=ends,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=kind,
            )
            for _, seed, limit in requests
        ]
        found: list[tuple[list[int], list[float]]] = [([], [])] * len(requests)
        done = tokens = 0
        texts = _Ends(stop) if stop else None

        def finish(index: int, output: Any) -> None:
            nonlocal done, tokens
            completion = output.outputs[0]
            ids = list(completion.token_ids)
            found[index] = ids, [0.0] * len(ids) if greedy else list(completion.logprobs.logprobs)
            done, tokens = done + 1, tokens + len(ids)

        told = time.monotonic()
        for _ in self._run([ids for ids, _, _ in requests], params, adapter, finish, texts):
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                send(("progress", done, tokens))
        send(("progress", done, tokens))
        return found

    def score(
        self,
        send: Callable[[Any], None],
        items: list[tuple[list[int], int, list[int]]],
        adapter: tuple[int, str] | None,
        whole: bool,
    ) -> list[tuple[list[float], dict[int, float]]]:
        """For each (ids, first, labels): log-probabilities of ids[first:], and of each label as the next token.

        In one pass an item, or where not `whole` in one a token.
        """
        from vllm import SamplingParams

        if not whole:
            parts = [(ids[:at], at, [ids[at]]) for ids, first, _ in items for at in range(first, len(ids))]
            single = self.score(send, parts + [(ids, len(ids), labels) for ids, _, labels in items], adapter, True)
            each = iter(given[part[2][0]] for (_, given), part in zip(single, parts))  # noqa: B905
            lasts = [labels for _, labels in single[len(parts) :]]
            return [([next(each) for _ in ids[first:]], last) for (ids, first, _), last in zip(items, lasts)]  # noqa: B905
        params = [
            SamplingParams(
                max_tokens=1,
                prompt_logprobs=0 if first < len(ids) else None,
                logprob_token_ids=labels,
                flat_logprobs=True,
                detokenize=False,
            )
            for ids, first, labels in items
        ]
        found: list[tuple[list[float], dict[int, float]]] = [([], {})] * len(items)

        def finish(index: int, output: Any) -> None:
            ids, first, labels = items[index]
            given: list[float] = []
            if first < len(ids):
                places = output.prompt_logprobs
                given = [places[at][ids[at]].logprob for at in range(first, len(ids))]
            there = output.outputs[0].logprobs
            known = dict(zip(there.token_ids, there.logprobs))  # noqa: B905
            found[index] = given, {label: known[label] for label in labels}

        for _ in self._run([ids for ids, _, _ in items], params, adapter, finish, None):
            pass
        return found

    def reload(self, send: Callable[[Any], None], path: str) -> None:
        """The weights of another checkpoint of the same shape; nothing of the old ones stays cached."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        if self.platform == "cpu":
            self.llm.apply_model(_repack)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept the prefix cache of the old weights")

    def _run(
        self,
        prompts: list[list[int]],
        params: list[Any],
        adapter: tuple[int, str] | None,
        finish: Callable[[int, Any], None],
        ends: _Ends | None,
    ) -> Any:
        """Run the requests; yields after each step."""
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(adapter[1], adapter[0], adapter[1]) if adapter else None
        engine = self.llm.llm_engine
        self.runs += 1
        places: dict[str, int] = {}
        for index, (ids, wish) in enumerate(zip(prompts, params)):  # noqa: B905
            name = f"{self.runs}-{index}"
            places[name] = index
            engine.add_request(name, {"type": "token", "prompt_token_ids": ids}, wish, lora_request=lora)
        while engine.has_unfinished_requests():
            over = []
            for output in engine.step():
                if output.request_id not in places:
                    continue
                index = places[output.request_id]
                if not output.finished and (ends is None or not ends.met(output.outputs[0].token_ids)):
                    continue
                if not output.finished:
                    over.append(output.request_id)
                del places[output.request_id]
                finish(index, output)
            if over:
                engine.abort_request(over)
            yield


def _repack(model: Any) -> None:
    """On CPU the output layer multiplies by a packed copy, which vLLM leaves stale where it is tied to the input's."""
    for module in model.modules():
        if hasattr(module, "cpu_linear") and type(module).__name__ == "ParallelLMHead":
            module.quant_method.process_weights_after_loading(module)


class _Ends:
    """Tells, now and then, that a completion holds a stop string, so that no more of it is sampled."""

    EVERY = 4

    def __init__(self, stop: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(stop["tokenizer"])
        self.strings: list[str] = stop["strings"]
        self.window: int = stop["window"] + self.EVERY

    def met(self, ids: Any) -> bool:
        """Looked for at every fourth token only: decoding costs more than a token or two too many."""
        if len(ids) % self.EVERY:
            return False
        text = self.tokenizer.decode(list(ids[-self.window :]), skip_special_tokens=True)
        return any(string in text for string in self.strings)


if __name__ == "__main__":
    main()
