"""A server of rerank and chat models for the tests: real HTTP, misbehaving on demand.

Rerank in the shapes of Cohere (`POST /v2/rerank`), Jina and vLLM (`POST /v1/rerank`) and TEI
(`POST /rerank`): a text's score is the share of the query's words that it holds. Chat as OpenAI
(`POST /v1/chat/completions`): it says what the test planned, or the last message again.
Behaviours are those of `tests.embedding_provider`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.embedding_provider import Answer, Behaviour, send_answer, status, well, words_of

JUDGE = "judge-of-the-tests"
TALKER = "talker-of-the-tests"
TEI_BATCH = 32


@dataclass
class Asked:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


def share_of_words(query: str, text: str) -> float:
    """In [0, 1]."""
    wanted = {word.lower() for word in words_of(query)}
    held = {word.lower() for word in words_of(text)}
    return len(wanted & held) / max(1, len(wanted))


class Judge:
    """The server, in threads of this process.

    Attributes:
        asked: requests in the order of their arrival.
        says: what the chat model answers, one each; then it repeats the last message.
        speaks: makes the chat model's answer of the request's messages, instead.
        formats: what it knows of `response_format`; others are refused with 400.
    """

    def __init__(self, *, api_key: str | None = None, max_texts: int = 1000) -> None:
        self.api_key, self.max_texts = api_key, max_texts
        self.asked: list[Asked] = []
        self.says: list[str] = []
        self.speaks: Callable[[list[Any]], str] | None = None
        self.formats = {"json_schema", "json_object"}
        self._planned: list[Behaviour] = []
        self._always: Behaviour = well
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                judge.post(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def next(self, *behaviours: Behaviour) -> None:
        """How the next requests are answered, one each."""
        with self._lock:
            self._planned += behaviours

    def always(self, behaviour: Behaviour) -> None:
        """How requests are answered that nothing was planned for."""
        self._always = behaviour

    def post(self, request: BaseHTTPRequestHandler) -> None:
        """A request of either kind."""
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.path, headers, body)
        with self._lock:
            self.asked.append(asked)
            behave = self._planned.pop(0) if self._planned else self._always
        send_answer(request, behave(self._right_answer(asked)))

    def _right_answer(self, asked: Asked) -> Answer:
        nothing, path = Answer(0, b""), asked.path.partition("?")[0]
        key = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key is not None and key != self.api_key:
            return status(401, f"invalid api token {key}")(nothing)
        if path == "/rerank":
            return self._of_tei(asked.body)
        if path in ("/v1/rerank", "/v2/rerank"):
            return self._of_cohere(asked.body)
        if path == "/v1/chat/completions":
            return self._chat(asked.body)
        return status(404, f"no route {path}")(nothing)

    def _of_tei(self, body: dict[str, Any]) -> Answer:
        if len(body["texts"]) > min(TEI_BATCH, self.max_texts):
            said = f"batch size {len(body['texts'])} > maximum allowed batch size {TEI_BATCH}"
            return status(422, said)(Answer(0, b""))
        scores = [
            {"index": at, "score": share_of_words(body["query"], text)}
            for at, text in enumerate(body["texts"])
        ]
        return _answer(sorted(scores, key=lambda item: -item["score"]))

    def _of_cohere(self, body: dict[str, Any]) -> Answer:
        if body["model"] != JUDGE:
            return status(404, f"model {body['model']!r} not found")(Answer(0, b""))
        if len(body["documents"]) > self.max_texts:
            return status(400, "too many documents")(Answer(0, b""))
        results = [
            {"index": at, "relevance_score": share_of_words(body["query"], text)}
            for at, text in enumerate(body["documents"])
        ]
        results.sort(key=lambda item: -item["relevance_score"])
        return _answer({"id": "1", "results": results, "meta": {"billed_units": {}}})

    def _chat(self, body: dict[str, Any]) -> Answer:
        if body["model"] != TALKER:
            return status(404, f"The model {body['model']!r} does not exist")(Answer(0, b""))
        wanted = body.get("response_format", {}).get("type")
        if wanted is not None and wanted not in self.formats:
            return status(400, f"unknown response_format {wanted}")(Answer(0, b""))
        if self.speaks is not None:
            text = self.speaks(body["messages"])
        else:
            with self._lock:
                text = self.says.pop(0) if self.says else body["messages"][-1]["content"]
        prompt = sum(len(words_of(m["content"])) for m in body["messages"])
        return _answer(
            {
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": prompt, "completion_tokens": len(words_of(text))},
            }
        )

    def __enter__(self) -> Judge:
        threading.Thread(
            target=self._server.serve_forever, args=[0.02], name="judge", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode())
