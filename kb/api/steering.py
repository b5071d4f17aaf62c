"""Routes of our own that steer documents: pause, resume, retry, cancel, rename, rechunk, report."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request

from kb import documents, reports, steering
from kb.api import shapes
from kb.api.bodies import JsonBody, parse
from kb.api.deps import Access, AccessDep, query_int
from kb.api.documents import answer_of, checked_name
from kb.document_status import display_status
from kb.metadata.labels import owe, settle
from kb.models import ProcessRule, UploadFile
from kb.process_rules import ProcessRuleIn
from kb.schemas import (
    DocumentFilter,
    DocumentRechunk,
    DocumentRename,
    DocumentsAction,
)
from kb.steering import Action, Filter

router = APIRouter(prefix="/v1", tags=["documents"])

_ONE = "/datasets/{dataset_id}/documents/{document_id}"


@router.post("/documents/{action}")
def steer_documents(action: str, body: JsonBody, access: AccessDep) -> dict[str, Any]:
    """Pause, resume, retry, cancel or rechunk every document that matches `filter` (ours).

    Those that are not in a state for it are passed over. The answer names the documents that were
    changed; when a call breaks off, the same call does the rest.
    """
    wanted = steering.known_action(action)
    asked = parse(DocumentsAction, body)
    caller = access.caller
    matching = _filter(asked.filter)
    if caller.dataset_id is not None:  # a key of one dataset sees no other
        elsewhere = matching.dataset_id not in (None, caller.dataset_id)
        matching = matching.within(caller.dataset_id, nothing=elsewhere)
    done = steering.steer_all(
        access.resources, caller.workspace_id, matching, wanted, asked.process_rule
    )
    return {
        "action": wanted.value,
        "matched": done.matched,
        "affected": len(done.changed),
        "document_ids": [str(row.id) for row in done.changed],
        "documents": [
            {
                "id": str(row.id),
                "dataset_id": str(row.dataset_id),
                "name": row.name,
                "batch": row.batch,
            }
            for row in done.changed
        ],
    }


def _filter(asked: DocumentFilter) -> Filter:
    def several(values: list[Any] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values)

    return Filter(
        dataset_id=asked.dataset_id,
        document_ids=several(asked.document_ids),
        statuses=several(asked.status),
        error_codes=several(asked.error_code),
        tags=several(asked.tag),
        created_from=asked.created_from,
        created_to=asked.created_to,
    )


@router.post(f"{_ONE}/pause")
def pause_document(dataset_id: str, document_id: str, access: AccessDep) -> dict[str, Any]:
    """Stop the work on a document after the batch in hand, and let nobody take it (ours)."""
    return _steer(dataset_id, document_id, Action.PAUSE, access)


@router.post(f"{_ONE}/resume")
def resume_document(dataset_id: str, document_id: str, access: AccessDep) -> dict[str, Any]:
    """Have a paused document go on after its last checkpoint (ours)."""
    return _steer(dataset_id, document_id, Action.RESUME, access)


@router.post(f"{_ONE}/retry")
def retry_document(dataset_id: str, document_id: str, access: AccessDep) -> dict[str, Any]:
    """Queue a failed or cancelled document again (ours); it goes on after its last checkpoint."""
    return _steer(dataset_id, document_id, Action.RETRY, access)


@router.post(f"{_ONE}/cancel")
def cancel_document(dataset_id: str, document_id: str, access: AccessDep) -> dict[str, Any]:
    """Give up the version in preparation (ours).

    A document with an older version that answers keeps it and is completed again; one without
    ends as `error` with code `cancelled`, which a retry undoes.
    """
    return _steer(dataset_id, document_id, Action.CANCEL, access)


@router.post(f"{_ONE}/rechunk")
def rechunk_document(
    dataset_id: str, document_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Cut a document anew by `process_rule`, as a new version of the same file (ours).

    The old chunks answer until the new ones are complete; texts that stay the same keep their ids.
    """
    asked = parse(DocumentRechunk, {} if body is None else body)
    return _steer(dataset_id, document_id, Action.RECHUNK, access, asked.process_rule)


def _steer(
    dataset_id: str,
    document_id: str,
    action: Action,
    access: Access,
    rule: ProcessRuleIn | None = None,
) -> dict[str, Any]:
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        document = access.document(session, dataset, document_id, lock=True)
        steering.steer(session, dataset, document, action, access.resources, rule)
        session.flush()
        session.refresh(document)  # times are the database's
        return answer_of(session, document, session.get(UploadFile, document.upload_file_id))


@router.post(f"{_ONE}/rename")
def rename_document(
    dataset_id: str, document_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Give a document another `name` (ours); its file keeps its own. Nothing is indexed anew."""
    asked = parse(DocumentRename, body)
    name = checked_name(asked.name, access.resources.settings.limits)
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        document = access.document(session, dataset, document_id, lock=True)
        documents.rename_document(document, name)
        session.flush()
        by_name = dataset.built_in_field_enabled
        owed = owe(session, dataset.id, [document.id]) if by_name else None
        answer = answer_of(session, document, session.get(UploadFile, document.upload_file_id))
    if owed is not None:
        settle(access.resources, owed)  # filters know the new name when the call returns
    return answer


@router.get(f"{_ONE}/report")
def get_report(
    request: Request, dataset_id: str, document_id: str, access: AccessDep
) -> dict[str, Any]:
    """What became of a document's file (ours): characters, pages, table rows, chunks, tokens, time
    per stage, attempts, errors, warnings, and hand edits that could not be taken over.

    Of the version in preparation, else of the one that answers; `version` asks for another.
    """
    number = query_int(request, "version", 0) if "version" in request.query_params else None
    with access.reading() as session:
        document = access.document(session, access.dataset(session, dataset_id), document_id)
        version = reports.find_version(session, document, number)
        upload = session.get(UploadFile, version.upload_file_id)
        rule = version.process_rule_id and session.get(ProcessRule, version.process_rule_id)
        report = reports.report_of(session, document, version)
        return _plain(
            {
                "id": str(document.id),
                "name": document.name,
                "version": version.number,
                "state": reports.state_of(document, version),
                "display_status": display_status(document),
                "file": shapes.upload_file(upload) if upload else None,
                "process_rule": {"mode": rule.mode, "rules": rule.rules} if rule else None,
                **report,
            }
        )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """With times as Unix seconds."""
    return {key: _plain_item(item) for key, item in value.items()}


def _plain_item(value: Any) -> Any:
    if isinstance(value, datetime):
        return shapes.epoch(value)
    if isinstance(value, dict):
        return _plain(value)
    return [_plain_item(item) for item in value] if isinstance(value, list) else value
