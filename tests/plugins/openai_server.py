"""A real HTTP server with a toy model behind it, which misbehaves on request; also a script: `--model X --port N`.

Its model draws every token from one distribution over four characters, whatever came before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROBABILITIES = {"a": 0.5, "b": 0.25, "c": 0.2, ".": 0.05}
"""Of the next token; the last one ends a completion."""
IDS = {"a": 13, "b": 14, "c": 15, ".": 1}
"""As Strop's character tokenizer has them; its 1 is the end of sequence."""
WORDS = {number: letter for letter, number in IDS.items()}

Misdeed = Callable[["Handler", dict[str, Any]], bool]
"""misdeed(handler, body) -> whether it has dealt with the request."""


def distribution(temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0) -> dict[str, float]:
    """Tempered and truncated."""
    weights = {t: p ** (1 / temperature) if temperature else float(p == 0.5) for t, p in PROBABILITIES.items()}
    total, kept, mass = sum(weights.values()), {}, 0.0
    for token, weight in weights.items():
        if mass < top_p and (top_k < 1 or len(kept) < top_k):
            kept[token] = weight / total
        mass += weight / total
    return {token: p / sum(kept.values()) for token, p in kept.items() if p}


class Toy(ThreadingHTTPServer):
    """The server; what it knows may be changed while it runs."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, model: str = "toy", port: int = 0, **knows: Any) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.cards: list[dict[str, Any]] = [{"id": model, "owned_by": knows.pop("owner", "vllm")}]
        if model.startswith("/"):
            self.cards[0]["root"] = model
        self.key: str | None = knows.pop("key", None)
        self.context: int = knows.pop("context", 1000)
        self.logprobs: str | None = knows.pop("logprobs", "sampled")
        """Distribution they are of: 'sampled', 'tempered', 'plain'; None = the field is refused."""
        self.token_ids: bool = knows.pop("token_ids", True)
        self.takes_ids: bool = knows.pop("takes_ids", True)
        self.scores: str | None = knows.pop("scores", "prompt_logprobs")
        self.misdeed: Misdeed = knows.pop("misdeed", lambda handler, body: False)
        self.cached: int = knows.pop("cached", 0)
        self.adapters: bool = knows.pop("adapters", True)
        assert not knows
        self.bodies: list[dict[str, Any]] = []
        """Of every completion asked for, probes left out."""
        self.times: list[float] = []
        self.served = 0
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def start(self) -> Toy:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Gone, and whatever is under way with it."""
        self.shutdown()
        self.server_close()
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def again(self) -> Toy:
        """Another process's server at the same place: it has forgotten all but the first model."""
        knows = {
            name: getattr(self, name) for name in ("key", "context", "logprobs", "token_ids", "takes_ids", "scores")
        }
        made = Toy(self.cards[0]["id"], self.server_port, owner=self.cards[0]["owned_by"], **knows)
        return made.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients come and go


