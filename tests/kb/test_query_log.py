"""The query history is written behind the answers, and whole."""

from __future__ import annotations

from sqlalchemy import select

from kb.db import reading, transaction
from kb.models import Dataset, DatasetQuery
from kb.query_log import QueryLog
from kb.resources import Resources


def _dataset(resources: Resources) -> Dataset:
    with transaction(resources.sessions) as session:
        dataset = Dataset(
            workspace_id=resources.workspace_id, name="asked", created_by=resources.owner_id
        )
        session.add(dataset)
    return dataset


def _history(resources: Resources) -> list[str]:
    with reading(resources.sessions) as session:
        return sorted(session.scalars(select(DatasetQuery.content)))


def test_what_was_asked_is_in_the_history_once_the_log_is_closed(resources: Resources) -> None:
    dataset, history = _dataset(resources), QueryLog(resources.sessions, flush_s=60)
    for query in ("one", "two"):
        history.add(dataset.id, query, source="hit_testing", actor=resources.owner_id)
    assert _history(resources) == []
    history.close()
    assert _history(resources) == ["one", "two"]


def test_a_query_to_a_dataset_that_was_deleted_since_is_dropped(resources: Resources) -> None:
    dataset, history = _dataset(resources), QueryLog(resources.sessions, flush_s=60)
    history.add(dataset.id, "late", source="hit_testing", actor=resources.owner_id)
    with transaction(resources.sessions) as session:
        session.delete(session.get_one(Dataset, dataset.id))
    history.close()
    assert _history(resources) == []
