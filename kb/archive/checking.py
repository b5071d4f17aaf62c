"""An archive as it was received: nothing of it is believed before all of it is checked."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from kb.archive.layout import (
    DATASET,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MEMBER,
    RECORD,
    SEAL,
    VECTORS,
    AnyRecord,
    ChildRecord,
    DatasetRecord,
    DocumentRecord,
    Manifest,
    Member,
    SegmentRecord,
)
from kb.errors import ArchiveTooLarge, InvalidArchive, InvalidParam
from kb.metadata.fields import BUILT_IN_NAMES, Field
from kb.metadata.values import typed
from kb.settings import Limits

_PIECE = 2**20
_HASH = re.compile(r"[0-9a-f]{64}")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Checked:
    """An archive that is what it says; its files are read again as they are needed."""

    manifest: Manifest
    dataset: DatasetRecord
    _zip: zipfile.ZipFile
    _limits: Limits

    def shards(self) -> Iterator[str]:
        """Names of the files of records, in order."""
        return iter(sorted(n for n in self.manifest.members if n.startswith("documents/")))

    def vectors(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """(text hashes, float32[n, dim]) of one file after the other."""
        for name in sorted(self.manifest.members):
            if name.startswith("vectors/") and name.endswith(".npy"):
                yield _vectors(self, name)

    def records(self, shard: str) -> Iterator[AnyRecord]:
        """The records of a file.

        Raises:
            InvalidArchive: one is not a record.
        """
        for number, line in enumerate(self.read(shard).split(b"\n"), start=1):
            try:
                record = RECORD.validate_json(line)
            except ValidationError as exc:
                error = exc.errors(include_url=False, include_input=False)[0]
                at = ".".join(map(str, error["loc"]))
                raise InvalidArchive(f"{shard}, line {number}: {at}: {error['msg']}") from exc
            if b"\\u0000" in line:
                raise InvalidArchive(f"{shard}, line {number}: a text holds the character NUL")
            yield record

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            InvalidArchive: they are not those that the manifest names.
        """
        member = self.manifest.members[name]
        data = _read(self._zip, name, member.bytes)
        if len(data) != member.bytes or sha256(data).hexdigest() != member.sha256:
            raise InvalidArchive(f"{name} does not have the checksum that the manifest names")
        return data


def check(file: IO[bytes], limits: Limits) -> Checked:
    """Read all of it once.

    Raises:
        InvalidArchive: it is no archive of ours, of another version, cut off, or damaged.
        ArchiveTooLarge: unpacked it would be larger than allowed.
    """
    try:
        zipped = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as exc:
        raise InvalidArchive(
            f"the file is no zip, or its end is missing ({exc}); export the dataset again"
        ) from exc
    _check_directory(zipped, limits)
    manifest = _manifest(zipped)
    names = {info.filename for info in zipped.infolist()} - {MANIFEST}
    if names != manifest.members.keys():
        other = sorted(names ^ manifest.members.keys())[0]
        raise InvalidArchive(f"the manifest and the zip do not name the same files: {other[:100]}")
    checked = Checked(manifest, _dataset(zipped, manifest), zipped, limits)
    for name in manifest.members:
        if not name.endswith(".jsonl"):
            _check_bytes(zipped, name, manifest.members[name])
    _check_records(checked)
    for hashes, rows in checked.vectors():
        del hashes, rows
    return checked


