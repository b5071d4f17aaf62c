"""An embedding provider for the tests: real HTTP, real vectors, misbehaving on demand.

It speaks OpenAI's embeddings API (`POST /v1/embeddings`) and that of text-embeddings-inference
(`POST /embed`, `POST /tokenize`, `GET /info`). A vector is the normalised sum of vectors that each
word's hash gives, so texts with common words are near each other, in every process alike.

In a test: `with Provider() as provider: ... provider.next(status(429))`. As a process of its own:
`python -m tests.embedding_provider --port 8090 --share 0.3 --status 429 --retry-after 1`; it prints
its URL, and `GET /stats` says what it did.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

DIM = 64
MODEL = "words-of-the-tests"
MAX_TOKENS = 256

_WORD = re.compile(r"\w+|[^\w\s]")


def vector_of(text: str, dim: int = DIM) -> list[float]:
    """The vector of a text, of length 1; blank texts have one, too."""
    total = np.full(dim, 0.01)
    for word in words_of(text)[:MAX_TOKENS]:
        total += _word_vector(word.lower(), dim)
    return [float(x) for x in total / np.linalg.norm(total)]


def words_of(text: str) -> list[str]:
    """The tokens of the model, without the two special ones."""
    return _WORD.findall(text)


@lru_cache(maxsize=100_000)
def _word_vector(word: str, dim: int) -> Any:
    seed = int.from_bytes(sha256(word.encode(errors="replace")).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dim)


@dataclass(frozen=True)
class Answer:
    """What is sent back; `None` as body ends the connection without an answer."""

    status: int
    body: bytes | None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """The connection ends in the middle of the body."""


Behaviour = Callable[[Answer], Answer]
"""Makes of the right answer what is really sent."""


# --- behaviours --------------------------------------------------------------------------------


def well(answer: Answer) -> Answer:
    """As it should be."""
    return answer


def status(code: int, message: str = "as ordered", **headers: str) -> Behaviour:
    """An error; `retry_after="3"` becomes the header `retry-after`."""
    body = json.dumps({"error": {"message": message, "type": "ordered", "code": code}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Answer(code, body, named)


def retry_at(seconds: float) -> Behaviour:
    """429 with the moment as an HTTP date."""
    return lambda _: status(429, retry_after=formatdate(time.time() + seconds, usegmt=True))(_)


def slow(seconds: float) -> Behaviour:
    """The right answer, late."""

    def wait(answer: Answer) -> Answer:
        time.sleep(seconds)
        return answer

    return wait


def dropped(_: Answer) -> Answer:
    """The connection is reset without an answer."""
    return Answer(0, None)


def cut(answer: Answer) -> Answer:
    """The connection ends in the middle of the answer."""
    return Answer(answer.status, answer.body, answer.headers, cut=True)


def body(text: str) -> Behaviour:
    """200 with this body."""
    return lambda _: Answer(200, text.encode(), {"content-type": "text/html"})


def changed(change: Callable[[list[Any]], list[Any]]) -> Behaviour:
    """The right answer, its list of vectors (OpenAI: of items) changed."""

    def apply(answer: Answer) -> Answer:
        assert answer.body is not None
        parsed = json.loads(answer.body)
        if isinstance(parsed, dict) and "data" in parsed:
            parsed["data"] = change(parsed["data"])
        elif isinstance(parsed, list):
            parsed = change(parsed)
        return Answer(answer.status, json.dumps(parsed).encode(), answer.headers)

    return apply


reversed_order = changed(lambda items: items[::-1])
"""The last item first; OpenAI's `index` still says where each belongs."""
one_missing = changed(lambda items: items[:-1])


def numbers(change: Callable[[list[float]], Any]) -> Behaviour:
    """Every vector changed."""

    def of(item: Any) -> Any:
        if isinstance(item, dict):
            return {**item, "embedding": change(item["embedding"])}
        return change(item)

    return changed(lambda items: [of(item) for item in items])


zero = numbers(lambda vector: [0.0] * len(vector))
not_finite = numbers(lambda vector: [float("nan"), *vector[1:]])
shorter = numbers(lambda vector: vector[:-1])
twice_as_long = numbers(lambda vector: [2 * x for x in vector])
in_base64 = numbers(
    lambda vector: base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
)


# --- the server --------------------------------------------------------------------------------


@dataclass
class Call:
    """A request for vectors or tokens as it came, and the status that was sent."""

    path: str
    headers: Mapping[str, str]
    texts: list[str]
    body: dict[str, Any]
    began: float
    status: int = 0


