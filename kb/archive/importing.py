"""An archive becomes a dataset: checked whole, built where nobody sees it, shown in one moment.

Until then the dataset belongs to a workspace that no key opens. A job that removes it is written
down with it and put off as long as the import lives; so whatever ends an import, nothing is left.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import IO, Any

from sqlalchemy import CursorResult, delete, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kb.archive.checking import Checked, check
from kb.archive.layout import ChildRecord, DatasetRecord, DocumentRecord, SegmentRecord
from kb.datasets import set_members, set_technique
from kb.db import after_commit, exclusive, moment, now, reading, transaction
from kb.errors import Conflict, DatasetNameDuplicate, InvalidParam
from kb.ingestion.embedding_cache import embed_cached, remember_vectors, text_hash
from kb.ingestion.points import Embed, Leaf, find_facts, write_leaves
from kb.ingestion.staging import counted, identity_of
from kb.maintenance import abandon_import
from kb.metadata.fields import FIRST_FREE_SLOT
from kb.models import (
    IMPORTS_ID,
    ChildChunk,
    Dataset,
    Document,
    DocumentVersion,
    FieldType,
    IndexingStatus,
    Job,
    JobKind,
    MetadataField,
    OverlayState,
    ProcessRule,
    Segment,
    SegmentOverlay,
    SegmentStatus,
    UploadFile,
    Workspace,
    text_key,
)
from kb.ports import Queue, Space
from kb.resources import Resources, space_of
from kb.schemas import DatasetCreate
from kb.tags import bind_names

log = logging.getLogger("kb.archive")

_ALIVE_S = 120.0
"""An import that writes nothing for so long is taken for dead."""
_HIDDEN_S = 6 * 86_400.0
"""Documents of a hidden dataset are put off so long; showing it makes them due."""
_ROWS = 500
_ANNOUNCED = 1000

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Attributes:
        indexed: documents that answer already; the others (`queued`) are worked on.
        vectors: taken from the archive.
    """

    dataset_id: uuid.UUID
    documents: int
    indexed: int
    queued: int
    segments: int
    vectors: int


def import_dataset(resources: Resources, file: IO[bytes], *, name: str | None) -> Imported:
    """Take in an archive; its dataset appears when all of it is there.

    Ids are kept unless one of the dataset or its documents is taken here. With vectors of this
    installation's model (or without any need of them) documents answer at once; else their
    segments, and documents that never went live, are queued.

    Args:
        file: seekable.
        name: of the dataset here; None: the one that the archive names.
    Raises:
        InvalidArchive, ArchiveTooLarge: see `kb.archive.checking`.
        DatasetNameDuplicate: the name is taken.
        InvalidParam: the name cannot be used.
    """
    checked = check(file, resources.settings.limits)
    chosen = _free_name(resources, checked.dataset.name if name is None else name)
    building = _Building.start(resources, checked)
    try:
        return building.run(chosen)
    except BaseException:
        building.abandon()
        raise


def _free_name(resources: Resources, name: str) -> str:
    try:
        name = DatasetCreate(name=name).name
    except ValueError as exc:
        raise InvalidParam(
            f"dataset name {name[:100]!r} cannot be used; give another one of 1 to 40 characters"
        ) from exc
    with reading(resources.sessions) as session:
        taken = session.scalar(
            select(Dataset.id).where(
                Dataset.workspace_id == resources.workspace_id, Dataset.name == name
            )
        )
    if taken is not None:
        raise _name_taken(name)
    return name


def _name_taken(name: str) -> DatasetNameDuplicate:
    return DatasetNameDuplicate(
        f"a dataset named {name!r} exists already; import it under another name (--name NEW, or "
        "?name=NEW)"
    )


@dataclass(frozen=True)
class _Ids:
    """The archive's ids, or others where they are taken."""

    dataset_id: uuid.UUID
    kept: bool

    def document(self, archived: uuid.UUID) -> uuid.UUID:
        return archived if self.kept else uuid.uuid5(self.dataset_id, archived.hex)

    def values(self, archived: dict[str, Any] | None) -> dict[str, Any] | None:
        """Metadata, by the ids that its fields have here."""
        if archived is None:
            return None
        return {str(self.document(uuid.UUID(i))): value for i, value in archived.items()}

    def rule(self, archived: uuid.UUID | None) -> uuid.UUID | None:
        return None if archived is None else self.document(archived)

    def under(
        self, archived_parent: uuid.UUID, parent: uuid.UUID, archived: uuid.UUID, identity: str
    ) -> uuid.UUID:
        """Of a segment or child; one that was derived from its text is derived again."""
        if self.kept:
            return archived
        for turn in range(1, 100):
            if uuid.uuid5(archived_parent, f"{identity}:{turn}") == archived:
                return uuid.uuid5(parent, f"{identity}:{turn}")
        return uuid.uuid5(parent, archived.hex)


