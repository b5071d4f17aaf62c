"""What goes wrong on purpose."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Sequence

KINDS = {
    "429": "too many requests, with Retry-After: 1",
    "429-bare": "too many requests, without a word on when",
    "500": "internal error, nothing done",
    "503": "unavailable, nothing done",
    "timeout": "no answer for `timeout_s`, then the connection ends; nothing done",
    "reset": "the connection is reset before anything is done",
    "lost": "done, but the connection is reset before the answer",
    "garbage": "status 200 with a page that is no JSON; nothing done",
    "unfinished": "done, but a write is answered with `wait_timeout`",
}


class Faults:
    """Chosen and random faults; thread-safe.

    Attributes:
        timeout_s: how long a "timeout" keeps silent.
        drawn: how many of each kind happened.
    """

    def __init__(self) -> None:
        self.timeout_s = 2.0
        self.drawn: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._next: deque[tuple[str, str | None]] = deque()
        self._share = 0.0
        self._kinds: list[str] = []
        self._chance = random.Random(0)

    def next(self, kind: str, times: int = 1, *, only: str | None = None) -> None:
        """The next calls (of the operation `only`, such as "upsert") fail so, one after another."""
        with self._lock:
            self._next.extend([(_known(kind), only)] * times)

    def some(self, share: float, kinds: Sequence[str], *, seed: int = 0) -> None:
        """From now on this share (0 to 1) of all calls fails, by chance from `seed`."""
        with self._lock:
            self._share, self._kinds = share, [_known(kind) for kind in kinds]
            self._chance = random.Random(seed)

    def clear(self) -> None:
        """Behave."""
        with self._lock:
            self._next.clear()
            self._share = 0.0

    def draw(self, operation: str) -> str | None:
        """What goes wrong with this call."""
        with self._lock:
            kind = self._chosen(operation)
            if kind is None and self._share and self._chance.random() < self._share:
                kind = self._chance.choice(self._kinds)
            if kind is not None:
                self.drawn[kind] += 1
            return kind

    def _chosen(self, operation: str) -> str | None:
        if self._next and self._next[0][1] in (None, operation):
            return self._next.popleft()[0]
        return None


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no fault {kind!r}; known: {', '.join(KINDS)}")
    return kind
