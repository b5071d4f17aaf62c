"""The client's models -> the engine's; what is not served is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client.http import models

Indexes = Mapping[str, models.PayloadSchemaParams]


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def only(value: BaseModel, *fields: str) -> None:
    """Refuse fields that are set and that the double does not serve."""
    known = type(value).model_fields
    # Over gRPC a list that was not given is an empty one.
    said = {name for name, given in value if given != known[name].default and given != []}
    more = said - set(fields)
    if more:
        raise Refused(400, f"the double does not serve {type(value).__name__}.{sorted(more)}")


def filter_of(value: models.Filter | None, indexes: Indexes) -> edge.Filter | None:
    """A filter of conditions over indexed fields and ids, and of filters of such."""
    if value is None:
        return None
    only(value, "must", "should", "must_not")
    return edge.Filter(
        must=_conditions(value.must, indexes),
        should=_conditions(value.should, indexes),
        must_not=_conditions(value.must_not, indexes),
    )


def _conditions(value: Any, indexes: Indexes) -> list[Any] | None:
    if value is None:
        return None
    given = value if isinstance(value, list) else [value]
    return [_condition(condition, indexes) for condition in given]


def _condition(value: Any, indexes: Indexes) -> Any:
    if isinstance(value, models.Filter):
        return filter_of(value, indexes)
    if isinstance(value, models.HasIdCondition):
        return edge.HasIdCondition({point_id(id) for id in value.has_id})
    if not isinstance(value, models.FieldCondition):
        raise Refused(400, f"the double does not serve {type(value).__name__}")
    only(value, "key", "match", "range")
    params = indexes.get(value.key)
    if isinstance(value.match, models.MatchValue) and isinstance(params, models.KeywordIndexParams):
        return edge.FieldCondition(value.key, match=edge.MatchValue(_text(value.match.value)))
    if isinstance(value.match, models.MatchAny) and isinstance(params, models.KeywordIndexParams):
        wanted = [_text(item) for item in value.match.any]
        return edge.FieldCondition(value.key, match=edge.MatchAny(wanted))
    numeric = (models.IntegerIndexParams, models.FloatIndexParams)
    if isinstance(value.range, models.Range) and isinstance(params, numeric):
        bound = value.range
        numbers = edge.RangeFloat(gte=bound.gte, gt=bound.gt, lte=bound.lte, lt=bound.lt)
        return edge.FieldCondition(value.key, range=numbers)
    raise Refused(400, f'Index required but not found for "{value.key}" to be filtered so')


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(400, f"a keyword is a string, not {value!r}")
    return value


def point_id(value: Any) -> UUID:
    """Ids of ours are UUIDs."""
    try:
        return UUID(str(value))
    except ValueError as exc:
        raise Refused(400, f"value {value} is not a valid point ID, use a UUID") from exc


def point_of(value: models.PointStruct, vectors: Mapping[str, int | None]) -> edge.Point:
    """A point whose vectors are those of the collection, each with its length.

    Args:
        vectors: name -> length; None for a sparse one.
    """
    given = value.vector
    if not isinstance(given, dict) or set(given) != set(vectors):
        names = list(given) if isinstance(given, dict) else "one without a name"
        raise Refused(400, f"Wrong input: vectors {names}, expected {list(vectors)}")
    converted: dict[str, Any] = {}
    for name, vector in given.items():
        length = vectors[name]
        if length is None:
            converted[name] = sparse_of(vector)
        elif isinstance(vector, list) and len(vector) == length:
            converted[name] = vector
        else:
            raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {length}")
    return edge.Point(point_id(value.id), converted, value.payload or {})


def sparse_of(value: Any) -> edge.SparseVector:
    """A sparse vector of distinct indices."""
    if not isinstance(value, models.SparseVector):
        raise Refused(400, "Wrong input: expected a sparse vector")
    if len(value.indices) != len(value.values) or len(set(value.indices)) != len(value.indices):
        raise Refused(422, "Validation error: indices must be unique, one for each value")
    return edge.SparseVector(value.indices, value.values)


def query_of(value: Any, using: str, length: int | None) -> edge.Query:
    """Nearest to a vector of the named kind."""
    vector = value.nearest if isinstance(value, models.NearestQuery) else value
    if length is None:
        return edge.Query.Nearest(sparse_of(vector), using=using)
    if not isinstance(vector, list) or len(vector) != length:
        raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {length}")
    return edge.Query.Nearest(vector, using=using)


def params_of(value: models.SearchParams | None, indexes: Indexes) -> edge.SearchParams:
    """Search parameters; the double has no graph, so `hnsw_ef` changes nothing."""
    if value is None:
        return edge.SearchParams()
    only(value, "exact", "hnsw_ef", "idf")
    idf = None
    if isinstance(value.idf, models.IdfCorpusParams):
        idf = edge.IdfParams(corpus=filter_of(value.idf.corpus, indexes))
    elif value.idf is not None:
        raise Refused(400, "the double serves an idf with a corpus only")
    return edge.SearchParams(exact=bool(value.exact), hnsw_ef=value.hnsw_ef, idf=idf)


def payload_of(value: Any) -> bool | list[str]:
    """Which part of the payload is asked for."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, list):
        return value
    if isinstance(value, models.PayloadSelectorInclude):
        return list(value.include)
    raise Refused(400, f"the double does not serve {type(value).__name__}")


def index_of(
    value: Any,
) -> edge.KeywordIndexParams | edge.IntegerIndexParams | edge.FloatIndexParams:
    """A payload index."""
    if isinstance(value, models.KeywordIndexParams):
        only(value, "type", "is_tenant", "enable_hnsw")
        return edge.KeywordIndexParams(is_tenant=value.is_tenant, enable_hnsw=value.enable_hnsw)
    if isinstance(value, models.IntegerIndexParams):
        only(value, "type", "lookup", "range", "enable_hnsw")
        return edge.IntegerIndexParams(
            lookup=value.lookup, range=value.range, enable_hnsw=value.enable_hnsw
        )
    if isinstance(value, models.FloatIndexParams):
        only(value, "type", "enable_hnsw")
        return edge.FloatIndexParams(enable_hnsw=value.enable_hnsw)
    raise Refused(400, f"the double does not serve {type(value).__name__} as a payload index")


def vectors_from(value: Any) -> Any:
    """The engine's named vectors as the client's."""
    return {
        name: models.SparseVector(indices=vector.indices, values=vector.values)
        if isinstance(vector, edge.SparseVector)
        else vector
        for name, vector in value.items()
    }


def ids_of(values: Sequence[Any]) -> list[Any]:
    """Point ids, checked."""
    return [point_id(value) for value in values]