def _check_directory(zipped: zipfile.ZipFile, limits: Limits) -> None:
    infos = zipped.infolist()
    if len(infos) > limits.archive_files:
        raise ArchiveTooLarge(
            f"the archive holds {len(infos):,} files, the limit is {limits.archive_files:,}; raise "
            "KB_LIMITS__ARCHIVE_FILES"
        )
    total = 0
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        if (name != MANIFEST and not MEMBER.fullmatch(name)) or name in seen:
            raise InvalidArchive(f"the archive holds {name[:100]!r}, which has no place in it")
        if info.flag_bits & 0x1 or info.compress_type not in _METHODS:
            raise InvalidArchive(f"{name} is encrypted or packed in a way that is not read here")
        seen.add(name)
        total += info.file_size
        most = limits.file_bytes if name.startswith("sources/") else limits.archive_part_bytes
        if info.file_size > most:
            setting = "FILE_BYTES" if name.startswith("sources/") else "ARCHIVE_PART_BYTES"
            raise ArchiveTooLarge(
                f"{name} has {info.file_size:,} bytes, the limit is {most:,}; raise "
                f"KB_LIMITS__{setting}"
            )
    if total > limits.archive_unpacked_bytes:
        raise ArchiveTooLarge(
            f"the archive has {total:,} bytes when it is unpacked, the limit is "
            f"{limits.archive_unpacked_bytes:,}; raise KB_LIMITS__ARCHIVE_UNPACKED_BYTES"
        )


def _manifest(zipped: zipfile.ZipFile) -> Manifest:
    try:
        info = zipped.getinfo(MANIFEST)
    except KeyError as exc:
        raise InvalidArchive("the zip has no manifest.json; it is no archive of a dataset") from exc
    raw = _read(zipped, MANIFEST, info.file_size)
    try:
        known = re.search(rb'"format":"([^"]*)","format_version":([0-9]+)', raw)
        if known and (known[1], known[2]) != (FORMAT.encode(), str(FORMAT_VERSION).encode()):
            raise InvalidArchive(
                f"the archive has format {known[1].decode(errors='replace')[:40]!r} version "
                f"{int(known[2][:9])}; this server reads {FORMAT!r} version {FORMAT_VERSION}. "
                "Import it with the version of kb that wrote it, or export it again"
            )
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, error["loc"]))
        raise InvalidArchive(f"{MANIFEST}: {at}: {error['msg']}") from exc
    if zipped.comment != f"{SEAL}{sha256(raw).hexdigest()}".encode():
        raise InvalidArchive("manifest.json does not have the checksum in the zip's comment")
    if manifest.format_version != FORMAT_VERSION:
        raise InvalidArchive(f"manifest.json: format_version is {manifest.format_version}")
    return manifest


def _dataset(zipped: zipfile.ZipFile, manifest: Manifest) -> DatasetRecord:
    if DATASET not in manifest.members:
        raise InvalidArchive("the archive has no dataset.json")
    raw = _read(zipped, DATASET, manifest.members[DATASET].bytes)
    try:
        return DatasetRecord.model_validate_json(raw)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, error["loc"]))
        raise InvalidArchive(f"{DATASET}: {at}: {error['msg']}") from exc


def _check_bytes(zipped: zipfile.ZipFile, name: str, member: Member) -> None:
    digest, size = sha256(), 0
    for piece in _pieces(zipped, name, member.bytes):
        digest.update(piece)
        size += len(piece)
    named = name.partition("/")[2] if name.startswith(("sources/", "texts/")) else member.sha256
    if size != member.bytes or digest.hexdigest() != member.sha256 or named != member.sha256:
        raise InvalidArchive(
            f"{name} does not have the checksum that the manifest names; the archive is damaged, "
            "get it again"
        )


def _read(zipped: zipfile.ZipFile, name: str, size: int) -> bytes:
    out = io.BytesIO()
    for piece in _pieces(zipped, name, size):
        out.write(piece)
    return out.getvalue()


