"""Moving house: an installation is copied whole into an empty one, of whatever size.

The source is locked and not changed. Every step is written down in the target with what it
copied, in one transaction, so that a move that ends half way goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from sqlalchemy import delete, func, select

from kb.adapters.data_directory import DataDirectory
from kb.db import reading, transaction
from kb.doctor import examine
from kb.errors import InvalidParam, SecretUnreadable
from kb.ingestion.points import indexed_leaves
from kb.maintenance import write_points
from kb.migrate.files import copy_files, differing_files
from kb.migrate.ledger import Ledger
from kb.migrate.tables import Sums, copy_tables, in_use, sums
from kb.models import UNFINISHED, Dataset, Document, SwitchPoint
from kb.resources import FULL_TEXT_SPACE, Resources, space_of
from kb.sealing import check_readable, opened, resealed
from kb.settings import Settings
from kb.sweeper import sweep
from kb.wiring import Stores, open_resources, open_stores

_COMPARED = "compared"

Progress = Callable[[str, int, int], None]
"""Called with the step, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Verdict:
    """What was moved, and what differs afterwards.

    Attributes:
        rows: per table.
        waiting: documents that were in work or waited, and do now.
        differences: one sentence each; none: the move is complete.
    """

    rows: dict[str, int]
    files: int
    points: int
    waiting: int
    differences: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Nothing differs."""
        return not self.differences


def migrate(source: Settings, target: Settings, progress: Progress) -> Verdict:
    """Copy all of `source` into `target`, and compare both; may be called again after any end.

    Raises:
        DataDirectoryInUse: something works on the source or the target.
        InvalidParam: the target holds other data, is the source itself, or has another model.
    """
    if source.data_dir.resolve() == target.data_dir.resolve():
        raise InvalidParam(
            f"source and target have the same data directory {str(source.data_dir)!r}; set "
            "KB_DATA_DIR in the target's settings to another one"
        )
    if source.database_url is None and not (source.data_dir / "kb.db").exists():
        raise InvalidParam(
            f"there is no installation in {str(source.data_dir)!r}: it has no kb.db; name the data "
            "directory of the old one, or the file with its settings"
        )
    with ExitStack() as stack:
        stack.enter_context(DataDirectory(source.data_dir))
        stack.enter_context(DataDirectory(target.data_dir))
        old = stack.enter_context(open_stores(_alone(source)))
        if owner := in_use(old.sessions):
            raise InvalidParam(
                f"{owner} works on the source; stop its API, workers and beat, and wait until "
                "their leases have run out"
            )
        with open_stores(_alone(target)) as new:
            ledger = Ledger(new.sessions)
            _check_target(old, new, ledger)
            _check_secrets(old, new, target)
            reseal = resealed(old.keyring, new.keyring)
            copy_tables(old.sessions, new.sessions, ledger, progress, reseal=reseal)
            files = copy_files(old.blobs, new.blobs, ledger, progress)
            rows, differences = _compare(old, new, ledger, progress)
        with open_resources(target) as resources:
            ledger = Ledger(resources.sessions)
            points = _write_points(resources, ledger, progress)
            differences += _doctor(resources, progress)
            waiting = _waiting(resources)
            if not differences:
                ledger.drop()
                sweep(resources)
    return Verdict(rows, files, points, waiting, differences)


def _waiting(resources: Resources) -> int:
    with reading(resources.sessions) as session:
        waiting = select(func.count()).where(
            Document.indexing_status.in_(UNFINISHED), Document.is_paused.is_(False)
        )
        return session.scalar(waiting) or 0


def _alone(settings: Settings) -> Settings:
    """As one process that works with nobody."""
    return settings.model_copy(update={"redis_url": None})


def _check_target(old: Stores, new: Stores, ledger: Ledger) -> None:
    if ledger.goes_on(old.sessions):
        return
    with reading(old.sessions) as session:
        spaces = {space for d in session.scalars(select(Dataset)) if (space := space_of(d))}
    for space in {FULL_TEXT_SPACE, *spaces}:
        new.index.ensure_space(space)
        if count := new.index.count(space):
            raise InvalidParam(
                f"the target's index holds {count:,} points in {space.name!r}; empty it, or set "
                "another KB_QDRANT__COLLECTION_PREFIX"
            )
    if (key := next(new.blobs.keys(), None)) is not None:
        raise InvalidParam(
            f"the target's files are not empty ({key} is there); set another bucket, or another "
            "KB_BLOBS__PREFIX"
        )
    ledger.begin(old.sessions)


def _check_secrets(old: Stores, new: Stores, target: Settings) -> None:
    """The copy of a secret is sealed with the target's key.

    Raises:
        InvalidParam: the source's cannot be read, or the target's processes would have no key.
    """
    try:
        count = check_readable(old.sessions, old.keyring)
    except SecretUnreadable as exc:
        raise InvalidParam(f"the source: {exc.message}") from exc
    if count and target.redis_url is not None and target.secret_key is None:
        raise InvalidParam(
            f"the source holds {count} secrets (API keys of models, signing keys of webhooks), "
            "which all processes of the target must be able to read; set KB_SECRET_KEY in its "
            "settings, for example to the output of: openssl rand -base64 32"
        )


def _compare(
    old: Stores, new: Stores, ledger: Ledger, progress: Progress
) -> tuple[dict[str, int], list[str]]:
    """Row counts, and where tables or files differ.

    Once nothing did, it is not looked at again: what follows may add to the embedding cache.
    """
    if ledger.is_done(_COMPARED):
        return dict(ledger.cursor(_COMPARED)), []
    rows: dict[str, int] = {}
    differences: list[str] = []
    before = sums(old.sessions, progress, opened=opened(old.keyring))
    after = sums(new.sessions, progress, opened=opened(new.keyring))
    for table, wanted in before.items():
        found = after.get(table, Sums())
        rows[table] = found.rows
        if found != wanted:
            differences.append(
                f"table {table}: {found.rows:,} rows with checksum {found.short()}, the source has "
                f"{wanted.rows:,} with {wanted.short()}"
            )
    differences += differing_files(old.blobs, new.blobs, progress)
    if not differences:
        ledger.finish(_COMPARED, rows)
    return rows, differences


def _write_points(resources: Resources, ledger: Ledger, progress: Progress) -> int:
    """Every point of every dataset, from the texts and the embedding cache."""
    with transaction(resources.sessions) as session:
        # Copies of a running switch do not travel; it makes them again, from the cache.
        session.execute(delete(SwitchPoint))
    with reading(resources.sessions) as session:
        rows = session.scalars(select(Dataset).order_by(Dataset.id))
        datasets = {row.id: space_of(row) for row in rows}
    points = 0
    for number, (dataset_id, space) in enumerate(datasets.items(), start=1):
        step = f"index {dataset_id}"
        if space is not None and not ledger.is_done(step):
            for leaves in indexed_leaves(resources.sessions, dataset_id=dataset_id):
                write_points(resources, dataset_id, [leaf.id for leaf in leaves])
                points += len(leaves)
                progress("index", points, 0)
            ledger.finish(step)
        progress("datasets", number, len(datasets))
    spaces = {space for space in datasets.values() if space is not None}
    return sum(resources.index.count(space) for space in spaces)


def _doctor(resources: Resources, progress: Progress) -> list[str]:
    progress("doctor", 0, 1)
    report = examine(resources, repair=False, deep=True)
    progress("doctor", 1, 1)
    return [
        f"doctor: {finding.count:,} {kind.value}, such as {finding.first[0]}"
        for kind, finding in report.findings.items()
    ]
