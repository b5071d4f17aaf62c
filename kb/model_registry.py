"""The models that this process can use: those of the settings and those of the table.

An adapter is made when it is first asked for, and kept until its row changes. What another
process changed is noticed within `refresh_s`; what this one changed, at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.db import Sessions, reading
from kb.errors import KBError, ProviderNotInitialized, SecretUnreadable
from kb.models import ConfiguredModel, ModelKind, ModelType
from kb.ports import ChatModel, Reranker
from kb.secrets import Keyring
from pipelines.ports import Embedder

log = logging.getLogger("kb.models")

_LONGEST_CALL_S = 600.0
"""An adapter that was replaced is closed after so long: until then somebody may be using it."""
_WHAT = {
    ModelType.EMBEDDING: "embedding model",
    ModelType.RERANK: "rerank model",
    ModelType.CHAT: "chat model",
}


class SpaceEmbedder(Embedder, Protocol):
    """An embedder that knows the spaces it fills."""

    def for_space(self, name: str) -> Embedder | None:
        """The embedder that fills this space; None: it is another model's. Asks no server."""
        ...

    def close(self) -> None:
        """End its work; waiting calls get TransientError."""
        ...


class _Closes(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A configured model, as adapters are made of it.

    Attributes:
        id: None for the model of the settings.
        api_key: sealed.
    """

    id: uuid.UUID | None
    type: ModelType
    provider: str
    model: str
    kind: ModelKind
    options: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    revision: int = 0

    @property
    def name(self) -> tuple[str, str]:
        """(provider, model)"""
        return self.provider, self.model

    def where(self, option: str) -> str:
        """Where a person sets an option, as messages name it."""
        return f"{option!r} of the model {self.model!r} (PATCH /v1/models/{self.id})"


@dataclass(frozen=True)
class Makers:
    """How adapters are made: each is given a record and its API key in clear."""

    embedder: Callable[[ModelRecord, str | None], SpaceEmbedder]
    reranker: Callable[[ModelRecord, str | None], Reranker]
    chat_model: Callable[[ModelRecord, str | None], ChatModel]


class ModelRegistry:
    """Finds models by provider and name, or by the space that they fill; safe for threads.

    A child process that was forked makes its own adapters.

    Args:
        default: the embedder of the settings, and `record` what it is.
        no_space: what to say when no model fills a space; a format with `{space}`.
    """

    def __init__(
        self,
        sessions: Sessions,
        keyring: Keyring,
        workspace_id: uuid.UUID,
        makers: Makers,
        *,
        default: SpaceEmbedder,
        record: ModelRecord,
        no_space: str = "no embedding model is configured for the space {space!r}",
        refresh_s: float = 1.0,
    ) -> None:
        self._sessions, self._keyring, self._workspace_id = sessions, keyring, workspace_id
        self._makers, self._refresh_s, self._no_space = makers, refresh_s, no_space
        self._default, self.default_record = default, record
        self._generation = 0
        self._adapters: dict[uuid.UUID | None, tuple[int, _Closes]] = {}
        self._retired: list[tuple[float, _Closes]] = []
        self._of_space: dict[str, uuid.UUID | None] = {}
        self._seen: tuple[int, float, tuple[ModelRecord, ...]] = (-1, 0.0, ())
        self._forget_adapters()

    # -- which there are

    def records(self, type: ModelType) -> list[ModelRecord]:
        """Those of one type: that of the settings first, then the oldest."""
        rows = [record for record in self._rows() if record.type is type]
        return [self.default_record, *rows] if type is ModelType.EMBEDDING else rows

    def choose(self, type: ModelType, provider: str | None, model: str | None) -> ModelRecord:
        """The model that these names mean; one that is None or empty fits every model.

        Of several that fit, the first of `records`.

        Raises:
            ProviderNotInitialized: none fits; the message lists those that there are.
        """
        known = self.records(type)
        for record in known:
            if provider in (None, "", record.provider) and model in (None, "", record.model):
                return record
        what = _WHAT[type]
        if not known:
            asked = f" {model!r}" if model else ""
            raise ProviderNotInitialized(
                f"{what}{asked} is not configured, nor any other; add one: POST /v1/models with "
                f"type {type.value!r}, or: kb models add"
            )
        listed = ", ".join(f"{r.model!r} of provider {r.provider!r}" for r in known)
        asked = " of provider ".join(repr(name) for name in (model or "any", provider) if name)
        raise ProviderNotInitialized(
            f"{what} {asked} is not configured; configured: {listed}. Add another with "
            "POST /v1/models, or: kb models add"
        )

    # -- adapters

    def embedder(self, provider: str | None = None, model: str | None = None) -> SpaceEmbedder:
        """The embedder of these names; without any that of the settings.

        Raises:
            ProviderNotInitialized: there is none, or it cannot be used.
        """
        record = self.choose(ModelType.EMBEDDING, provider, model)
        return self.embedder_of(record)

    def embedder_of(self, record: ModelRecord) -> SpaceEmbedder:
        """The embedder of a record of type embedding."""
        if record.id is None:
            return self._default
        embedder: SpaceEmbedder = self._adapter(record, self._makers.embedder)
        return embedder

    def embedder_of_space(self, name: str) -> Embedder:
        """The embedder that fills a space; asks no server.

        Raises:
            ProviderNotInitialized: no configured model fills it.
        """
        found = self._find_space(name)
        if found is None:
            raise ProviderNotInitialized(self._no_space.format(space=name))
        return found[1]

    def record_of_space(self, name: str) -> ModelRecord | None:
        """The model that fills a space; None: no configured one does. Asks no server."""
        found = self._find_space(name)
        return found[0] if found is not None else None

    def _find_space(self, name: str) -> tuple[ModelRecord, Embedder] | None:
        if (found := self._default.for_space(name)) is not None:
            return self.default_record, found
        records = self.records(ModelType.EMBEDDING)[1:]
        known = self._of_space.get(name)
        for record in sorted(records, key=lambda record: record.id != known):
            try:
                found = self.embedder_of(record).for_space(name)
            except KBError as exc:  # one model that is broken is not all of them
                log.warning("%s %r: %s", _WHAT[record.type], record.model, exc.message)
                continue
            if found is not None:
                self._of_space[name] = record.id
                return record, found
        return None

    def reranker(self, provider: str | None, model: str | None) -> Reranker:
        """The rerank model of these names.

        Raises:
            ProviderNotInitialized: there is none, or it cannot be used.
        """
        return self.reranker_of(self.choose(ModelType.RERANK, provider, model))

    def reranker_of(self, record: ModelRecord) -> Reranker:
        """The rerank model of a record of type rerank."""
        reranker: Reranker = self._adapter(record, self._makers.reranker)
        return reranker

    def chat_model(self, provider: str | None = None, model: str | None = None) -> ChatModel:
        """The chat model of these names; without any the first that was configured.

        Raises:
            ProviderNotInitialized: there is none, or it cannot be used.
        """
        return self.chat_model_of(self.choose(ModelType.CHAT, provider, model))

    def chat_model_of(self, record: ModelRecord) -> ChatModel:
        """The chat model of a record of type chat."""
        chat: ChatModel = self._adapter(record, self._makers.chat_model)
        return chat

    def try_to_make(self, record: ModelRecord, api_key: str | None) -> None:
        """See whether an adapter can be made; nothing is asked of the model.

        Raises:
            ProviderNotInitialized: there is no such model at the path.
            Misconfigured: the URL or the API key cannot be sent.
        """
        makers: dict[ModelType, Callable[[ModelRecord, str | None], Any]] = {
            ModelType.EMBEDDING: self._makers.embedder,
            ModelType.RERANK: self._makers.reranker,
            ModelType.CHAT: self._makers.chat_model,
        }
        adapter: _Closes = makers[record.type](record, api_key)
        adapter.close()

    # -- changes

    def changed(self) -> None:
        """A transaction of this process changed the table; call it after the commit."""
        self._generation += 1

    def close(self) -> None:
        """Close every adapter; waiting calls get TransientError."""
        with self._lock:
            adapters = [adapter for _, adapter in self._adapters.values()]
            adapters += [adapter for _, adapter in self._retired]
            self._adapters.clear()
            self._retired.clear()
        for adapter in adapters:
            adapter.close()

    # -- inside

    def _rows(self) -> tuple[ModelRecord, ...]:
        generation, read_at, rows = self._seen
        if generation == self._generation:
            if time.monotonic() - read_at < self._refresh_s:
                return rows
            # One thread looks again. The others must not wait for it: each of them may hold a
            # connection that it needs.
            if not self._reading.acquire(blocking=False):
                return rows
            try:
                return self._read()
            finally:
                self._reading.release()
        return self._read()

    def _read(self) -> tuple[ModelRecord, ...]:
        generation, at = self._generation, time.monotonic()
        with reading(self._sessions) as session:
            rows = session.scalars(
                select(ConfiguredModel)
                .where(ConfiguredModel.workspace_id == self._workspace_id)
                .order_by(ConfiguredModel.created_at, ConfiguredModel.id)
            )
            records = tuple(map(record_of, rows))
        self._seen = (generation, at, records)
        self._retire({record.id: record.revision for record in records})
        return records

    def _retire(self, revisions: Mapping[uuid.UUID | None, int]) -> None:
        """Let go of adapters whose rows are gone or changed."""
        now = time.monotonic()
        with self._lock:
            gone = [i for i, (rev, _) in self._adapters.items() if revisions.get(i) != rev]
            self._retired += [(now, self._adapters.pop(i)[1]) for i in gone]
            done = [a for at, a in self._retired if now - at > _LONGEST_CALL_S]
            self._retired = [r for r in self._retired if now - r[0] <= _LONGEST_CALL_S]
        for adapter in done:
            adapter.close()

    def _adapter(self, record: ModelRecord, make: Callable[[ModelRecord, str | None], Any]) -> Any:
        if self._process != os.getpid():
            self._forget_adapters()
        known = self._adapters.get(record.id)
        if known is not None and known[0] >= record.revision:
            return known[1]
        with self._lock:
            known = self._adapters.get(record.id)
            if known is not None and known[0] >= record.revision:
                return known[1]
            adapter = make(record, self._key(record))
            if known is not None:
                self._retired.append((time.monotonic(), known[1]))
            self._adapters[record.id] = (record.revision, adapter)
            return adapter

    def _key(self, record: ModelRecord) -> str | None:
        if record.api_key is None:
            return None
        try:
            return self._keyring.open(record.api_key)
        except SecretUnreadable as exc:
            raise ProviderNotInitialized(f"{record.where('api_key')}: {exc.message}") from exc

    def _forget_adapters(self) -> None:
        """Nothing was made yet in this process."""
        self._process = os.getpid()
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._adapters, self._retired, self._of_space = {}, [], {}


def hold_model(session: Session, record: ModelRecord) -> None:
    """Let nobody remove the model before the transaction ends, which makes something need it.

    Raises:
        ProviderNotInitialized: it was removed a moment ago.
    """
    if record.id is None:
        return
    row = select(ConfiguredModel.id).where(ConfiguredModel.id == record.id)
    if session.scalar(row.with_for_update(read=True, key_share=True)) is None:
        raise ProviderNotInitialized(
            f"{_WHAT[record.type]} {record.model!r} of provider {record.provider!r} was removed a "
            "moment ago; GET /v1/models lists those that there are"
        )


def record_of(row: ConfiguredModel) -> ModelRecord:
    """A row as a value."""
    return ModelRecord(
        id=row.id,
        type=row.type,
        provider=row.provider,
        model=row.model,
        kind=row.kind,
        options=row.options,
        api_key=row.api_key,
        revision=row.revision,
    )