class Provider:
    """The server, in threads of this process.

    Args:
        api_key: asked for as `Authorization: Bearer ...` or `api-key: ...`; None: nobody is asked.
        max_texts: a request with more of them is refused with 413.
        refuse_tokens: refuse texts of more tokens than the model reads, as vLLM does, instead of
            cutting them. TEI's `truncate` always cuts.
    Attributes:
        calls: requests for vectors, in the order of their arrival.
        embedded: how often each text was embedded in an answer that was sent whole.
        most_at_once: requests for vectors that were under way together.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        dim: int = DIM,
        api_key: str | None = None,
        max_texts: int = 2048,
        refuse_tokens: bool = False,
    ) -> None:
        self.dim, self.api_key = dim, api_key
        self.max_texts, self.refuse_tokens = max_texts, refuse_tokens
        self.calls: list[Call] = []
        self.embedded: Counter[str] = Counter()
        self.most_at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._planned: list[Behaviour] = []
        self._always: Behaviour = well
        self._share, self._draw = 1.0, random.Random(0)
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                provider.get(self)

            def do_POST(self) -> None:
                provider.post(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    # --- what tests order ----------------------------------------------------------------------

    def next(self, *behaviours: Behaviour) -> None:
        """How the next requests for vectors are answered, one each."""
        with self._lock:
            self._planned += behaviours

    def always(self, behaviour: Behaviour, share: float = 1.0, seed: int = 0) -> None:
        """How this share of the requests is answered that nothing was planned for."""
        with self._lock:
            self._always, self._share, self._draw = behaviour, share, random.Random(seed)

    def forget(self) -> None:
        """Nothing was asked so far."""
        with self._lock:
            self.calls.clear()
            self.embedded.clear()
            self.most_at_once = 0

    @property
    def statuses(self) -> Counter[int]:
        """How many requests for vectors got which status; 0: none."""
        return Counter(call.status for call in self.calls)

    # --- what clients ask ----------------------------------------------------------------------

    def get(self, request: BaseHTTPRequestHandler) -> None:
        """`/info` and `/stats`."""
        if request.path == "/info":
            info = {
                "model_id": MODEL,
                "model_type": {"embedding": {"pooling": "mean"}},
                "max_input_length": MAX_TOKENS,
                "max_client_batch_size": min(32, self.max_texts),
                "version": "1.8.0",
            }
            send_answer(request, Answer(200, json.dumps(info).encode()))
        elif request.path == "/stats":
            send_answer(request, Answer(200, json.dumps(self.stats()).encode()))
        else:
            send_answer(request, status(404, "no such route")(Answer(404, b"")))

    def stats(self) -> dict[str, Any]:
        """Figures for another process."""
        with self._lock:
            return {
                "requests": len(self.calls),
                "statuses": {str(code): n for code, n in self.statuses.items()},
                "texts": len(self.embedded),
                "embedded_twice": sum(1 for n in self.embedded.values() if n > 1),
                "most_at_once": self.most_at_once,
            }

    def post(self, request: BaseHTTPRequestHandler) -> None:
        """A request for vectors or tokens."""
        length = int(request.headers.get("content-length", 0))
        asked = json.loads(request.rfile.read(length))
        texts = asked.get("input", asked.get("inputs"))
        texts = [texts] if isinstance(texts, str) else texts
        path = request.path.partition("?")[0]
        if path == "/tokenize":
            send_answer(request, self._tokenized(texts))
            return
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.path, headers, texts, asked, time.monotonic())
        with self._lock:
            self.calls.append(call)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            if self._planned:
                behave = self._planned.pop(0)
            else:
                behave = self._always if self._draw.random() < self._share else well
        try:
            answer = behave(self._right_answer(path, call))
        finally:
            with self._lock:
                self._under_way -= 1
        call.status = answer.status
        if answer.status == 200 and answer.body is not None and not answer.cut:
            with self._lock:
                self.embedded.update(texts)
        send_answer(request, answer)

    def _right_answer(self, path: str, call: Call) -> Answer:
        nothing = Answer(0, b"")
        key = call.headers.get("api-key") or call.headers.get("authorization", "")
        if self.api_key is not None and key.removeprefix("Bearer ") != self.api_key:
            return status(401, f"Incorrect API key provided: {key}")(nothing)
        if len(call.texts) > self.max_texts:
            return status(413, f"batch size {len(call.texts)} > maximum {self.max_texts}")(nothing)
        if any(not text.strip() for text in call.texts):
            return status(400, "input cannot be an empty string")(nothing)
        dim = call.body.get("dimensions") or self.dim
        vectors = [vector_of(text, dim) for text in call.texts]
        if path == "/embed":
            return Answer(200, json.dumps(vectors).encode())
        if not path.endswith("/embeddings"):
            return status(404, f"no route {path}")(nothing)
        if call.body["model"] != MODEL:
            return status(404, f"the model {call.body['model']!r} does not exist")(nothing)
        longest = max(len(words_of(text)) for text in call.texts)
        if self.refuse_tokens and longest > MAX_TOKENS:
            said = f"maximum context length is {MAX_TOKENS} tokens, your input has {longest}"
            return status(400, said)(nothing)
        data = [
            {"object": "embedding", "index": at, "embedding": vector}
            for at, vector in enumerate(vectors)
        ]
        return Answer(200, json.dumps({"object": "list", "data": data, "model": MODEL}).encode())

    def _tokenized(self, texts: Sequence[str]) -> Answer:
        tokens = [
            [
                {"id": at, "text": word}
                for at, word in enumerate(["[CLS]", *words_of(text), "[SEP]"])
            ]
            for text in texts
        ]
        return Answer(200, json.dumps(tokens).encode())

    # --- life ----------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer until `stop`."""
        self._server.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        """End the server; the port refuses connections from here on."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Provider:
        threading.Thread(target=self.serve, name="provider", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def send_answer(request: BaseHTTPRequestHandler, answer: Answer) -> None:
    """Send it, whole, cut off, or as a broken connection."""
    request.close_connection = answer.body is None or answer.cut
    if answer.body is None:
        # A reset, not an orderly end.
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()
        return
    request.send_response(answer.status)
    for name, value in {"content-type": "application/json", **answer.headers}.items():
        request.send_header(name, value)
    request.send_header("content-length", str(len(answer.body)))
    request.end_headers()
    with suppress(OSError):  # the client has waited long enough
        request.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server as a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--api-key")
    parser.add_argument("--share", type=float, default=0.0, help="of requests that get --status")
    parser.add_argument("--status", type=int, default=429)
    parser.add_argument("--retry-after", help="sent along with --status, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    provider = Provider(port=options.port, dim=options.dim, api_key=options.api_key)
    if options.share:
        headers = {"retry_after": options.retry_after} if options.retry_after else {}
        provider.always(status(options.status, **headers), options.share, options.seed)
    print(provider.url, flush=True)
    with suppress(KeyboardInterrupt):
        provider.serve()


if __name__ == "__main__":
    main()