def _pieces(zipped: zipfile.ZipFile, name: str, size: int) -> Iterator[bytes]:
    """A file, never more than a byte beyond `size` of it: what the zip says may be a lie."""
    left = size + 1
    try:
        with zipped.open(name) as opened:
            while left and (piece := opened.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as exc:
        raise InvalidArchive(f"{name} cannot be read: {exc}; get the archive again") from exc
    except Exception as exc:
        if type(exc).__module__ != "zlib":
            raise
        raise InvalidArchive(f"{name} cannot be unpacked: {exc}; get the archive again") from exc


def _check_records(checked: Checked) -> None:
    """Every record is one, names what is there, and the counts are those of the manifest."""
    members, counts = checked.manifest.members, checked.manifest.counts
    rules = {rule.id for rule in checked.dataset.rules}
    fields = _fields(checked.dataset)
    found = dict.fromkeys(("document", "segment", "child"), 0)
    live = 0
    for shard in checked.shards():
        document: DocumentRecord | None = None
        segments: set[Any] = set()
        for record in checked.records(shard):
            found[record.type] += 1
            if isinstance(record, DocumentRecord):
                document, segments = record, set()
                live += record.live
                _check_document(record, members, rules, shard)
                _check_values(record, fields, shard)
            elif document is None or not document.live:
                raise InvalidArchive(f"{shard}: {record.type} {record.id} has no live document")
            elif isinstance(record, SegmentRecord):
                segments.add(record.id)
            elif isinstance(record, ChildRecord) and record.segment_id not in segments:
                raise InvalidArchive(f"{shard}: child {record.id} has no segment")
    said = (counts.documents, counts.segments, counts.children, counts.live_documents)
    if said != (found["document"], found["segment"], found["child"], live):
        raise InvalidArchive("the archive does not hold as many records as its manifest names")
    dataset = checked.dataset
    if live and (dataset.technique is None or dataset.average_length is None):
        raise InvalidArchive("dataset.json has no technique or average_length for its documents")


def _check_document(
    record: DocumentRecord, members: dict[str, Member], rules: set[Any], shard: str
) -> None:
    if not record.source.lost and f"sources/{record.source.sha256}" not in members:
        raise InvalidArchive(f"{shard}: the source of document {record.id} is missing")
    if record.text is not None and f"texts/{record.text}" not in members:
        raise InvalidArchive(f"{shard}: the text of document {record.id} is missing")
    if record.rule is not None and record.rule not in rules:
        raise InvalidArchive(f"{shard}: the process rule of document {record.id} is missing")


def _fields(dataset: DatasetRecord) -> dict[str, Field]:
    """By id; their names are all different and none is a built-in field's."""
    names = [one.name for one in dataset.fields]
    if len(set(names)) < len(names) or not BUILT_IN_NAMES.isdisjoint(names):
        raise InvalidArchive("dataset.json has metadata fields whose names are taken")
    return {str(one.id): Field(one.id, one.name, one.field, "") for one in dataset.fields}


def _check_values(record: DocumentRecord, fields: Mapping[str, Field], shard: str) -> None:
    for field_id, value in (record.doc_metadata or {}).items():
        field = fields.get(field_id)
        if field is None:
            raise InvalidArchive(f"{shard}: document {record.id} has a value of no known field")
        if value is None:
            continue
        try:
            fits = not isinstance(value, bool) and typed(value, field) == value
        except (InvalidParam, TypeError, ValueError):
            fits = False
        if not fits:
            raise InvalidArchive(
                f"{shard}: document {record.id} has a value of field {field.name!r} that is no "
                f"{field.type.value}"
            )


def _vectors(checked: Checked, name: str) -> tuple[list[str], NDArray[np.float32]]:
    embedding, listed = checked.manifest.embedding, name.removesuffix(".npy") + ".txt"
    if embedding is None or listed not in checked.manifest.members:
        raise InvalidArchive(f"{name} has no list of hashes, or the manifest no embedding model")
    hashes = checked.read(listed).decode("ascii", "replace").split("\n")
    try:
        rows = np.load(io.BytesIO(checked.read(name)), allow_pickle=False)
    except (ValueError, OSError, EOFError) as exc:
        raise InvalidArchive(f"{name} holds no array: {exc}") from exc
    shape = (len(hashes), embedding.dim)
    fits = isinstance(rows, np.ndarray) and rows.dtype == np.dtype("<f4") and rows.shape == shape
    if not fits or len(hashes) > VECTORS or not np.isfinite(rows).all():
        raise InvalidArchive(f"{name} is no float32[{shape[0]}, {shape[1]}] of finite numbers")
    if not all(_HASH.fullmatch(text) for text in hashes):
        raise InvalidArchive(f"{listed} holds a line that is no SHA-256")
    return hashes, rows