@dataclass
class _Parts:
    """A document of the archive, with its rows."""

    record: DocumentRecord
    segments: list[SegmentRecord] = field(default_factory=list)
    children: list[ChildRecord] = field(default_factory=list)

    @cached_property
    def identities(self) -> dict[uuid.UUID, str]:
        """What a pipeline made of segments and child chunks that were edited by hand since."""
        known: dict[uuid.UUID, str] = {}
        for overlay in self.record.overlays:
            if overlay.identity is not None:
                known[overlay.segment_id] = overlay.identity
            if overlay.segment_id != overlay.target_id and overlay.original is not None:
                known[overlay.target_id] = text_hash(overlay.original)
        return known


def _same_model(checked: Checked, resources: Resources) -> tuple[str | None, str | None]:
    """(provider, model) that made the archive's vectors, if it is configured here."""
    embedding = checked.manifest.embedding
    if embedding is None:
        return None, None
    record = resources.models.record_of_space(embedding.space)
    return (None, None) if record is None or record.id is None else record.name


class _Building:
    """A dataset that nobody sees yet."""

    def __init__(
        self,
        resources: Resources,
        checked: Checked,
        ids: _Ids,
        space: Space | None,
    ) -> None:
        self._resources = resources
        self._checked = checked
        self._ids = ids
        self.job_id = uuid.uuid4()
        self.space = space
        self._keys: list[str] = []
        self._vectors = self._segments = self._indexed = self._documents = 0

    @staticmethod
    def start(resources: Resources, checked: Checked) -> _Building:
        """Make the hidden dataset, and the job that removes it."""
        record = checked.dataset
        with reading(resources.sessions) as session:
            kept = not _taken(session, checked)
        with transaction(resources.sessions) as session:
            exclusive(session, "imports")
            if session.get(Workspace, IMPORTS_ID) is None:
                session.add(Workspace(id=IMPORTS_ID, name="imports"))
                session.flush()
            dataset_id = record.id if kept else uuid.uuid4()
            ids = _Ids(dataset_id, kept)
            dataset = Dataset(
                id=dataset_id,
                workspace_id=IMPORTS_ID,
                name=str(uuid.uuid4()),
                description=record.description,
                permission=record.permission,
                data_source_type=record.data_source_type,
                doc_form=record.doc_form,
                average_length=record.average_length,
                retrieval_model=record.retrieval_model,
                summary_index_setting=record.summary_index_setting,
                created_by=resources.owner_id,
                created_at=record.created_at,
                updated_by=resources.owner_id,
            )
            if record.technique is not None:
                provider, model = _same_model(checked, resources)
                set_technique(session, dataset, record.technique, model, provider, resources)
            session.add(dataset)
            session.flush()
            set_members(session, dataset, record.members)
            _add_fields(session, dataset, record, ids)
            for rule in record.rules:
                session.add(
                    ProcessRule(
                        id=ids.rule(rule.id),
                        dataset_id=dataset_id,
                        mode=rule.mode,
                        rules=rule.rules,
                        created_by=resources.owner_id,
                        created_at=rule.created_at,
                    )
                )
            building = _Building(resources, checked, ids, space_of(dataset))
            session.add(
                Job(
                    id=building.job_id,
                    kind=JobKind.ABANDON_IMPORT,
                    payload=building.payload([]),
                    not_before=moment(_ALIVE_S),
                )
            )
        if building.space is not None:
            resources.index.ensure_space(building.space)
        return building

    def payload(self, keys: Sequence[str]) -> dict[str, Any]:
        """What is to be removed if the import ends before the dataset is shown."""
        return {
            "dataset_id": str(self._ids.dataset_id),
            "space": self.space.name if self.space else None,
            "dim": self.space.dim if self.space else None,
            "keys": list(keys),
        }

    # -- building

    def run(self, name: str) -> Imported:
        """Build all of it, and show it."""
        at_once = self._take_vectors()
        for shard in self._checked.shards():
            for parts in _documents(self._checked, shard):
                self._add(parts, at_once=at_once)
        queued = self._show(name)
        return Imported(
            self._ids.dataset_id,
            self._documents,
            self._indexed,
            queued,
            self._segments,
            self._vectors,
        )

    def abandon(self) -> None:
        """Remove what was built, now; the job would do it later."""
        try:
            abandon_import(self._resources, self.payload(self._keys))
            with transaction(self._resources.sessions) as session:
                session.execute(delete(Job).where(Job.id == self.job_id))
        except Exception:
            log.exception("an import that failed is removed by its job, later")

    def _alive(self, session: Session, **values: Any) -> None:
        """Put the removal off; the transaction fails when it has begun already."""
        done = session.execute(
            update(Job)
            .where(Job.id == self.job_id, Job.lease_owner.is_(None))
            .values(not_before=moment(_ALIVE_S), **values)
        )
        assert isinstance(done, CursorResult)
        if done.rowcount != 1:
            raise Conflict(
                f"the import wrote nothing for {_ALIVE_S:.0f} s and was taken for dead; start it "
                "again"
            )

    def _take_vectors(self) -> bool:
        """Put the archive's vectors into the cache; whether documents can be indexed at once."""
        if self.space is None or self.space.dim is None:
            return True
        embedding = self._checked.manifest.embedding
        if embedding is None or (embedding.space, embedding.dim) != (
            self.space.name,
            self.space.dim,
        ):
            return False
        for hashes, rows in self._checked.vectors():
            with transaction(self._resources.sessions) as session:
                self._alive(session)
            remember_vectors(
                self._resources.sessions, self.space.name, dict(zip(hashes, rows, strict=True))
            )
            self._vectors += len(hashes)
        return self._checked.manifest.vectors

    def _add(self, parts: _Parts, *, at_once: bool) -> None:
        record, resources = parts.record, self._resources
        document_id = self._ids.document(record.id)
        upload_key = f"uploads/{uuid.uuid5(document_id, 'source')}"
        text = text_key(document_id, 1) if record.text is not None else None
        self._keys = [upload_key, *([text] if text else [])]
        with transaction(resources.sessions) as session:
            self._alive(session, payload=self.payload(self._keys))
        if not record.source.lost:
            resources.blobs.put(upload_key, self._checked.read(f"sources/{record.source.sha256}"))
        if text is not None:
            resources.blobs.put(text, self._checked.read(f"texts/{record.text}"))
        segments, children = self._rows(parts, document_id)
        with transaction(resources.sessions) as session:
            self._alive(session)
            self._insert(session, record, document_id, upload_key, text)
            for table, rows in ((Segment, segments), (ChildChunk, children)):
                for at in range(0, len(rows), _ROWS):
                    session.execute(insert(table), rows[at : at + _ROWS])
            if record.overlays:
                session.execute(insert(SegmentOverlay), self._overlays(parts, document_id))
        self._documents += 1
        self._segments += len(segments)
        if record.live and at_once:
            self._index(document_id, segments, children)
            self._go_live(record, document_id, segments)
            self._indexed += 1

    def _insert(
        self,
        session: Session,
        record: DocumentRecord,
        document_id: uuid.UUID,
        upload_key: str,
        text: str | None,
    ) -> None:
        resources, source, rule = self._resources, record.source, self._ids.rule(record.rule)
        upload = UploadFile(
            id=uuid.uuid4(),
            workspace_id=resources.workspace_id,
            name=source.name,
            size_bytes=source.bytes,
            extension=source.extension,
            media_type=source.media_type,
            is_text=source.is_text,
            sha256=source.sha256,
            blob_key=upload_key,
            created_by=resources.owner_id,
        )
        session.add(upload)
        session.flush()
        at: Any = moment()
        hidden: Any = moment(_HIDDEN_S)
        small = source.bytes <= resources.settings.ingestion.interactive_bytes
        session.add(
            Document(
                id=document_id,
                dataset_id=self._ids.dataset_id,
                position=record.position,
                name=record.name,
                batch=record.batch,
                data_source_type=record.data_source_type,
                upload_file_id=upload.id,
                process_rule_id=rule,
                doc_form=record.doc_form,
                doc_language=record.doc_language,
                doc_metadata=self._ids.values(record.doc_metadata),
                created_from=record.created_from,
                created_by=resources.owner_id,
                created_at=record.created_at,
                updated_at=record.updated_at,
                version=0,
                pending_version=1,
                indexing_status=(
                    IndexingStatus.INDEXING if record.live else IndexingStatus.WAITING
                ),
                is_paused=record.is_paused,
                queue=Queue.INTERACTIVE if small else Queue.BULK,
                queued_at=at,
                next_attempt_at=hidden,
                enabled=record.enabled,
                disabled_at=record.disabled_at,
                archived=record.archived,
            )
        )
        session.flush()
        session.add(
            DocumentVersion(
                document_id=document_id,
                number=1,
                upload_file_id=upload.id,
                process_rule_id=rule,
                staged_at=at if record.live else None,
                text_key=text,
                warnings=record.warnings,
            )
        )
        session.flush()

    def _rows(self, parts: _Parts, document_id: uuid.UUID) -> tuple[Rows, Rows]:
        """Rows as a worker that has staged the document leaves them."""
        ids, at = self._ids, now()  # shown only
        common = {
            "dataset_id": ids.dataset_id,
            "document_id": document_id,
            "live": False,
            "staged_version": 1,
            "created_by": self._resources.owner_id,
        }
        parents = {child.segment_id for child in parts.children}
        places: dict[uuid.UUID, uuid.UUID] = {}
        segments: Rows = []
        for record in parts.segments:
            identity = parts.identities.get(record.id) or identity_of(record.content, record.answer)
            own = ids.under(parts.record.id, document_id, record.id, identity)
            places[record.id] = own
            segments.append(
                common
                | record.model_dump(exclude={"type", "id"})
                | counted(record.content, record.answer)
                | {
                    "id": own,
                    "has_children": record.id in parents,
                    "status": SegmentStatus.WAITING,
                    "indexing_at": at,
                }
            )
        children: Rows = [
            common
            | child.model_dump(exclude={"type", "id", "segment_id", "made"})
            | counted(child.content, None)
            | {
                "id": ids.under(
                    child.segment_id,
                    places[child.segment_id],
                    child.id,
                    parts.identities.get(child.id) or text_hash(child.content),
                ),
                "segment_id": places[child.segment_id],
                "type": child.made,
            }
            for child in parts.children
        ]
        return segments, children

    def _overlays(self, parts: _Parts, document_id: uuid.UUID) -> Rows:
        """Hand edits, with the ids that their segments and child chunks have or would have here."""
        ids, rows = self._ids, []
        for overlay in parts.record.overlays:
            segment = ids.under(
                parts.record.id,
                document_id,
                overlay.segment_id,
                parts.identities.get(overlay.segment_id, ""),
            )
            target = segment
            if overlay.target_id != overlay.segment_id:
                identity = parts.identities.get(overlay.target_id, "")
                target = ids.under(overlay.segment_id, segment, overlay.target_id, identity)
            rows.append(
                overlay.model_dump()
                | {
                    "id": ids.document(overlay.id),
                    "dataset_id": ids.dataset_id,
                    "document_id": document_id,
                    "segment_id": segment,
                    "target_id": target,
                    "matched_version": 1 if overlay.state is OverlayState.ACTIVE else None,
                    "created_by": self._resources.owner_id,
                }
            )
        return rows

    def _index(self, document_id: uuid.UUID, segments: Rows, children: Rows) -> None:
        """Write the points; the vectors come from the cache."""
        resources = self._resources
        assert self.space is not None
        assert self._checked.dataset.average_length is not None
        embed: Embed | None = None
        if self.space.dim is not None:
            embedder = resources.embedders(self.space.name)
            embed = partial(embed_cached, embedder, sessions=resources.sessions)
        with reading(resources.sessions) as session:
            facts = find_facts(session, document_id)
        leaves = [
            Leaf(
                row["id"],
                row.get("segment_id", row["id"]),
                document_id,
                1,
                row["content"],
                row["text_hash"],
                facts,
            )
            for row in [*(s for s in segments if not s["has_children"]), *children]
        ]
        size = resources.settings.ingestion.batch_segments
        for at in range(0, len(leaves), size):
            if at:
                with transaction(resources.sessions) as session:
                    self._alive(session)
            write_leaves(
                resources.index,
                self.space,
                self._ids.dataset_id,
                leaves[at : at + size],
                embed,
                average_length=self._checked.dataset.average_length,
            )

    def _go_live(self, record: DocumentRecord, document_id: uuid.UUID, segments: Rows) -> None:
        at = moment()
        with transaction(self._resources.sessions) as session:
            self._alive(session)
            shown = {"live": True, "staged_version": None, "indexed_at": at}
            for table, values in (
                (Segment, {**shown, "status": SegmentStatus.COMPLETED}),
                (ChildChunk, shown),
            ):
                session.execute(
                    update(table)
                    .where(table.document_id == document_id)
                    .values(**values)
                    .execution_options(synchronize_session=False)
                )
            session.execute(
                update(Document)
                .where(Document.id == document_id)
                .values(
                    version=1,
                    pending_version=None,
                    indexing_status=IndexingStatus.COMPLETED,
                    next_attempt_at=None,
                    completed_at=record.completed_at or at,
                    word_count=sum(row["word_count"] for row in segments),
                    tokens=sum(row["tokens"] for row in segments),
                )
            )
            session.execute(
                update(DocumentVersion)
                .where(DocumentVersion.document_id == document_id)
                .values(live_at=at)
            )

    # -- showing

    def _show(self, name: str) -> int:
        """Make it a dataset like any other, under its name; how many documents are left to do."""
        resources, dataset_id = self._resources, self._ids.dataset_id
        mine = Document.dataset_id == dataset_id
        try:
            with transaction(resources.sessions) as session:
                ended = session.execute(
                    delete(Job).where(Job.id == self.job_id, Job.lease_owner.is_(None))
                )
                assert isinstance(ended, CursorResult)
                if ended.rowcount != 1:
                    raise Conflict("the import was taken for dead; start it again")
                session.execute(
                    update(Document)
                    .where(mine, Document.pending_version.is_not(None))
                    .values(next_attempt_at=None)
                )
                session.execute(
                    update(Dataset)
                    .where(Dataset.id == dataset_id)
                    .values(workspace_id=resources.workspace_id, name=name, updated_at=moment())
                )
                names = self._checked.dataset.tags
                bind_names(session, dataset_id, names, resources)
                left = (mine, Document.pending_version.is_not(None), Document.is_paused.is_(False))
                queued = session.scalar(select(func.count()).select_from(Document).where(*left))
                first = session.execute(
                    select(Document.id, Document.queue).where(*left).limit(_ANNOUNCED)
                ).all()
                after_commit(session, lambda: _announce(resources, first))
        except IntegrityError as exc:
            raise _name_taken(name) from exc
        return queued or 0


