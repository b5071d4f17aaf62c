"""From what an engine found to what the port promises: fair ties, and a cut that respects them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar
from uuid import UUID

from kb.ports import Scored

T = TypeVar("T")

_ROUNDING = 5e-7  # of a text score; 1 to 2 steps of float32 were seen
_SPARE_HITS = 16  # fetched beyond the limit, to see whether a tie crosses it


def evened(found: Iterable[tuple[T, float]], *, cosine: bool) -> Iterator[tuple[T, float]]:
    """Best first, with the score that each goes by.

    Cosines are kept within [-1, 1]. Text scores that differ by rounding only (5e-7 of their size)
    are made equal: the engine adds up a text's terms in an order that depends on the segment that
    holds it, so equal texts would not tie.
    """
    previous = score = 0.0
    for item, raw in sorted(found, key=lambda pair: -pair[1]):
        if cosine:
            score = min(1.0, max(-1.0, raw))  # rounding can carry a cosine past 1
        elif previous - raw > _ROUNDING * previous or not previous:
            score = raw
        previous = raw
        yield item, score


def ranked(
    limit: int,
    search: Callable[[int], Iterable[tuple[tuple[UUID, UUID, str], float]]],
    *,
    cosine: bool,
) -> list[Scored]:
    """The `limit` best, equal scores by ascending id, also where the cut goes through a tie.

    An engine's order among equal scores is its own: so more is asked for until no tie crosses
    the cut.

    Args:
        limit: > 0.
        search: gives the n best as (id, segment id, text hash), score; fewer than n only if there
            are no more.
    """
    asked = limit + _SPARE_HITS
    while True:
        hits = [
            Scored(id, segment_id, score, text_hash)
            for (id, segment_id, text_hash), score in evened(search(asked), cosine=cosine)
        ]
        hits.sort(key=lambda hit: (-hit.score, hit.id))
        if len(hits) < asked or hits[limit - 1].score > hits[-1].score:
            return hits[:limit]
        asked *= 2
