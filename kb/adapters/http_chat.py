"""ChatModel over HTTP: OpenAI's chat completions, as OpenAI, Azure, vLLM, Ollama, LocalAI speak it.

Data is asked for by JSON schema where the server knows that ("structured outputs"), and is always
validated here: a server may ignore what it does not know.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import httpx2 as httpx
from pydantic import BaseModel, ValidationError

from kb.adapters.model_server import BadAnswer, Endpoint, Patience, Refused, Request
from kb.adapters.model_server.contact import Where, contact_of, sendable
from kb.model_options import ChatOptions
from kb.ports import Message, Reply, Shape, ShapedReply, Usage
from pipelines.errors import TransientError

OPENAI = "https://api.openai.com/v1"

_SHAPED_ATTEMPTS = 3
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_MODES = ("schema", "object", "none")
_MAY_NOT_KNOW_IT = (400, 404, 422, 501)
"""Statuses with which servers refuse a `response_format` that is new to them."""
_PROBLEM_CHARS = 500


class OpenAIChat:
    """Chats by `POST .../chat/completions`; constructing asks nothing.

    Args:
        where: tells where an option is set, for messages.
    Raises:
        Misconfigured: the URL or the API key cannot be sent.
    """

    def __init__(
        self, model: str, options: ChatOptions, *, api_key: str | None, where: Where
    ) -> None:
        self._model, self._options, self._where = model, options, where
        self._modes = _MODES[_MODES.index(options.json_mode) :]
        self._endpoint = Endpoint(
            contact_of(
                options,
                what="chat server",
                url=_url(options.url),
                model=model,
                api_key=api_key,
                where=where,
                checks=("model", "max_tokens", "temperature"),
            )
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """See `kb.ports.ChatModel`."""
        body = self._body(messages, max_tokens, temperature)
        return self._ask(body, timeout_s or self._options.total_timeout_s)

    def chat_as(
        self,
        shape: type[Shape],
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        timeout_s: float | None = None,
    ) -> ShapedReply[Shape]:
        """See `kb.ports.ChatModel`."""
        ends = time.monotonic() + (timeout_s or self._options.total_timeout_s)
        asked = [Message("system", _in_words(shape)), *messages]
        usage, problem = Usage(), ""
        for _ in range(_SHAPED_ATTEMPTS):
            left_s = ends - time.monotonic()
            if left_s <= 0:
                break
            reply = self._shaped(shape, self._body(asked, max_tokens, temperature), ends)
            usage += reply.usage
            try:
                return ShapedReply(_parsed(shape, reply.text), usage)
            except ValueError as exc:
                problem = _said(exc)
                if reply.cut:
                    problem += f"; it was cut at {self._where('max_tokens')}"
            asked = [
                *asked[: 1 + len(messages)],
                Message("assistant", reply.text),
                Message("user", f"That was not what was asked for: {problem}. Send the JSON only."),
            ]
        raise TransientError(
            f"the chat model {self._model!r} gave no answer of the shape that was asked for: "
            f"{problem or 'no time was left'}"
        )

    def close(self) -> None:
        """End waits and connections; waiting calls get TransientError."""
        self._endpoint.close()

    def __repr__(self) -> str:
        return f"OpenAIChat({self._model!r} at {self._endpoint.url!r})"

    def _body(
        self, messages: Sequence[Message], max_tokens: int | None, temperature: float | None
    ) -> dict[str, Any]:
        if not messages:
            raise ValueError("messages is empty; give at least one")
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": sendable(m.content)} for m in messages],
        }
        options = self._options
        if (warmth := options.temperature if temperature is None else temperature) is not None:
            body["temperature"] = warmth
        if (most := max_tokens or options.max_tokens) is not None:
            body[options.max_tokens_field] = most
        return body

    def _shaped(self, shape: type[BaseModel], body: dict[str, Any], ends: float) -> Reply:
        """Ask for data, in the best way that the server takes; it is remembered."""
        refusal: Refused | None = None
        for at, mode in enumerate(modes := self._modes):
            try:
                reply = self._ask(body | _format(shape, mode), max(0.001, ends - time.monotonic()))
            except Refused as exc:
                refusal = refusal or exc
                if exc.answered not in _MAY_NOT_KNOW_IT:
                    raise
                continue
            self._modes = modes[at:]
            return reply
        assert refusal is not None
        raise refusal

    def _ask(self, body: dict[str, Any], total_s: float) -> Reply:
        options = self._options
        patience = Patience(
            options.retries + 1, min(options.timeout_s, total_s), total_s, at_gate=False
        )
        request = Request("POST", self._endpoint.url, body)
        return self._endpoint.ask(request, partial(_reply), patience)


def _url(given: str | None) -> str:
    """The whole address: `/v1` is added to a bare host, `/chat/completions` unless it is there."""
    url = httpx.URL(given or OPENAI)
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return str(url.copy_with(path=path))


def _reply(answer: Any) -> Reply:
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        cut = choice.get("finish_reason") == "length"
        if text is None and cut:
            text = ""  # a model that thinks may end before it speaks
        if not isinstance(text, str):
            raise TypeError(text)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BadAnswer("something that has no choices[0].message.content") from None
    return Reply(_THOUGHTS.sub("", text).strip(), _usage(answer), cut)


def _usage(answer: Any) -> Usage:
    told = answer.get("usage")
    counts = told if isinstance(told, dict) else {}
    numbers = [counts.get("prompt_tokens"), counts.get("completion_tokens")]
    return Usage(*[n if isinstance(n, int) and n >= 0 else 0 for n in numbers])


def _format(shape: type[BaseModel], mode: str) -> dict[str, Any]:
    if mode == "none":
        return {}
    if mode == "object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": shape.__name__, "schema": shape.model_json_schema()}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _in_words(shape: type[BaseModel]) -> str:
    schema = json.dumps(shape.model_json_schema(), ensure_ascii=False)
    return f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"


def _parsed(shape: type[Shape], text: str) -> Shape:
    """The value in an answer, also when it stands in a fence or among words.

    Raises:
        ValueError: there is none of this shape.
    """
    fenced = _FENCED.search(text)
    candidate = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1] or text
    return shape.model_validate_json(candidate)


def _said(exc: ValueError) -> str:
    if not isinstance(exc, ValidationError):
        return str(exc)[:_PROBLEM_CHARS]
    parts = [
        f"{'.'.join(map(str, error['loc'])) or 'it'}: {error['msg']}"
        for error in exc.errors(include_url=False, include_input=False)
    ]
    return "; ".join(parts)[:_PROBLEM_CHARS]
