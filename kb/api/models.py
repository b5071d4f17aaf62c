"""Routes of models: the contract's list by type, and our own to add, try out, change, remove."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from kb import configured_models as models
from kb.api.bodies import JsonBody, parse
from kb.api.deps import AccessDep, path_id, query_text
from kb.api.shapes import epoch
from kb.configured_models import OF_SETTINGS
from kb.errors import Conflict, InvalidParam
from kb.model_registry import ModelRecord, record_of
from kb.model_schemas import ModelCreate, ModelUpdate
from kb.models import ConfiguredModel, ModelType
from kb.resources import Resources

router = APIRouter(prefix="/v1", tags=["models"])

Json = dict[str, Any]

_OTHER_TYPES = ("tts", "speech2text", "moderation")
"""Types of the contract that nothing here uses; there are no such models."""


@router.get("/workspaces/current/models/model-types/{model_type}")
def list_models_of_type(model_type: str, access: AccessDep) -> Json:
    """List the models of one type by provider: `text-embedding`, `rerank` or `llm`.

    `provider` and `models[].model` are what datasets take as `embedding_model_provider` and
    `embedding_model`.
    """
    if model_type in _OTHER_TYPES:
        return {"data": []}
    wanted = _type(model_type, "model_type")
    resources = access.resources
    with access.reading() as session:
        rows = models.list_models(session, access.caller.workspace_id, wanted)
    known = [(record_of(row), row.last_test or {}) for row in rows]
    if wanted is ModelType.EMBEDDING:
        known.insert(0, (resources.models.default_record, {}))
    by_provider: dict[str, list[Json]] = {}
    for record, last_test in known:
        shown = _of_contract(record, last_test, resources)
        by_provider.setdefault(record.provider, []).append(shown)
    return {
        "data": [
            {
                "tenant_id": str(access.caller.workspace_id),
                "provider": provider,
                "label": _label(provider),
                "icon_small": None,
                "icon_large": None,
                "status": "active",
                "models": listed,
            }
            for provider, listed in by_provider.items()
        ]
    }


@router.get("/models")
def list_models(request: Request, access: AccessDep) -> Json:
    """List the models that are configured: that of the settings first, then the oldest."""
    access.caller.needs_whole_workspace("listing models")
    asked = query_text(request, "type")
    wanted = _type(asked, "type") if asked else None
    with access.reading() as session:
        rows = models.list_models(session, access.caller.workspace_id, wanted)
        data = [shape(session, row) for row in rows]
    if wanted in (None, ModelType.EMBEDDING):
        data.insert(0, _shape_of_settings(access.resources))
    return {"data": data}


@router.post("/models", status_code=201)
def add_model(body: JsonBody, access: AccessDep) -> Json:
    """Configure a model of `type` text-embedding, rerank or llm: a local one by `path`, or one
    behind a server of `kind` openai, tei, cohere, jina or vllm by `url` and `api_key`.

    Nothing is asked of it yet: try it out with `POST /v1/models/{model_id}/test`.
    """
    access.caller.needs_whole_workspace("adding a model")
    asked = parse(ModelCreate, body)
    with access.writing() as session:
        row = models.add_model(
            session,
            asked.type,
            asked.provider,
            asked.model,
            asked.kind,
            asked.all_options(),
            asked.api_key.get_secret_value() if asked.api_key else None,
            access.resources,
        )
        return shape(session, row)


@router.get("/models/{model_id}")
def get_model(model_id: str, access: AccessDep) -> Json:
    """Show a model, without its API key; `settings` is the embedding model of the settings."""
    access.caller.needs_whole_workspace("a model")
    if model_id == OF_SETTINGS:
        return _shape_of_settings(access.resources)
    with access.reading() as session:
        return shape(session, _row(session, model_id, access))


@router.patch("/models/{model_id}")
def update_model(model_id: str, body: JsonBody, access: AccessDep) -> Json:
    """Change the keys that are sent: `url`, `path`, `api_key`, `options`.

    What would change vectors is refused while datasets use the model.
    """
    access.caller.needs_whole_workspace("changing a model")
    asked = parse(ModelUpdate, body)
    _refuse_settings(model_id, "changed")
    with access.writing() as session:
        row = _row(session, model_id, access, lock=True)
        models.update_model(
            session,
            row,
            asked.all_options(),
            asked.api_key.get_secret_value() if asked.api_key else None,
            key_given="api_key" in asked.model_fields_set,
            resources=access.resources,
        )
        return shape(session, row)


@router.delete("/models/{model_id}", status_code=204)
def delete_model(model_id: str, access: AccessDep) -> Response:
    """Remove a model; refused while datasets need it."""
    access.caller.needs_whole_workspace("removing a model")
    _refuse_settings(model_id, "removed")
    with access.writing() as session:
        row = _row(session, model_id, access, lock=True)
        models.delete_model(session, row, access.resources)
    return Response(status_code=204)


@router.post("/models/{model_id}/test")
def test_model(model_id: str, access: AccessDep) -> Json:
    """Call the model for real: whether it answered, how fast, and what it gave (`dimension` of an
    embedding model, `scores` of a rerank model, `reply` of a chat model).

    A failed call is a report with `ok` false and the `error`.
    """
    access.caller.needs_whole_workspace("trying a model out")
    if model_id == OF_SETTINGS:
        record = access.resources.models.default_record
    else:
        with access.reading() as session:
            record = record_of(_row(session, model_id, access))
    return models.try_out(record, access.resources)


def shape(session: Session, row: ConfiguredModel) -> Json:
    """As JSON, without its API key."""
    options = {k: v for k, v in row.options.items() if k not in ("url", "path")}
    tested = row.last_test or {}
    return {
        "id": str(row.id),
        "source": "api",
        "type": row.type,
        "provider": row.provider,
        "model": row.model,
        "kind": row.kind,
        "url": row.options.get("url"),
        "path": row.options.get("path"),
        "api_key_hint": row.api_key_hint,
        "options": options,
        "dimension": tested.get("dimension") or row.options.get("dimensions"),
        "used_by": models.used_by(session, row),
        "last_test": row.last_test,
        "created_at": epoch(row.created_at),
        "updated_at": epoch(row.updated_at),
    }


def _shape_of_settings(resources: Resources) -> Json:
    record, options = resources.models.default_record, resources.settings.embedding
    local = options.provider == "local"
    return {
        "id": OF_SETTINGS,
        "source": "settings",
        "type": record.type,
        "provider": record.provider,
        "model": record.model,
        "kind": record.kind,
        "url": None if local else options.url,
        "path": str(options.model_path) if local and options.model_path else None,
        "api_key_hint": "…" if options.api_key else None,
        "options": {},
        "dimension": resources.default_embedder.dim if local else options.dimensions,
        "used_by": [],
        "last_test": None,
        "created_at": None,
        "updated_at": None,
    }


def _of_contract(record: ModelRecord, last_test: Json, resources: Resources) -> Json:
    properties: Json = {"context_size": models.context_tokens(record, last_test, resources)}
    if record.type is ModelType.EMBEDDING:
        texts = record.options.get("request_texts")
        properties["max_chunks"] = texts or resources.settings.embedding.request_texts
    if record.type is ModelType.CHAT:
        properties["mode"] = "chat"
    return {
        "model": record.model,
        "label": _label(record.model),
        "model_type": record.type,
        "features": None,
        "fetch_from": "predefined-model" if record.id is None else "customizable-model",
        "model_properties": properties,
        "deprecated": False,
        "status": "active",
        "load_balancing_enabled": False,
    }


def _label(name: str) -> Json:
    return {"zh_Hans": name, "en_US": name}


def _type(text: str, name: str) -> ModelType:
    try:
        return ModelType(text)
    except ValueError as exc:
        known = ", ".join(ModelType)
        raise InvalidParam(f"{name} is {text[:100]!r}; choose from {known}") from exc


def _row(
    session: Session, model_id: str, access: AccessDep, *, lock: bool = False
) -> ConfiguredModel:
    key = path_id("model", model_id)
    return models.get_model(session, access.caller.workspace_id, key, lock=lock)


def _refuse_settings(model_id: str, what: str) -> None:
    if model_id == OF_SETTINGS:
        raise Conflict(
            f"the embedding model of the settings cannot be {what} here; set KB_EMBEDDING__... and "
            "restart, or add another model and have datasets use that"
        )
