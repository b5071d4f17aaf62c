"""Datasets: create, find, list, change, delete."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kb.db import now
from kb.errors import DatasetNameDuplicate, InvalidParam, NotFound, ProviderNotInitialized
from kb.external.apis import bind
from kb.external.schemas import ExternalDatasetCreate
from kb.jobs import enqueue_delete, may_be_written
from kb.model_registry import hold_model
from kb.models import (
    EXTERNAL,
    Dataset,
    DatasetMember,
    Document,
    DocumentVersion,
    IndexingStatus,
    IndexingTechnique,
    JobKind,
    ModelType,
    ProcessRule,
    TagBinding,
    UploadFile,
    text_key,
)
from kb.ports import Space
from kb.resources import FULL_TEXT_SPACE, Resources, find_embedder, space_of
from kb.schemas import DatasetCreate, DatasetUpdate, ExternalRetrievalModel, RetrievalModelIn
from kb.spaces import all_spaces_of, find_running
from kb.switches import Wanted, check_target, start_switch


@dataclass(frozen=True)
class Counts:
    """What a dataset holds."""

    documents: int = 0
    available: int = 0
    words: int = 0


def add_dataset(session: Session, body: DatasetCreate, resources: Resources) -> Dataset:
    """Create a dataset; its name is unique in the workspace.

    Raises:
        DatasetNameDuplicate: the name is taken.
        InvalidParam: the embedding model is not one of this server's, the service of an external
            dataset is not known, or the retrieval settings cannot work here.
    """
    if body.provider == "external":
        return add_external_dataset(session, body, resources)
    dataset = Dataset(
        workspace_id=resources.workspace_id,
        name=body.name,
        description=body.description,
        provider=body.provider,
        permission=body.permission or "only_me",
        retrieval_model=_checked(session, body.retrieval_model, resources),
        summary_index_setting=(
            body.summary_index_setting.model_dump() if body.summary_index_setting else None
        ),
        created_by=resources.owner_id,
        updated_by=resources.owner_id,
    )
    if body.indexing_technique is not None:
        set_technique(
            session,
            dataset,
            body.indexing_technique,
            body.embedding_model,
            body.embedding_model_provider,
            resources,
        )
    _insert(session, dataset)
    return dataset


def _insert(session: Session, dataset: Dataset) -> None:
    try:
        with session.begin_nested():
            session.add(dataset)
    except IntegrityError as exc:
        raise DatasetNameDuplicate(
            f"a dataset named {dataset.name!r} exists already; choose another name"
        ) from exc


def add_external_dataset(
    session: Session, body: DatasetCreate | ExternalDatasetCreate, resources: Resources
) -> Dataset:
    """A dataset whose knowledge another service holds; nothing of it is indexed here.

    Raises:
        DatasetNameDuplicate: the name is taken.
        InvalidParam: the service is not known, or top_k is beyond the limit.
    """
    dataset = Dataset(
        workspace_id=resources.workspace_id,
        name=body.name,
        description=body.description,
        provider=EXTERNAL,
        permission=getattr(body, "permission", None) or "only_me",
        retrieval_model=_checked_external(body.external_retrieval_model, resources),
        created_by=resources.owner_id,
        updated_by=resources.owner_id,
    )
    _insert(session, dataset)
    bind(session, dataset, body.external_knowledge_api_id, body.external_knowledge_id)
    session.flush()
    return dataset


def _checked_external(
    model: ExternalRetrievalModel | None, resources: Resources
) -> dict[str, Any] | None:
    if model is None:
        return None
    most = resources.settings.limits.top_k
    if model.top_k is not None and not 1 <= model.top_k <= most:
        raise InvalidParam(
            f"external_retrieval_model.top_k is {model.top_k}; choose 1 to {most}, or raise "
            "KB_LIMITS__TOP_K"
        )
    return model.model_dump(mode="json")


def set_retrieval_model(
    session: Session, dataset: Dataset, model: RetrievalModelIn, resources: Resources
) -> None:
    """Keep how the dataset is searched when a query does not say.

    Raises:
        InvalidParam: top_k is beyond the limit, or the rerank model is not configured.
    """
    dataset.retrieval_model = _checked(session, model, resources)


def _checked(
    session: Session, model: RetrievalModelIn | None, resources: Resources
) -> dict[str, Any] | None:
    if model is None:
        return None
    most = resources.settings.limits.top_k
    if model.top_k is not None and not 1 <= model.top_k <= most:
        raise InvalidParam(
            f"retrieval_model.top_k is {model.top_k}; choose 1 to {most}, or raise KB_LIMITS__TOP_K"
        )
    named = model.reranking_model
    provider = named.reranking_provider_name if named else None
    if named and named.reranking_model_name and (provider or model.reranks_by_model):
        try:
            name = named.reranking_model_name
            hold_model(session, resources.models.choose(ModelType.RERANK, provider, name))
        except ProviderNotInitialized as exc:
            raise InvalidParam(
                f"retrieval_model: {exc.message}. Or set reranking_mode to 'weighted_score', and "
                "leave reranking_model out"
            ) from exc
    return model.stored()


def meet_model(provider: str | None, model: str | None, resources: Resources) -> None:
    """Have an embedding model's server say how long its vectors are, if it must be asked.

    Called before a transaction that will need it begins, so that no writer waits for that server.

    Raises:
        TransientError: it does not answer.
    """
    with suppress(ProviderNotInitialized):  # said by whoever needs the model
        _ = find_embedder(resources, provider, model).space


def set_technique(
    session: Session,
    dataset: Dataset,
    technique: IndexingTechnique,
    model: str | None,
    provider: str | None,
    resources: Resources,
) -> None:
    """Fix how a dataset without documents is indexed; embedding fields only for high quality.

    Raises:
        InvalidParam: the model is not configured; the message lists those that are.
    """
    if dataset.provider == EXTERNAL:
        raise InvalidParam(
            f"dataset {dataset.name!r} is external: its knowledge is with another service, and it "
            "takes no documents; create another dataset for them"
        )
    dataset.indexing_technique = technique
    if technique is IndexingTechnique.ECONOMY:
        dataset.embedding_model = dataset.embedding_model_provider = None
        dataset.space_name, dataset.space_dim = FULL_TEXT_SPACE.name, None
        return
    try:
        found = find_embedder(resources, provider, model)
        hold_model(session, found.record)
    except ProviderNotInitialized as exc:
        raise InvalidParam(exc.message) from exc
    dataset.embedding_model, dataset.embedding_model_provider = found.model, found.provider
    dataset.space_name, dataset.space_dim = found.space.name, found.space.dim


def get_dataset(
    session: Session, workspace_id: uuid.UUID, dataset_id: uuid.UUID, *, lock: bool = False
) -> Dataset:
    """The dataset, if it is this workspace's.

    Args:
        lock: let nobody else change it until the transaction ends (SQLite has one writer anyway).
            Workers may still add rows that refer to it. Locks are taken in the order dataset,
            document, segment; then no two writers wait for each other.
    Raises:
        NotFound: it is not there.
    """
    dataset = session.get(
        Dataset, dataset_id, with_for_update={"key_share": True} if lock else None
    )
    if dataset is None or dataset.workspace_id != workspace_id:
        raise NotFound("dataset", dataset_id)
    return dataset


def list_datasets(
    session: Session,
    workspace_id: uuid.UUID,
    *,
    page: int,
    limit: int,
    keyword: str | None = None,
    tag_ids: Collection[uuid.UUID] = (),
    visible_to: uuid.UUID | None = None,
    only: uuid.UUID | None = None,
) -> tuple[Sequence[Dataset], int]:
    """A page of datasets, newest first, and how many there are in all.

    Args:
        keyword: case-insensitive part of the name; wildcards have no meaning.
        tag_ids: only datasets that carry all of these.
        visible_to: only datasets whose permission lets this member see them.
        only: this one, if it matches.
    """
    where = [Dataset.workspace_id == workspace_id]
    if only is not None:
        where.append(Dataset.id == only)
    if tag_ids:
        where.append(_carries(set(tag_ids)))
    if visible_to is not None:
        where.append(_visible_to(visible_to))
    if keyword:
        where.append(Dataset.name.icontains(keyword, autoescape=True))
    total = session.scalar(select(func.count()).select_from(Dataset).where(*where)) or 0
    rows = session.scalars(
        select(Dataset)
        .where(*where)
        .order_by(Dataset.created_at.desc(), Dataset.id)
        .offset((page - 1) * limit)
        .limit(limit)
    ).all()
    return rows, total


def _carries(tag_ids: set[uuid.UUID]) -> ColumnElement[bool]:
    carriers = (
        select(TagBinding.dataset_id)
        .where(TagBinding.tag_id.in_(tag_ids))
        .group_by(TagBinding.dataset_id)
        .having(func.count() == len(tag_ids))
    )
    return Dataset.id.in_(carriers)


def _visible_to(user_id: uuid.UUID) -> ColumnElement[bool]:
    listed = exists().where(
        DatasetMember.dataset_id == Dataset.id, DatasetMember.user_id == user_id
    )
    return or_(
        Dataset.permission == "all_team_members",
        and_(Dataset.permission == "only_me", Dataset.created_by == user_id),
        and_(Dataset.permission == "partial_members", listed),
    )


def members_of(
    session: Session, dataset_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[uuid.UUID]]:
    """Who may see each dataset if its permission is `partial_members`, as they were listed."""
    found: dict[uuid.UUID, list[uuid.UUID]] = {dataset_id: [] for dataset_id in dataset_ids}
    rows = session.execute(
        select(DatasetMember.dataset_id, DatasetMember.user_id)
        .where(DatasetMember.dataset_id.in_(dataset_ids))
        .order_by(DatasetMember.position)
    )
    for dataset_id, user_id in rows:
        found[dataset_id].append(user_id)
    return found


def set_members(session: Session, dataset: Dataset, user_ids: Iterable[uuid.UUID]) -> None:
    """Replace the list of those who may see the dataset."""
    session.execute(delete(DatasetMember).where(DatasetMember.dataset_id == dataset.id))
    rows = [
        {"dataset_id": dataset.id, "user_id": user_id, "position": position}
        for position, user_id in enumerate(dict.fromkeys(user_ids))
    ]
    if rows:
        session.execute(insert(DatasetMember), rows)


def count_documents(session: Session, dataset_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Counts]:
    """What each dataset holds; all in one statement."""
    available = (
        (Document.indexing_status == IndexingStatus.COMPLETED)
        & Document.enabled
        & Document.archived.is_(False)
    )
    rows = session.execute(
        select(
            Document.dataset_id,
            func.count(),
            func.count().filter(available),
            func.coalesce(func.sum(Document.word_count), 0),
        )
        .where(Document.dataset_id.in_(dataset_ids))
        .group_by(Document.dataset_id)
    )
    found = {row[0]: Counts(row[1], row[2], row[3] or 0) for row in rows}
    return {dataset_id: found.get(dataset_id, Counts()) for dataset_id in dataset_ids}


def update_dataset(
    session: Session, dataset: Dataset, body: DatasetUpdate, resources: Resources
) -> None:
    """Apply the keys that the request holds; a null counts only for `description`.

    Another model or technique begins a switch when the dataset holds documents: it answers as
    before until all of them are in their new space.

    Raises:
        InvalidParam: the name is taken, or a change that the dataset's documents forbid.
        Conflict: a switch to another model or technique is under way.
    """
    given = body.model_fields_set
    if "description" in given:
        dataset.description = body.description
    if body.name is not None and body.name != dataset.name:
        _rename(session, dataset, body.name)
    if body.permission is not None:
        dataset.permission = body.permission
    if dataset.permission != "partial_members":
        set_members(session, dataset, ())
    elif body.partial_member_list is not None:
        set_members(session, dataset, [member.user_id for member in body.partial_member_list])
    if dataset.provider == EXTERNAL:
        bind(session, dataset, body.external_knowledge_api_id, body.external_knowledge_id)
        if body.external_retrieval_model is not None:
            dataset.retrieval_model = _checked_external(body.external_retrieval_model, resources)
    elif body.retrieval_model is not None:
        set_retrieval_model(session, dataset, body.retrieval_model, resources)
    asked = (body.indexing_technique, body.embedding_model, body.embedding_model_provider)
    if any(value is not None for value in asked):
        _change_technique(session, dataset, body, resources)
    dataset.updated_at, dataset.updated_by = now(), resources.owner_id


def _rename(session: Session, dataset: Dataset, name: str) -> None:
    try:
        with session.begin_nested():
            dataset.name = name
    except IntegrityError as exc:
        # 400 and not 409: what existing clients of this route get.
        raise InvalidParam(f"a dataset named {name!r} exists already; choose another name") from exc


def _change_technique(
    session: Session, dataset: Dataset, body: DatasetUpdate, resources: Resources
) -> None:
    technique, model = body.indexing_technique or dataset.indexing_technique, body.embedding_model
    provider = body.embedding_model_provider
    if technique is None:
        raise InvalidParam(
            "an embedding model is named, but the dataset has no indexing_technique; send "
            "indexing_technique 'high_quality' with it"
        )
    own = dataset.indexing_technique is technique
    if own and not model and not provider:
        return  # its own model, whatever the default is
    asked = Dataset()
    set_technique(session, asked, technique, model, provider, resources)
    wanted, running = Wanted.of(asked), find_running(session, dataset.id)
    if own and space_of(dataset) == space_of(asked):
        dataset.embedding_model, dataset.embedding_model_provider = wanted.model, wanted.provider
        return
    if running is not None:
        check_target(dataset, running, wanted)
        return
    holds_documents = select(Document.id).where(Document.dataset_id == dataset.id).limit(1)
    if session.scalar(holds_documents) is None:
        set_technique(session, dataset, technique, model, provider, resources)
    else:
        start_switch(session, dataset, wanted, resources)


def delete_dataset(session: Session, dataset: Dataset) -> None:
    """Remove a dataset and all it holds; in force at once, the index and files follow."""
    spaces = all_spaces_of(session, dataset)
    files = (
        select(DocumentVersion.upload_file_id)
        .join(Document, Document.id == DocumentVersion.document_id)
        .where(Document.dataset_id == dataset.id)
    )
    uploads = session.scalars(select(UploadFile).where(UploadFile.id.in_(files))).all()
    versions = session.execute(
        select(DocumentVersion.document_id, DocumentVersion.number, DocumentVersion.text_key)
        .join(Document, Document.id == DocumentVersion.document_id)
        .where(Document.dataset_id == dataset.id)
    )
    keys = [u.blob_key for u in uploads]
    keys += [row.text_key or text_key(row.document_id, row.number) for row in versions]
    own = select(Document.id).where(Document.dataset_id == dataset.id)
    # A switch is a writer, too.
    again = may_be_written(session, own) or len(spaces) > 1
    session.delete(dataset)
    session.flush()
    for upload in uploads:
        session.delete(upload)
    if keys:
        enqueue_delete(session, JobKind.DELETE_BLOBS, again=again, keys=keys)
    for space in spaces:
        enqueue_delete(
            session,
            JobKind.DELETE_DATASET,
            again=again,
            space=space.name,
            dim=space.dim,
            dataset_id=str(dataset.id),
        )


def latest_rule(session: Session, dataset_id: uuid.UUID) -> ProcessRule | None:
    """The process rule that a document without one of its own gets."""
    return session.scalar(
        select(ProcessRule)
        .where(ProcessRule.dataset_id == dataset_id)
        .order_by(ProcessRule.created_at.desc(), ProcessRule.id)
        .limit(1)
    )


def embedding_available(dataset: Dataset, resources: Resources) -> bool:
    """Whether queries of this dataset can be embedded in this process."""
    space: Space | None = space_of(dataset)
    if space is None or space.dim is None:
        return True
    try:
        resources.embedders(space.name)
    except ProviderNotInitialized:
        return False
    return True
