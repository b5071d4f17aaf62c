"""Facts as a payload holds them: `meta.tags`, a list of keywords, and `meta.n<slot>`, a number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from kb.ports import Facts

META = "meta"
TAGS = "meta.tags"
FIRST_SLOTS = 4
"""Numbers whose index is made with the space, while that costs nothing."""


def number_key(slot: int) -> str:
    """The payload field of a slot."""
    return f"{META}.n{slot}"


def meta_of(facts: Facts) -> dict[str, Any]:
    """The payload of these facts; writing it replaces those that were there."""
    meta: dict[str, Any] = {f"n{slot}": value for slot, value in facts.numbers}
    if facts.tags:
        meta["tags"] = list(facts.tags)
    return meta


def facts_from(meta: Any) -> Facts:
    """What `meta_of` made of facts; points that were written before there were any have none."""
    if not meta:
        return Facts()
    numbers = sorted((int(key[1:]), float(meta[key])) for key in meta if key != "tags")
    return Facts(tuple(meta.get("tags", ())), tuple(numbers))


def slots_in(facts: Mapping[Any, Facts]) -> set[int]:
    """Every slot that any of them uses."""
    return {slot for given in facts.values() for slot, _ in given.numbers}


def alike(facts: Mapping[UUID, Facts], *, most: int) -> Iterator[tuple[Facts, list[UUID]]]:
    """Documents with equal facts together, at most so many at a time."""
    groups: dict[Facts, list[UUID]] = {}
    for document_id, given in facts.items():
        groups.setdefault(given, []).append(document_id)
    for given, ids in groups.items():
        for at in range(0, len(ids), most):
            yield given, ids[at : at + most]