class Handler(BaseHTTPRequestHandler):
    server: Toy
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.open.add(self.connection)

    def finish(self) -> None:
        with self.server.lock:
            self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.refused():
            self.answer({"object": "list", "data": self.server.cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        if self.path == "/v1/load_lora_adapter":
            if not self.server.adapters:
                return self.fail(404, "Not Found")
            card = {"id": body["lora_name"], "root": body["lora_path"], "parent": self.server.cards[0]["id"]}
            self.server.cards.append(card)
            return self.answer("Success")
        if body["model"] not in [card["id"] for card in self.server.cards]:
            return self.fail(404, f"The model `{body['model']}` does not exist.")
        probe = body.get("max_tokens", 16) <= 1
        if not probe:
            with self.server.lock:
                self.server.bodies.append(body)
                self.server.times.append(time.monotonic())
            if self.server.misdeed(self, body):
                return None
        reply = self.completion(body)
        if reply is not None:
            self.server.served += not probe
            self.answer(reply)
        return None

    def refused(self) -> bool:
        key = self.server.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.fail(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        return True

    def completion(self, body: dict[str, Any]) -> dict[str, Any] | None:
        prompt = body.get("prompt", body.get("messages"))
        if isinstance(prompt, list) and "prompt" in body and not self.server.takes_ids:
            return self.fail(422, "prompt: a string is expected")
        if body.get("logprobs") is not None and self.server.logprobs is None:
            return self.fail(400, "logprobs are not supported")
        if (body.get("prompt_logprobs") is not None and self.server.scores != "prompt_logprobs") or (
            body.get("echo") and self.server.scores != "echo"
        ):
            return self.fail(400, "not supported")
        length = len(prompt) if "prompt" in body else sum(len(m["content"]) for m in prompt)
        if length >= self.server.context:
            return self.fail(400, f"This model's maximum context length is {self.server.context} tokens.")
        choices = [self.choice(body, prompt, i) for i in range(body.get("n", 1))]
        tokens = sum(choice.pop("n") for choice in choices)
        usage: dict[str, Any] = {"prompt_tokens": length, "completion_tokens": tokens}
        if self.server.cached:
            usage["prompt_tokens_details"] = {"cached_tokens": self.server.cached}
        return {"choices": choices, "usage": usage, "model": body["model"]}

    def choice(self, body: dict[str, Any], prompt: Any, index: int) -> dict[str, Any]:
        temperature = body.get("temperature", 1.0)
        sampled = distribution(temperature, body.get("top_k", -1), body.get("top_p", 1.0))
        shown = {"sampled": sampled, "tempered": distribution(temperature)}.get(
            str(self.server.logprobs), PROBABILITIES
        )
        seed = body.get("seed")
        draw = random.Random(None if seed is None else f"{prompt}{seed}{index}")
        drawn: list[str] = []
        limit = min(body.get("max_tokens", 16), self.server.context - len(prompt))
        while len(drawn) < limit and not (drawn and drawn[-1] == "."):
            drawn += draw.choices(list(sampled), list(sampled.values()))
            if any(stop in "".join(drawn) for stop in body.get("stop", [])):
                break
        text = "".join(drawn).removesuffix(".")
        ended = drawn[-1:] == ["."]
        for stop in body.get("stop", []):
            if stop in text:
                text, ended = text[: text.index(stop)], True
        found: dict[str, Any] = {"index": index, "finish_reason": "stop" if ended else "length", "n": len(drawn)}
        if "messages" in body:
            found["message"] = {"role": "assistant", "content": text}
        else:
            found["text"] = text
        logps = {token: math.log(p) for token, p in shown.items()}
        if body.get("logprobs") is not None:
            found["logprobs"] = self.logprobs(body, drawn, logps, prompt)
        if self.server.token_ids and body.get("return_token_ids"):
            found["token_ids"] = [IDS[token] for token in drawn]
        if body.get("prompt_logprobs") is not None:
            found["prompt_logprobs"] = [None, *({str(i): {"logprob": of(i)}} for i in prompt[1:])]
        return found

    def logprobs(self, body: dict[str, Any], drawn: list[str], logps: dict[str, float], prompt: Any) -> dict[str, Any]:
        if "messages" in body:
            top = [{"token": t, "logprob": p} for t, p in logps.items()][: body.get("top_logprobs", 0)]
            return {"content": [{"token": t, "logprob": logps[t], "top_logprobs": top} for t in drawn]}
        if body.get("echo"):
            return {"tokens": [str(i) for i in prompt], "token_logprobs": [None, *(of(i) for i in prompt[1:])]}
        if body.get("logprob_token_ids"):
            assert body["return_tokens_as_token_ids"]
            top = {f"token_id:{i}": of(i) for i in body["logprob_token_ids"]}
            return {"tokens": ["?"], "token_logprobs": [0.0], "top_logprobs": [top]}
        top = dict(list(logps.items())[: body["logprobs"]])
        return {
            "tokens": drawn,
            "token_logprobs": [logps[token] for token in drawn],
            "top_logprobs": [{**top, token: logps[token]} for token in drawn],
        }

    def fail(self, code: int, message: str, **headers: str) -> None:
        self.answer({"error": {"message": message}}, code, **headers)

    def answer(self, value: Any, code: int = 200, **headers: str) -> None:
        self.send(json.dumps(value).encode(), code, **headers)

    def send(self, data: bytes, code: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


def of(token: int) -> float:
    """Log-probability of a token in a prompt."""
    return math.log(PROBABILITIES.get(WORDS.get(token, ""), 0.01))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="toy")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fail", default="")
    given = parser.parse_args()
    if given.fail:
        raise SystemExit(f"cannot load: {given.fail}")
    print(f"serving {given.model}", flush=True)
    Toy(given.model, given.port).serve_forever()


if __name__ == "__main__":
    main()
