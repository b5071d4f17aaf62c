"""Configured models: add, list, change, try out, remove; which datasets need them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import and_, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kb.db import after_commit, now, transaction
from kb.errors import (
    InvalidParam,
    KBError,
    Misconfigured,
    ModelExists,
    ModelInUse,
    NotFound,
)
from kb.model_options import checked_options, stored
from kb.model_registry import ModelRecord, record_of
from kb.models import (
    ConfiguredModel,
    Dataset,
    DatasetSwitch,
    IndexingTechnique,
    ModelKind,
    ModelType,
    SwitchStatus,
)
from kb.ports import Message
from kb.resources import Resources
from kb.secrets import hint_of
from pipelines.errors import TransientError

OF_SETTINGS = "settings"
"""Stands for the id of the embedding model of the settings, which has no row."""

_TEST_BUDGET_S = 120.0
"""Of a rerank model that is tried out: its first call may export it."""
_MAKES_VECTORS = ("path", "dimensions", "send_dimensions", "document_prefix")
"""Options of an embedding model that cannot change under the datasets that it filled."""
_NAMED = 3


def get_model(
    session: Session, workspace_id: uuid.UUID, model_id: uuid.UUID, *, lock: bool = False
) -> ConfiguredModel:
    """The model.

    Args:
        lock: wait for transactions that make something need it, and let no other begin.
    Raises:
        NotFound: it is not in this workspace.
    """
    found = session.get(ConfiguredModel, model_id, with_for_update=lock or None)
    if found is None or found.workspace_id != workspace_id:
        raise NotFound("model", model_id)
    return found


def list_models(
    session: Session, workspace_id: uuid.UUID, type: ModelType | None = None
) -> list[ConfiguredModel]:
    """Those of the table, oldest first; a workspace has few."""
    statement = select(ConfiguredModel).where(ConfiguredModel.workspace_id == workspace_id)
    if type is not None:
        statement = statement.where(ConfiguredModel.type == type)
    return list(session.scalars(statement.order_by(ConfiguredModel.created_at, ConfiguredModel.id)))


def add_model(
    session: Session,
    type: ModelType,
    provider: str,
    model: str,
    kind: ModelKind,
    options: Mapping[str, Any],
    api_key: str | None,
    resources: Resources,
) -> ConfiguredModel:
    """Configure a model; nothing is asked of it yet.

    Raises:
        InvalidParam: the options do not fit, there is no such model at the path, or the workspace
            has as many models as it may.
        ModelExists: a model of this type has these names.
        Misconfigured: the API key cannot be sealed here.
    """
    most = resources.settings.limits.models
    known = session.scalar(
        select(func.count())
        .select_from(ConfiguredModel)
        .where(ConfiguredModel.workspace_id == resources.workspace_id)
    )
    if (known or 0) >= most:
        raise InvalidParam(
            f"the workspace has {known} models, which is the limit; remove one, or raise "
            "KB_LIMITS__MODELS"
        )
    default = resources.models.default_record
    if type is ModelType.EMBEDDING and (provider, model) == default.name:
        raise _exists(type, provider, model)
    row = ConfiguredModel(
        id=uuid.uuid4(),
        workspace_id=resources.workspace_id,
        type=type,
        provider=provider,
        model=model,
        kind=kind,
        options=stored(checked_options(type, kind, options)),
        revision=1,
    )
    _set_key(row, api_key, resources)
    _check_usable(row, api_key, resources)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as exc:
        raise _exists(type, provider, model) from exc
    after_commit(session, resources.models.changed)
    return row


def update_model(
    session: Session,
    row: ConfiguredModel,
    options: Mapping[str, Any],
    api_key: str | None,
    *,
    key_given: bool,
    resources: Resources,
) -> None:
    """Change options, where null brings back a default, and the API key.

    Raises:
        InvalidParam: the options do not fit, or there is no such model at the path.
        ModelInUse: datasets were filled by the model as it is, and would get other vectors.
        Misconfigured: the API key cannot be sealed here.
    """
    merged = {k: v for k, v in {**row.options, **options}.items() if v is not None}
    wanted = stored(checked_options(row.type, row.kind, merged))
    changed = {n for n in {*wanted, *row.options} if wanted.get(n) != row.options.get(n)}
    if row.type is ModelType.EMBEDDING and (other := sorted(changed & set(_MAKES_VECTORS))):
        _refuse_in_use(session, row, f"would get other vectors from another {', '.join(other)}")
    row.options = wanted
    if key_given:
        _set_key(row, api_key, resources)
    key = api_key if key_given else _opened(row, resources)
    _check_usable(row, key, resources)
    row.revision += 1
    row.updated_at = now()
    after_commit(session, resources.models.changed)


def delete_model(session: Session, row: ConfiguredModel, resources: Resources) -> None:
    """Remove a model.

    Raises:
        ModelInUse: datasets need it; the message names some.
    """
    _refuse_in_use(session, row, "need it")
    session.delete(row)
    after_commit(session, resources.models.changed)


def used_by(session: Session, row: ConfiguredModel) -> list[str]:
    """Names of the datasets that need the model, or are on their way to it, ascending."""
    if row.type is ModelType.CHAT:
        return []
    statement = select(Dataset).where(Dataset.workspace_id == row.workspace_id)
    if row.type is ModelType.EMBEDDING:
        answers_with_it = and_(
            Dataset.embedding_model == row.model,
            Dataset.embedding_model_provider == row.provider,
            Dataset.indexing_technique == IndexingTechnique.HIGH_QUALITY,
        )
        moves_to_it = exists().where(
            DatasetSwitch.dataset_id == Dataset.id,
            DatasetSwitch.status == SwitchStatus.RUNNING,
            DatasetSwitch.embedding_model == row.model,
            DatasetSwitch.embedding_model_provider == row.provider,
        )
        statement = statement.where(or_(answers_with_it, moves_to_it))
    else:
        statement = statement.where(Dataset.retrieval_model.is_not(None))
    datasets = session.scalars(statement.order_by(Dataset.name))
    return [d.name for d in datasets if row.type is ModelType.EMBEDDING or _reranks(d, row)]


def _reranks(dataset: Dataset, row: ConfiguredModel) -> bool:
    named = (dataset.retrieval_model or {}).get("reranking_model") or {}
    provider = named.get("reranking_provider_name")
    return named.get("reranking_model_name") == row.model and provider in (None, "", row.provider)


def _refuse_in_use(session: Session, row: ConfiguredModel, why: str) -> None:
    names = used_by(session, row)
    if names:
        listed = ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
        raise ModelInUse(
            f"model {row.model!r} of provider {row.provider!r} is in use: {len(names)} datasets "
            f"{why} ({listed}); give them another model first, or delete them"
        )


def _exists(type: ModelType, provider: str, model: str) -> ModelExists:
    return ModelExists(
        f"a model {model!r} of provider {provider!r} and type {type.value!r} is configured "
        "already; change that one, or choose another provider name"
    )


def _set_key(row: ConfiguredModel, api_key: str | None, resources: Resources) -> None:
    row.api_key = resources.keyring.seal(api_key) if api_key else None
    row.api_key_hint = hint_of(api_key) if api_key else None


def _opened(row: ConfiguredModel, resources: Resources) -> str | None:
    return resources.keyring.open(row.api_key) if row.api_key else None


def _check_usable(row: ConfiguredModel, api_key: str | None, resources: Resources) -> None:
    """Raises: InvalidParam: no adapter can be made of it."""
    try:
        resources.models.try_to_make(record_of(row), api_key)
    except Misconfigured as exc:
        raise InvalidParam(exc.message) from exc


# --- trying out ----------------------------------------------------------------------------------


def try_out(record: ModelRecord, resources: Resources) -> dict[str, Any]:
    """Call the model for real, and keep what came of it with its row.

    Returns:
        `ok`, `latency_ms`, and what the model gave: `dimension` of an embedding model, `scores` of
        a rerank model (of a text that fits and one that does not), `reply` of a chat model. Not
        ok: `error` with `code` and `message`.
    """
    started = time.perf_counter()
    outcome: dict[str, Any]
    try:
        outcome = {"ok": True} | _CALLS[record.type](record, resources)
    except (KBError, TransientError) as exc:
        outcome = {"ok": False, "error": {"code": exc.code, "message": exc.message}}
    outcome["latency_ms"] = round((time.perf_counter() - started) * 1000, 1)
    outcome["at"] = int(now().timestamp())
    if record.id is not None:
        with transaction(resources.sessions) as session:
            session.execute(
                update(ConfiguredModel)
                .where(ConfiguredModel.id == record.id)
                .values(last_test=outcome)
            )
    return outcome


def _embed(record: ModelRecord, resources: Resources) -> dict[str, Any]:
    embedder = (
        resources.default_embedder if record.id is None else resources.models.embedder_of(record)
    )
    vector = embedder.embed_query("How long is the warranty?")
    return {"dimension": len(vector), "max_tokens": embedder.max_tokens}


def _rerank(record: ModelRecord, resources: Resources) -> dict[str, Any]:
    texts = ["Paris is the capital of France.", "Bananas are yellow."]
    reranker = resources.models.reranker_of(record)
    scores = reranker.rerank("What is the capital of France?", texts, budget_s=_TEST_BUDGET_S)
    return {"scores": scores}


def _chat(record: ModelRecord, resources: Resources) -> dict[str, Any]:
    asked = Message("user", "Answer with the single word: ready")
    reply = resources.models.chat_model_of(record).chat([asked])
    usage = reply.usage
    return {
        "reply": reply.text[:200],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        },
    }


_CALLS: dict[ModelType, Callable[[ModelRecord, Resources], dict[str, Any]]] = {
    ModelType.EMBEDDING: _embed,
    ModelType.RERANK: _rerank,
    ModelType.CHAT: _chat,
}


def context_tokens(record: ModelRecord, last_test: Mapping[str, Any], resources: Resources) -> int:
    """Tokens that a model reads, as far as it is known without asking a server."""
    given = record.options.get("context_tokens") or record.options.get("max_tokens")
    if record.id is None:
        given = resources.settings.embedding.max_tokens
    told = given or last_test.get("max_tokens")
    if told:
        return int(told)
    if record.type is ModelType.EMBEDDING and record.kind is ModelKind.LOCAL:
        embedder = resources.default_embedder
        return (embedder if record.id is None else resources.models.embedder_of(record)).max_tokens
    return 8192 if record.kind is ModelKind.OPENAI else 512
