"""Services that hold knowledge: kept with their keys, tried out, and bound to datasets."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kb.addresses import checked_url
from kb.db import now
from kb.errors import ExternalApiInUse, InvalidParam, NotFound
from kb.external.schemas import HIDDEN, ExternalApiIn
from kb.models import Dataset, ExternalApi, ExternalBinding
from kb.resources import Resources

ALLOW_PRIVATE = "KB_EXTERNAL__ALLOW_PRIVATE"
PASSED_ON = "X-KB-Passed-On"
"""A header of our questions to services, so that two kb servers do not send one round for ever."""


@dataclass(frozen=True, slots=True)
class ExternalInfo:
    """What a dataset shows of the service behind it."""

    knowledge_id: str
    api_id: uuid.UUID
    api_name: str
    endpoint: str


def checked_endpoint(endpoint: str, resources: Resources) -> str:
    """The address, if `/retrieval` can be put behind it and asked.

    Raises:
        InvalidParam: the message says what is wrong with it.
    """
    allowed = resources.settings.external.allow_private
    checked_url(endpoint, what="endpoint", allow_private=allowed, setting=ALLOW_PRIVATE)
    if "?" in endpoint:
        raise InvalidParam(
            f"endpoint {endpoint[:100]!r} holds a '?'; /retrieval is put behind it, so give the "
            "address up to there"
        )
    return endpoint


def refuse_stand_in(api_key: str) -> None:
    """Raises: InvalidParam: it stands for a key that is kept, and none is."""
    if api_key == HIDDEN:
        raise InvalidParam(f"api_key is {HIDDEN!r}, which stands for a key that is kept; send one")


def add_api(
    session: Session, workspace_id: uuid.UUID, body: ExternalApiIn, resources: Resources
) -> ExternalApi:
    """Keep a service; its key is sealed.

    Raises:
        InvalidParam: the workspace has as many as it may.
    """
    known = select(func.count()).select_from(ExternalApi)
    count = session.scalar(known.where(ExternalApi.workspace_id == workspace_id)) or 0
    most = resources.settings.external.most
    if count >= most:
        raise InvalidParam(
            f"the workspace has {count} external knowledge APIs, which is the limit; delete one, "
            "or raise KB_EXTERNAL__MOST"
        )
    row = ExternalApi(
        workspace_id=workspace_id,
        name=body.name,
        description=body.description,
        endpoint=body.settings.endpoint,
        api_key=resources.keyring.seal(body.settings.api_key),
        created_by=resources.owner_id,
    )
    session.add(row)
    session.flush()
    return row


def get_api(session: Session, workspace_id: uuid.UUID, api_id: uuid.UUID) -> ExternalApi:
    """Raises: NotFound: it is not in this workspace."""
    row = session.get(ExternalApi, api_id)
    if row is None or row.workspace_id != workspace_id:
        raise NotFound("external knowledge API", api_id)
    return row


def list_apis(
    session: Session, workspace_id: uuid.UUID, *, page: int, limit: int, keyword: str | None
) -> tuple[Sequence[ExternalApi], int]:
    """A page of services, newest first, and how many there are; `keyword` is part of the name."""
    where = [ExternalApi.workspace_id == workspace_id]
    if keyword:
        where.append(ExternalApi.name.icontains(keyword, autoescape=True))
    total = session.scalar(select(func.count()).select_from(ExternalApi).where(*where)) or 0
    rows = session.scalars(
        select(ExternalApi)
        .where(*where)
        .order_by(ExternalApi.created_at.desc(), ExternalApi.id)
        .offset((page - 1) * limit)
        .limit(limit)
    ).all()
    return rows, total


def update_api(row: ExternalApi, body: ExternalApiIn, resources: Resources) -> None:
    """Replace all of it; the stand-in for the key keeps the key."""
    row.name, row.description = body.name, body.description
    row.endpoint, row.updated_at = body.settings.endpoint, now()
    if body.settings.api_key != HIDDEN:
        row.api_key = resources.keyring.seal(body.settings.api_key)


def delete_api(session: Session, row: ExternalApi) -> None:
    """Forget a service.

    Raises:
        ExternalApiInUse: datasets are bound to it.
    """
    bound = bound_to(session, [row.id])[row.id]
    if bound:
        names = ", ".join(repr(name) for _, name in bound[:5])
        raise ExternalApiInUse(
            f"external knowledge API {row.name!r} is used by {len(bound)} datasets ({names}); "
            "delete them first, or bind them to another"
        )
    session.delete(row)


def bound_to(
    session: Session, api_ids: Collection[uuid.UUID]
) -> Mapping[uuid.UUID, list[tuple[uuid.UUID, str]]]:
    """Of each service the datasets that it stands behind: id and name."""
    found: dict[uuid.UUID, list[tuple[uuid.UUID, str]]] = defaultdict(list)
    for api_id, dataset_id, name in session.execute(
        select(ExternalBinding.api_id, Dataset.id, Dataset.name)
        .join(Dataset, Dataset.id == ExternalBinding.dataset_id)
        .where(ExternalBinding.api_id.in_(api_ids))
        .order_by(Dataset.created_at, Dataset.id)
    ):
        found[api_id].append((dataset_id, name))
    return found


# --- datasets ------------------------------------------------------------------------------------


def bind(
    session: Session,
    dataset: Dataset,
    api_id: str | uuid.UUID | None,
    knowledge_id: str | None,
) -> None:
    """Have a dataset stand for a knowledge base of a service; what is None stays as it is.

    Raises:
        InvalidParam: the service is not known, or one of both is not said and was not before.
    """
    if not api_id and not knowledge_id:
        return
    binding = session.get(ExternalBinding, dataset.id)
    knowledge_id = knowledge_id or (binding.knowledge_id if binding else None)
    if not api_id and binding is None:
        raise InvalidParam(
            f"external_knowledge_id is {str(knowledge_id)[:100]!r}, but external_knowledge_api_id "
            "does not say whose; send the id of an external knowledge API"
        )
    if not knowledge_id:
        raise InvalidParam(
            "external_knowledge_id is missing; send what the external knowledge API calls the "
            "knowledge base"
        )
    known = _known_api(session, dataset.workspace_id, api_id).id if api_id else None
    if binding is None:
        binding = ExternalBinding(dataset_id=dataset.id)
        session.add(binding)
    binding.api_id = known or binding.api_id
    binding.knowledge_id = knowledge_id


def _known_api(session: Session, workspace_id: uuid.UUID, api_id: str | uuid.UUID) -> ExternalApi:
    try:
        # Locked, so that nobody deletes it meanwhile.
        row = session.get(ExternalApi, uuid.UUID(str(api_id)), with_for_update={"read": True})
    except ValueError:
        row = None
    if row is None or row.workspace_id != workspace_id:
        raise InvalidParam(
            f"there is no external knowledge API {str(api_id)[:100]!r}; "
            "GET /v1/datasets/external-knowledge-api lists them"
        )
    return row


def infos_of(
    session: Session, dataset_ids: Collection[uuid.UUID]
) -> Mapping[uuid.UUID, ExternalInfo]:
    """Of those of these datasets that are bound."""
    return {
        dataset_id: ExternalInfo(knowledge_id, api_id, name, endpoint)
        for dataset_id, knowledge_id, api_id, name, endpoint in session.execute(
            select(
                ExternalBinding.dataset_id,
                ExternalBinding.knowledge_id,
                ExternalApi.id,
                ExternalApi.name,
                ExternalApi.endpoint,
            )
            .join(ExternalApi, ExternalApi.id == ExternalBinding.api_id)
            .where(ExternalBinding.dataset_id.in_(dataset_ids))
        )
    }
