"""JobQueue inside one process: wakes the task runner's threads."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from kb.ports import Queue


class InProcessQueue:
    """Calls whoever listens; nothing is kept, since an idle worker looks by itself now and then."""

    def __init__(self) -> None:
        self._wake: Callable[[], None] | None = None

    def listen(self, wake: Callable[[], None] | None) -> None:
        """From now on `wake` is called when there is something to do; None: nobody."""
        self._wake = wake

    def index_document(self, document_id: UUID, queue: Queue) -> None:
        """A document waits."""
        self.run_jobs()

    def run_jobs(self) -> None:
        """Jobs were written down in the outbox."""
        wake = self._wake
        if wake is not None:
            wake()

    def waiting(self, queue: Queue) -> int | None:
        """No message is ever kept."""
        return 0

    def close(self) -> None:
        """Nobody listens any more."""
        self._wake = None