def _add_fields(session: Session, dataset: Dataset, record: DatasetRecord, ids: _Ids) -> None:
    slots = itertools.count(FIRST_FREE_SLOT)
    for one in record.fields:
        session.add(
            MetadataField(
                id=ids.document(one.id),
                dataset_id=dataset.id,
                name=one.name,
                type=one.field,
                slot=None if one.field is FieldType.STRING else next(slots),
                created_by=dataset.created_by,
                created_at=one.created_at,
            )
        )
    dataset.built_in_field_enabled = record.built_in_fields


def _announce(resources: Resources, documents: Sequence[Any]) -> None:
    for row in documents:  # the sweeper announces what is left
        resources.jobs.index_document(row[0], row[1])


def _documents(checked: Checked, shard: str) -> Iterator[_Parts]:
    parts: _Parts | None = None
    for record in checked.records(shard):
        if isinstance(record, DocumentRecord):
            if parts is not None:
                yield parts
            parts = _Parts(record)
        elif parts is not None and isinstance(record, SegmentRecord):
            parts.segments.append(record)
        elif parts is not None and isinstance(record, ChildRecord):
            parts.children.append(record)
    if parts is not None:
        yield parts


def _taken(session: Session, checked: Checked) -> bool:
    """Whether an id of the archive is one of this installation's."""
    if session.get(Dataset, checked.dataset.id) is not None:
        return True
    rules = [rule.id for rule in checked.dataset.rules]
    fields = [one.id for one in checked.dataset.fields]
    if _any_known(session, ProcessRule, rules) or _any_known(session, MetadataField, fields):
        return True
    for shard in checked.shards():
        found: dict[Any, list[uuid.UUID]] = {Document: [], Segment: [], ChildChunk: []}
        for record in checked.records(shard):
            table = {"document": Document, "segment": Segment, "child": ChildChunk}[record.type]
            found[table].append(record.id)
        if any(_any_known(session, table, ids) for table, ids in found.items()):
            return True
    return False


def _any_known(session: Session, table: Any, ids: Sequence[uuid.UUID]) -> bool:
    return any(
        session.scalar(select(exists().where(table.id.in_(ids[at : at + _ROWS]))))
        for at in range(0, len(ids), _ROWS)
    )
