"""Routes of metadata: fields, the switch of the built-in ones, values of documents."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from kb.api.bodies import JsonBody, parse
from kb.api.deps import AccessDep, CallerDep, path_id
from kb.api.text import short
from kb.db import after_commit
from kb.errors import InvalidParam
from kb.metadata import rules
from kb.metadata.fields import BUILT_IN, list_fields
from kb.metadata.labels import settle
from kb.metadata.vocabulary import count_documents
from kb.models import MetadataField
from kb.schemas import MetadataFieldCreate, MetadataFieldUpdate, MetadataOperations

router = APIRouter(prefix="/v1/datasets", tags=["metadata"])

_DONE = {"result": "success"}


@router.post("/{dataset_id}/metadata", status_code=201)
def create_field(dataset_id: str, body: JsonBody, access: AccessDep) -> dict[str, Any]:
    """Make a metadata field: `type` (`string`, `number` or `time`) and `name`."""
    asked = parse(MetadataFieldCreate, body)
    resources = access.resources
    with access.writing() as session:
        row = rules.add_field(
            session,
            access.dataset(session, dataset_id, lock=True),
            asked.name,
            asked.type,
            most=resources.settings.limits.metadata_fields,
            actor=resources.owner_id,
        )
        return shape(row)


@router.get("/{dataset_id}/metadata")
def list_metadata(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """List the dataset's own fields, oldest first, each with the number of documents that have it;
    and whether documents have the built-in ones.
    """
    with access.reading() as session:
        dataset = access.dataset(session, dataset_id)
        rows = list_fields(session, [dataset.id])
        counts = count_documents(session, dataset.id) if rows else {}
    return {
        "doc_metadata": [shape(row) | {"count": counts.get(str(row.id), 0)} for row in rows],
        "built_in_field_enabled": dataset.built_in_field_enabled,
    }


@router.patch("/{dataset_id}/metadata/{metadata_id}")
def rename_field(
    dataset_id: str, metadata_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Rename a field, in every document that has it."""
    asked = parse(MetadataFieldUpdate, body)
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        key = path_id("metadata field", metadata_id)
        return shape(rules.rename_field(session, dataset, key, asked.name))


@router.delete("/{dataset_id}/metadata/{metadata_id}", status_code=204)
def delete_field(dataset_id: str, metadata_id: str, access: AccessDep) -> Response:
    """Delete a field, with its value in every document."""
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        rules.delete_field(session, dataset, path_id("metadata field", metadata_id))
        after_commit(session, access.resources.jobs.run_jobs)
    return Response(status_code=204)


@router.get("/metadata/built-in")
def list_built_in_anywhere(_caller: CallerDep) -> dict[str, Any]:
    """List the built-in fields; they are the same for every dataset."""
    return {"fields": [{"name": field.name, "type": field.type.value} for field in BUILT_IN]}


@router.get("/{dataset_id}/metadata/built-in")
def list_built_in(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """List the built-in fields: what every document has while they are switched on."""
    with access.reading() as session:
        access.dataset(session, dataset_id)
    return list_built_in_anywhere(access.caller)


@router.post("/{dataset_id}/metadata/built-in/{action}")
def switch_built_in(dataset_id: str, action: str, access: AccessDep) -> dict[str, Any]:
    """Switch the built-in fields on (`enable`) or off (`disable`) for all documents."""
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        if action not in ("enable", "disable"):
            raise InvalidParam(f"action is {short(action)}; use enable or disable")
        owed = rules.switch_built_in(session, dataset, on=action == "enable")
    if owed is not None:
        settle(access.resources, owed)
    return _DONE


@router.post("/{dataset_id}/documents/metadata")
def assign(dataset_id: str, body: JsonBody, access: AccessDep) -> dict[str, Any]:
    """Set the metadata of many documents; all or nothing, and in force when it returns.

    With `partial_update` the given values are merged in; without it they replace all values that
    the document has. A null is a field without a value.
    """
    asked = parse(MetadataOperations, body)
    assignments = [
        rules.Assignment(
            path_id("document", one.document_id),
            [(value.id, value.value) for value in one.metadata_list],
            merge=one.partial_update,
        )
        for one in asked.operation_data
    ]
    limits = access.resources.settings.limits
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        owed = rules.assign(session, dataset, assignments, limits)
    settle(access.resources, owed)
    return _DONE


def shape(row: MetadataField) -> dict[str, Any]:
    """As JSON."""
    return {"id": str(row.id), "name": row.name, "type": row.type.value}
