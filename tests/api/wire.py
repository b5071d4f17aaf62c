"""The shapes of the contract: which keys an answer has at least, and of what type each is.

A shape is a type, a tuple of types that may each be there, `[shape]` for a list, `{key: shape}` for
an object that may hold more, or a callable that says whether a value will do. `True` is no number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Shape = Any

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NONE = type(None)


def identifier(value: Any) -> bool:
    """A UUID in lower case."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def batch(value: Any) -> bool:
    """Twenty digits."""
    return isinstance(value, str) and re.fullmatch("[0-9]{20}", value) is not None


def iso_time(value: Any) -> bool:
    """Such as 2026-01-01T00:00:00+00:00."""
    return isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", value) is not None


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Any of these."""
    return lambda value: value in values


def maybe(*shapes: Shape) -> tuple[Shape, ...]:
    """Any of these, or null."""
    return (*shapes, NONE)


def mismatch(value: Any, shape: Shape, where: str = "answer") -> str | None:
    """What is wrong with a value; None when it has the shape."""
    if isinstance(shape, tuple):
        problems = [mismatch(value, one, where) for one in shape]
        return None if None in problems else problems[0]
    if isinstance(shape, Mapping):
        return _mismatch_of_object(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list: {value!r}"
        found = (mismatch(item, shape[0], f"{where}[{at}]") for at, item in enumerate(value))
        return next((problem for problem in found if problem), None)
    if isinstance(shape, type):
        fits = type(value) is shape or (shape is float and type(value) is int)
        return None if fits else f"{where} is {value!r}, not {shape.__name__}"
    return None if shape(value) else f"{where} is {value!r}"


def _mismatch_of_object(value: Any, shape: Mapping[str, Shape], where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where} is no object: {value!r}"
    missing = sorted(set(shape) - set(value))
    if missing:
        return f"{where} lacks {', '.join(missing)}"
    found = (mismatch(value[key], inner, f"{where}.{key}") for key, inner in shape.items())
    return next((problem for problem in found if problem), None)


TAG = {"id": identifier, "name": str, "type": one_of("knowledge"), "binding_count": maybe(str)}
FIELD = {"id": identifier, "name": str, "type": one_of("string", "number", "time")}
RETRIEVAL_MODEL = {
    "search_method": one_of(
        "semantic_search", "full_text_search", "hybrid_search", "keyword_search"
    ),
    "reranking_enable": bool,
    "reranking_mode": maybe(str),
    "reranking_model": maybe({"reranking_provider_name": str, "reranking_model_name": str}),
    "weights": maybe(dict),
    "top_k": int,
    "score_threshold_enabled": bool,
    "score_threshold": maybe(float),
}
DATASET = {
    "id": identifier,
    "name": str,
    "description": maybe(str),
    "provider": one_of("vendor", "external"),
    "permission": one_of("only_me", "all_team_members", "partial_members"),
    "data_source_type": maybe(str),
    "indexing_technique": one_of("high_quality", "economy", None),
    "app_count": int,
    "document_count": int,
    "word_count": int,
    "created_by": identifier,
    "author_name": maybe(str),
    "created_at": int,
    "updated_by": maybe(identifier),
    "updated_at": int,
    "embedding_model": maybe(str),
    "embedding_model_provider": maybe(str),
    "embedding_available": maybe(bool),
    "retrieval_model_dict": RETRIEVAL_MODEL,
    "summary_index_setting": maybe(dict),
    "tags": [{"id": identifier, "name": str, "type": str}],
    "doc_form": maybe(str),
    "external_knowledge_info": maybe(dict),
    "external_retrieval_model": maybe(
        {"top_k": int, "score_threshold": maybe(float), "score_threshold_enabled": maybe(bool)}
    ),
    "doc_metadata": [{"id": str, "name": str, "type": str}],
    "built_in_field_enabled": bool,
    "pipeline_id": maybe(str),
    "runtime_mode": maybe(str),
    "chunk_structure": maybe(str),
    "icon_info": maybe(dict),
    "is_published": bool,
    "total_documents": int,
    "total_available_documents": int,
    "enable_api": bool,
    "is_multimodal": bool,
}
DATASET_CHANGED = DATASET | {"partial_member_list": [str]}
FILE = {
    "id": identifier,
    "name": str,
    "size": int,
    "extension": str,
    "mime_type": maybe(str),
    "created_by": identifier,
    "created_at": float,
}
PIPELINE_FILE = FILE | {"created_at": iso_time}
DOCUMENT = {
    "id": identifier,
    "position": int,
    "data_source_type": str,
    "data_source_info": {"upload_file_id": identifier},
    "data_source_detail_dict": {"upload_file": FILE},
    "dataset_process_rule_id": maybe(identifier),
    "name": str,
    "created_from": one_of("api"),
    "created_by": identifier,
    "created_at": int,
    "tokens": maybe(int),
    "indexing_status": str,
    "error": maybe(str),
    "enabled": bool,
    "disabled_at": maybe(int),
    "disabled_by": maybe(identifier),
    "archived": bool,
    "display_status": maybe(str),
    "word_count": maybe(int),
    "hit_count": int,
    "doc_form": one_of("text_model", "hierarchical_model", "qa_model"),
    "doc_metadata": [{"id": str, "name": str, "type": str, "value": maybe(str, float)}],
    "summary_index_status": maybe(str),
    "need_summary": maybe(bool),
}
ACCEPTED = {"document": DOCUMENT, "batch": batch}
DOCUMENT_DETAIL = {
    **{key: DOCUMENT[key] for key in DOCUMENT if key not in ("data_source_detail_dict",)},
    "data_source_info": {"upload_file": FILE},
    "dataset_process_rule": {"mode": str, "rules": dict},
    "document_process_rule": {"id": identifier, "dataset_id": identifier, "mode": str},
    "completed_at": maybe(int),
    "updated_at": maybe(int),
    "indexing_latency": maybe(float),
    "doc_type": NONE,
    "doc_metadata": maybe(list),
    "segment_count": int,
    "average_segment_length": int,
    "doc_language": maybe(str),
}
del DOCUMENT_DETAIL["word_count"]  # of lists alone
PROGRESS = {
    "data": [
        {
            "id": identifier,
            "indexing_status": str,
            "processing_started_at": maybe(int),
            "parsing_completed_at": maybe(int),
            "cleaning_completed_at": maybe(int),
            "splitting_completed_at": maybe(int),
            "completed_at": maybe(int),
            "paused_at": maybe(int),
            "error": maybe(str),
            "stopped_at": maybe(int),
            "completed_segments": int,
            "total_segments": int,
        }
    ]
}
CHILD = {
    "id": identifier,
    "segment_id": identifier,
    "content": str,
    "position": int,
    "word_count": int,
    "type": one_of("automatic", "customized"),
    "created_at": int,
    "updated_at": int,
}
_SEGMENT = {
    "id": identifier,
    "position": int,
    "document_id": identifier,
    "content": str,
    "sign_content": str,
    "answer": maybe(str),
    "word_count": int,
    "tokens": int,
    "keywords": [str],
    "index_node_id": maybe(identifier),
    "index_node_hash": maybe(str),
    "hit_count": int,
    "enabled": bool,
    "disabled_at": maybe(int),
    "disabled_by": maybe(identifier),
    "status": one_of("waiting", "indexing", "completed", "error", "paused", "re_segment"),
    "created_by": identifier,
    "created_at": int,
    "indexing_at": maybe(int),
    "completed_at": maybe(int),
    "error": maybe(str),
    "stopped_at": maybe(int),
}
SEGMENT = _SEGMENT | {
    "updated_at": int,
    "updated_by": maybe(identifier),
    "child_chunks": [CHILD],
    "attachments": list,
    "summary": maybe(str),
}
SEGMENT_ANSWER = {"data": SEGMENT, "doc_form": str}
RECORD = {
    "segment": _SEGMENT
    | {
        "document": {
            "id": identifier,
            "data_source_type": str,
            "name": str,
            "doc_type": NONE,
            "doc_metadata": maybe(dict),
        }
    },
    "child_chunks": [{"id": identifier, "content": str, "position": int, "score": float}],
    "score": maybe(float),
    "tsne_position": NONE,
    "files": list,
    "summary": maybe(str),
}
FOUND = {"query": {"content": str}, "records": [RECORD]}
SUCCESS = {"result": one_of("success")}
FIELDS = {"doc_metadata": [FIELD | {"count": int}], "built_in_field_enabled": bool}
BUILT_IN = {"fields": [{"name": str, "type": str}]}
MODELS = {
    "data": [
        {
            "provider": str,
            "label": {"en_US": str},
            "icon_small": maybe(dict),
            "icon_large": maybe(dict),
            "status": one_of("active", "no-configure"),
            "models": [
                {
                    "model": str,
                    "label": {"en_US": str},
                    "model_type": str,
                    "features": maybe(list),
                    "fetch_from": one_of("predefined-model", "customizable-model"),
                    "model_properties": dict,
                    "deprecated": bool,
                    "status": str,
                    "load_balancing_enabled": bool,
                }
            ],
        }
    ]
}
ERROR = {"code": str, "message": str, "status": int}


def page_of(shape: Shape) -> Shape:
    """A page of a list."""
    return {"data": [shape], "has_more": bool, "limit": int, "total": int, "page": int}


SEGMENTS = page_of(SEGMENT) | {"doc_form": str}
CHILDREN = {"data": [CHILD], "total": int, "total_pages": int, "page": int, "limit": int}
