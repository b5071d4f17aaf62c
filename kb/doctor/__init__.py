"""The doctor: do database, index and files agree, and is there anything that waits in vain?

Quick: every point's head, every counter that rows give, every file's presence. Deep: also every
vector and term of the index, every text's hash and counts, every uploaded file's bytes.
"""

from __future__ import annotations

from sqlalchemy import func, select

from kb.db import reading
from kb.doctor.counters import examine_counters
from kb.doctor.files import examine_files
from kb.doctor.points import examine_points
from kb.doctor.report import BEYOND_REPAIR, KEPT, Finding, Kind, Report
from kb.doctor.stuck import examine_stuck
from kb.errors import ProviderNotInitialized
from kb.maintenance import pending_jobs
from kb.models import Dataset, DatasetSwitch
from kb.ports import Space
from kb.resources import FULL_TEXT_SPACE, Resources, space_of
from kb.sealing import unreadable
from kb.spaces import origin_of, target_of
from pipelines.errors import TransientError

__all__ = ["BEYOND_REPAIR", "KEPT", "Finding", "Kind", "Report", "examine"]


def examine(resources: Resources, *, repair: bool, deep: bool = False) -> Report:
    """Compare database, index and files; with `repair`, heal what can be.

    Points are restored from SQL and the embedding cache; only texts that are not in the cache go
    to the model. Safe while documents are ingested, replaced and deleted: what differs is looked
    at a second time, and what a job will see to is no finding. Memory does not grow with the
    number of points.

    Args:
        deep: also compare vectors, terms, texts and the bytes of files.
    """
    report = Report(deep=deep, repaired=repair, pending_jobs=pending_jobs(resources))
    with reading(resources.sessions) as session:
        spaces = {space for d in session.scalars(select(Dataset)) if (space := space_of(d))}
        for switch in session.scalars(select(DatasetSwitch)):
            spaces |= {target_of(switch), origin_of(switch)}
        report.datasets = session.scalar(select(func.count()).select_from(Dataset)) or 0
    spaces |= {FULL_TEXT_SPACE, *_default_space(resources)}
    for space in spaces:
        resources.index.ensure_space(space)
    examine_stuck(resources, report)
    examine_counters(resources, report)
    examine_points(resources, sorted(spaces, key=lambda space: space.name), report)
    examine_files(resources, report)
    for place in unreadable(resources.sessions, resources.keyring):
        report.add(Kind.UNREADABLE_SECRETS, place)
    return report


def _default_space(resources: Resources) -> set[Space]:
    """The default model's; none while its server does not say how long its vectors are."""
    embedder = resources.default_embedder
    try:
        return {Space(embedder.id, embedder.dim)}
    except (TransientError, ProviderNotInitialized):
        return set()
