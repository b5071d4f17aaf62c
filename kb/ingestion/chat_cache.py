"""Answers of chat models by model and question: nothing is asked, and paid, twice."""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from typing import Any

from pydantic import BaseModel
from sqlalchemy.dialects import postgresql, sqlite

from kb.db import now, reading, transaction
from kb.metrics import CHAT_ANSWERS
from kb.models import CachedAnswer, ModelType
from kb.ports import Message
from kb.resources import Resources
from kb.tracing import span
from pipelines.ports import Shape

log = logging.getLogger("kb.chat")


class CachedChat:
    """A configured chat model behind a cache; see `pipelines.ports.Chat`.

    An answer is in the cache before `ask` returns, so a crash right after it costs no second one.

    Args:
        provider, model: names; None fits any, the first that is configured is taken.
    """

    def __init__(self, resources: Resources, provider: str | None, model: str | None) -> None:
        self._resources, self._provider, self._model = resources, provider, model

    def ask(self, shape: type[Shape], instruction: str, text: str) -> Shape:
        """See `pipelines.ports.Chat`.

        Raises:
            ProviderNotInitialized: no such chat model is configured, or its server refuses.
        """
        models, sessions = self._resources.models, self._resources.sessions
        record = models.choose(ModelType.CHAT, self._provider, self._model)
        key = (_hash(*record.name), _question(shape, instruction, text))
        with reading(sessions) as session:
            known = session.get(CachedAnswer, key)
            answer = known.answer if known else None
        if answer is not None:
            CHAT_ANSWERS.labels("cache").inc()
            return shape.model_validate(answer)
        messages = [Message("system", instruction), Message("user", text)]
        with span("ask chat model", model=record.model):
            reply = models.chat_model(*record.name).chat_as(shape, messages)
        CHAT_ANSWERS.labels("model").inc()
        log.debug(
            "asked %s: %d tokens in, %d out",
            record.model,
            reply.usage.prompt_tokens,
            reply.usage.completion_tokens,
        )
        self._remember(key, reply.value.model_dump(mode="json"))
        return reply.value

    def _remember(self, key: tuple[str, str], answer: dict[str, Any]) -> None:
        row = {"model": key[0], "question_hash": key[1], "answer": answer, "created_at": now()}
        with transaction(self._resources.sessions) as session:
            dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
            session.execute(dialect.insert(CachedAnswer).on_conflict_do_nothing(), [row])


def _question(shape: type[BaseModel], instruction: str, text: str) -> str:
    return _hash(json.dumps(shape.model_json_schema(), sort_keys=True), instruction, text)


def _hash(*parts: str) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()
