"""Legs: a search of one index of one dataset, read down to a depth, without what is not live."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from kb.ports import Scored
from kb.retrieval.rows import live_points
from kb.tracing import carried

Name = TypeVar("Name")
Search = Callable[[int], list[Scored]]
"""At most so many of the best points, best first, equal scores by id."""


@dataclass(frozen=True, slots=True)
class Leg:
    """The best live points of one search, best first.

    Attributes:
        all_read: there are no others. If not, every other one comes after the last of these.
    """

    points: Sequence[Scored]
    all_read: bool

    @property
    def ranks(self) -> dict[UUID, int]:
        """1-based place of each point."""
        return {p.id: rank for rank, p in enumerate(self.points, start=1)}

    def cut(self, depth: int) -> Leg:
        """Its first `depth` points."""
        return Leg(self.points[:depth], self.all_read and len(self.points) <= depth)


def start(
    searches: dict[Name, Search], depth: int, pool: Executor, *, but_the_last: bool
) -> dict[Name, Search]:
    """The same searches, under way for `depth` points.

    Args:
        but_the_last: leave that one to the caller, who has nothing else to do meanwhile: the way
            to another thread and back takes as long as a small search.
    """
    ahead = list(searches)[: -1 if but_the_last else None]
    return searches | {name: _started(searches[name], depth, pool) for name in ahead}


def _started(search: Search, depth: int, pool: Executor) -> Search:
    ahead = pool.submit(carried(search), depth)
    return lambda limit: ahead.result() if limit == depth else search(limit)


def read_legs(
    session: Session,
    searches: dict[Name, Search],
    depth: int,
    passing: Callable[[Name, Set[UUID]], Set[UUID]] | None = None,
) -> dict[Name, Leg]:
    """For each search its best `depth` live points, or all when there are fewer.

    A point that is not live (deleted, disabled, replaced, not yet switched to) gives its place
    to the next one, so that an index which lags behind does not change a result.

    Args:
        passing: which of these documents a search may find; None: all.
    """
    legs: dict[Name, Leg] = {}
    limit = depth
    while waiting := searches.keys() - legs.keys():
        # The last one first: it is not under way yet.
        found = {name: searches[name](limit) for name in reversed(searches) if name in waiting}
        live = live_points(session, chain.from_iterable(found.values()))
        for name, points in found.items():
            alive = [p for p in points if p.id in live]
            if passing is not None:
                kept = passing(name, {live[p.id] for p in alive})
                alive = [p for p in alive if live[p.id] in kept]
            exhausted = len(points) < limit
            if exhausted or len(alive) >= depth:
                legs[name] = Leg(alive, exhausted).cut(depth)
        limit *= 2
    return legs
