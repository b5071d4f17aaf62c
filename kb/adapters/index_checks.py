"""What every SegmentIndex asks of its caller, before a store sees any of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from kb.ports import Point, Space, Terms
from pipelines.types import Vector

_NAME = re.compile(r"[a-z0-9_-]{1,100}")


def check_space(space: Space) -> None:
    """Raise ValueError for a name or `dim` that cannot be used."""
    if not _NAME.fullmatch(space.name):
        raise ValueError(f"space name {space.name!r}; use 1 to 100 characters of a-z, 0-9, _ and -")
    if space.dim is not None and space.dim <= 0:
        raise ValueError(f"space {space.name!r} has dim {space.dim}; give a number above 0 or None")


def dense_rows(space: Space, points: Sequence[Point]) -> NDArray[np.float32] | None:
    """The points' vectors, float32[n, dim] of unit length; None in a space without.

    A store may keep the good points of a bad batch, or take NaN silently: so all is checked here.

    Raises:
        ValueError: names the first point that cannot be stored, and why.
    """
    seen: set[UUID] = set()
    for point in points:
        if point.id in seen:
            raise ValueError(f"point {point.id} is given twice")
        seen.add(point.id)
        check_terms(point.terms, f"point {point.id}")
        if not 0 <= point.version < 2**63:
            raise ValueError(f"point {point.id} has version {point.version}; use 0 to 2**63 - 1")
        if (point.dense is None) != (space.dim is None):
            needs = "needs a dense vector" if point.dense is None else "takes no dense vectors"
            raise ValueError(f"space {space.name!r} {needs}: point {point.id}")
    if space.dim is None:
        return None
    vectors = [point.dense for point in points if point.dense is not None]
    return unit_rows(space, vectors, [f"point {point.id}" for point in points])


def unit_rows(space: Space, vectors: Sequence[Vector], names: Sequence[str]) -> NDArray[np.float32]:
    """float32[n, dim] of length 1 (0 for a zero vector); `names` are for the error."""
    for vector, name in zip(vectors, names, strict=True):
        if vector.shape != (space.dim,):
            raise ValueError(
                f"{name} has a vector of shape {vector.shape}; space {space.name!r} takes "
                f"({space.dim},)"
            )
    rows = np.array(vectors, dtype=np.float64).reshape(len(vectors), space.dim or 0)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f"{names[bad]} has a vector with values that are not finite")
    # In float64, where no finite float32 overflows.
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # A unit vector keeps its bits, so that one read from a store can be written back unchanged.
    as_is = (norms == 0) | (np.abs(norms - 1) < 1e-6)
    return (rows / np.where(as_is, 1, norms)).astype(np.float32)


def check_terms(terms: Terms, name: str) -> None:
    """Raise ValueError for what `Terms` does not allow."""
    ids, weights = terms.ids, terms.weights
    fits = ids.dtype == np.uint32 and weights.dtype == np.float32
    if not fits or ids.ndim != 1 or ids.shape != weights.shape:
        raise ValueError(
            f"{name} has terms of {ids.dtype}{ids.shape} with weights of "
            f"{weights.dtype}{weights.shape}; use uint32[n] and float32[n]"
        )
    if (ids[1:] <= ids[:-1]).any():
        raise ValueError(f"{name} has term ids that are not distinct and ascending")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"{name} has term weights that are not finite and above 0")


def check_limit(limit: int) -> None:
    """Raise ValueError for a limit that is not above 0."""
    if limit <= 0:
        raise ValueError(f"limit is {limit}; give a number above 0")
