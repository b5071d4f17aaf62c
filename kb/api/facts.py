"""What the answers about datasets tell beside a dataset's own row."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from kb.datasets import Counts, count_documents, members_of
from kb.external.apis import ExternalInfo, infos_of
from kb.metadata.fields import Field, fields_of
from kb.models import EXTERNAL, Dataset, Tag
from kb.tags import tags_of


@dataclass(frozen=True)
class Facts:
    """Of one dataset.

    Attributes:
        members: who may see it when its permission is `partial_members`.
        external: the service behind it, when it has one.
    """

    counts: Counts = field(default_factory=Counts)
    tags: Sequence[Tag] = ()
    members: Sequence[uuid.UUID] = ()
    fields: Sequence[Field] = ()
    """Of its documents' metadata, the built-in ones at the end while they are switched on."""
    external: ExternalInfo | None = None


def facts_of(session: Session, rows: Sequence[Dataset]) -> dict[uuid.UUID, Facts]:
    """Of each of these datasets; as many statements for a page as for one."""
    ids = [row.id for row in rows]
    counts, tags, members, fields = (
        count_documents(session, ids),
        tags_of(session, ids),
        members_of(session, ids),
        fields_of(session, ids),
    )
    infos = infos_of(session, [row.id for row in rows if row.provider == EXTERNAL])
    return {i: Facts(counts[i], tags[i], members[i], tuple(fields[i]), infos.get(i)) for i in ids}
