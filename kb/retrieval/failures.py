"""Failures: which datasets a query leaves out because they cannot be asked, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from kb.errors import KBError
from pipelines.errors import TransientError


class Failures:
    """Collects what goes wrong with datasets, or lets the first of it pass.

    Args:
        leave_out: go on without a dataset that fails.
    """

    def __init__(self, *, leave_out: bool) -> None:
        self._leave_out = leave_out
        self.by_dataset: dict[UUID, KBError | TransientError] = {}

    @contextmanager
    def of(self, dataset_ids: Collection[UUID]) -> Iterator[None]:
        """What fails inside concerns these datasets; the first failure of each is kept."""
        try:
            yield
        except (KBError, TransientError) as exc:
            if not self._leave_out:
                raise
            for dataset_id in dataset_ids:
                self.by_dataset.setdefault(dataset_id, exc)

    def others(self, dataset_ids: Iterable[UUID]) -> list[UUID]:
        """Those that did not fail, in the same order."""
        return [i for i in dataset_ids if i not in self.by_dataset]
