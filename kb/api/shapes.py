"""Rows as the wire contract shows them: every key present, times in Unix seconds."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from kb.api.facts import Facts
from kb.document_status import display_status
from kb.documents import Progress
from kb.external.apis import ExternalInfo
from kb.external.records import ExternalHit
from kb.models import (
    ChildChunk,
    Dataset,
    Document,
    DocumentVersion,
    IndexingTechnique,
    ProcessRule,
    Segment,
    SegmentStatus,
    UploadFile,
)
from kb.process_rules import PLACEHOLDER_RULE
from kb.retrieval.fusion import LegScore
from kb.retrieval.types import Hit, Reranked, RerankScore

Json = dict[str, Any]

_RETRIEVAL_DEFAULTS: Json = {
    "search_method": "semantic_search",
    "reranking_enable": False,
    "reranking_mode": None,
    "reranking_model": {"reranking_provider_name": "", "reranking_model_name": ""},
    "weights": None,
    "top_k": 2,
    "score_threshold_enabled": False,
    "score_threshold": None,
}


def epoch(moment: datetime | None) -> int | None:
    """Whole Unix seconds."""
    return int(moment.timestamp()) if moment else None


def text(value: UUID | None) -> str | None:
    """An id as text."""
    return str(value) if value else None


def retrieval_model(dataset: Dataset) -> Json:
    """The stored settings merged over the defaults."""
    stored = {k: v for k, v in (dataset.retrieval_model or {}).items() if k in _RETRIEVAL_DEFAULTS}
    return _RETRIEVAL_DEFAULTS | {
        k: v for k, v in stored.items() if v is not None or _RETRIEVAL_DEFAULTS[k] is None
    }


def dataset(row: Dataset, facts: Facts, *, embedding_available: bool | None) -> Json:
    """The dataset detail object."""
    counts = facts.counts
    model = retrieval_model(row)
    threshold = model["score_threshold"] if model["score_threshold_enabled"] else None
    return {
        "id": str(row.id),
        "name": row.name,
        "description": row.description,
        "provider": row.provider,
        "permission": row.permission,
        "data_source_type": row.data_source_type,
        "indexing_technique": row.indexing_technique,
        "app_count": 0,
        "document_count": counts.documents,
        "word_count": counts.words,
        "created_by": str(row.created_by),
        "author_name": "owner",
        "created_at": epoch(row.created_at),
        "updated_by": text(row.updated_by),
        "updated_at": epoch(row.updated_at),
        "embedding_model": row.embedding_model,
        "embedding_model_provider": row.embedding_model_provider,
        "embedding_available": embedding_available,
        "retrieval_model_dict": model,
        "summary_index_setting": row.summary_index_setting,
        "tags": [{"id": str(t.id), "name": t.name, "type": "knowledge"} for t in facts.tags],
        "doc_form": row.doc_form,
        "external_knowledge_info": _external_info(facts.external),
        "external_retrieval_model": {
            "top_k": model["top_k"],
            "score_threshold": threshold or 0.0,
            "score_threshold_enabled": model["score_threshold_enabled"] or None,
        },
        "doc_metadata": [
            {"id": text(f.id) or "built-in", "name": f.name, "type": f.type} for f in facts.fields
        ],
        "built_in_field_enabled": row.built_in_field_enabled,
        "pipeline_id": None,
        "runtime_mode": "general",
        "chunk_structure": None,
        "icon_info": None,
        "is_published": False,
        "total_documents": counts.documents,
        "total_available_documents": counts.available,
        "enable_api": row.enable_api,
        "is_multimodal": False,
    }


def _external_info(info: ExternalInfo | None) -> Json | None:
    if info is None:
        return None
    return {
        "external_knowledge_id": info.knowledge_id,
        "external_knowledge_api_id": str(info.api_id),
        "external_knowledge_api_name": info.api_name,
        "external_knowledge_api_endpoint": info.endpoint,
    }


def single_dataset(row: Dataset, facts: Facts, *, available: bool) -> Json:
    """The dataset as GET shows it."""
    shape = dataset(row, facts, embedding_available=available)
    if row.indexing_technique is not IndexingTechnique.HIGH_QUALITY:
        shape["retrieval_model_dict"]["search_method"] = "keyword_search"
    if row.permission == "partial_members":
        shape["partial_member_list"] = [str(user_id) for user_id in facts.members]
    return shape


def upload_file(row: UploadFile) -> Json:
    """A file as documents show it."""
    return {
        "id": str(row.id),
        "name": row.name,
        "size": row.size_bytes,
        "extension": row.extension,
        "mime_type": row.media_type,
        "created_by": str(row.created_by),
        "created_at": row.created_at.timestamp(),
    }


def document(
    row: Document, upload: UploadFile | None, hit_count: int, metadata: list[Json]
) -> Json:
    """The document object of lists and of create and update answers.

    Args:
        metadata: see `kb.api.document_metadata`.
    """
    return {
        "id": str(row.id),
        "position": row.position,
        "data_source_type": row.data_source_type,
        "data_source_info": {"upload_file_id": str(row.upload_file_id)},
        "data_source_detail_dict": {"upload_file": upload_file(upload)} if upload else {},
        "dataset_process_rule_id": text(row.process_rule_id),
        "name": row.name,
        "created_from": row.created_from,
        "created_by": str(row.created_by),
        "created_at": epoch(row.created_at),
        "tokens": row.tokens,
        "indexing_status": row.indexing_status,
        "error": row.error,
        "error_code": row.error_code,
        "enabled": row.enabled,
        "disabled_at": epoch(row.disabled_at),
        "disabled_by": text(row.disabled_by),
        "archived": row.archived,
        "display_status": display_status(row),
        "word_count": row.word_count,
        "hit_count": hit_count,
        "doc_form": row.doc_form,
        "doc_metadata": metadata,
        "summary_index_status": None,
        "need_summary": False,
    }


def document_detail(
    row: Document,
    upload: UploadFile | None,
    rule: ProcessRule | None,
    dataset_rule: ProcessRule | None,
    version: DocumentVersion | None,
    counts: tuple[int, int],
    nodes: list[Any] | None,
    metadata: list[Json],
) -> Json:
    """The document as GET shows it."""
    segments, hits = counts
    words = row.word_count or 0
    shown = dataset_rule or rule
    return {
        "id": str(row.id),
        "position": row.position,
        "data_source_type": row.data_source_type,
        "data_source_info": {"upload_file": upload_file(upload)} if upload else {},
        "dataset_process_rule_id": text(row.process_rule_id),
        "dataset_process_rule": (
            {"mode": shown.mode, "rules": shown.rules} if shown else PLACEHOLDER_RULE
        ),
        "document_process_rule": (
            {
                "id": str(rule.id),
                "dataset_id": str(rule.dataset_id),
                "mode": rule.mode,
                "rules": rule.rules,
            }
            if rule
            else {}
        ),
        "name": row.name,
        "created_from": row.created_from,
        "created_by": str(row.created_by),
        "created_at": epoch(row.created_at),
        "tokens": row.tokens,
        "indexing_status": row.indexing_status,
        "completed_at": epoch(row.completed_at),
        "updated_at": epoch(row.updated_at),
        "indexing_latency": row.indexing_latency,
        "error": row.error,
        "error_code": row.error_code,
        "error_stage": row.error_stage,
        "attempts": row.attempts,
        "next_attempt_at": epoch(row.next_attempt_at),
        "enabled": row.enabled,
        "disabled_at": epoch(row.disabled_at),
        "disabled_by": text(row.disabled_by),
        "archived": row.archived,
        "doc_type": None,
        "doc_metadata": metadata or None,
        "segment_count": segments,
        "average_segment_length": words // segments if segments else 0,
        "hit_count": hits,
        "display_status": display_status(row),
        "doc_form": row.doc_form,
        "doc_language": row.doc_language,
        "summary_index_status": None,
        "need_summary": False,
        "version": row.version,
        "pending_version": row.pending_version,
        "warnings": (version.warnings or []) if version else [],
        "pipeline_timings": nodes or [],
    }


def indexing_status(row: Document, progress: Progress) -> Json:
    """One entry of the indexing-status answer."""
    paused = display_status(row) == "paused"
    return {
        "id": str(row.id),
        "indexing_status": "paused" if paused else row.indexing_status,
        "processing_started_at": epoch(row.processing_started_at),
        "parsing_completed_at": epoch(row.parsing_completed_at),
        "cleaning_completed_at": epoch(row.cleaning_completed_at),
        "splitting_completed_at": epoch(row.splitting_completed_at),
        "completed_at": epoch(row.completed_at),
        "paused_at": epoch(row.paused_at),
        "error": row.error,
        "stopped_at": epoch(row.stopped_at),
        "completed_segments": progress.completed,
        "total_segments": progress.total,
    }


def source(row: Segment) -> Json:
    """Where a segment stands in its file; offsets are characters of the extracted text."""
    return {"start": row.start_offset, "end": row.end_offset, **(row.origin or {})}


def _segment_core(row: Segment) -> Json:
    return {
        "id": str(row.id),
        "position": row.position,
        "document_id": str(row.document_id),
        "content": row.content,
        "sign_content": row.content,
        "answer": row.answer,
        "word_count": row.word_count,
        "tokens": row.tokens,
        "keywords": row.keywords or [],
        "index_node_id": str(row.id),
        "index_node_hash": row.text_hash,
        "hit_count": row.hit_count,
        "enabled": row.enabled,
        "disabled_at": epoch(row.disabled_at),
        "disabled_by": text(row.disabled_by),
        "status": row.status if row.status is SegmentStatus.COMPLETED else "indexing",
        "created_by": str(row.created_by),
        "created_at": epoch(row.created_at),
        "indexing_at": epoch(row.indexing_at),
        "completed_at": epoch(row.indexed_at),
        "error": None,
        "stopped_at": None,
        "source": source(row),
    }


def segment(row: Segment, children: list[ChildChunk]) -> Json:
    """The segment object of listings."""
    return _segment_core(row) | {
        "updated_at": epoch(row.updated_at),
        "updated_by": text(row.updated_by),
        "child_chunks": [child_chunk(c) for c in children],
        "attachments": [],
        "summary": None,
    }


def child_chunk(row: ChildChunk) -> Json:
    """The child chunk object."""
    return {
        "id": str(row.id),
        "segment_id": str(row.segment_id),
        "content": row.content,
        "position": row.position,
        "word_count": row.word_count,
        "type": row.type,
        "created_at": epoch(row.created_at),
        "updated_at": epoch(row.updated_at),
    }


def record(hit: Hit, *, explain: bool) -> Json:
    """One record of a retrieve answer."""
    row = hit.document
    shape: Json = {
        "segment": _segment_core(hit.segment)
        | {
            "document": {
                "id": str(row.id),
                "data_source_type": row.data_source_type,
                "name": row.name,
                "doc_type": None,
                "doc_metadata": row.doc_metadata,
            }
        },
        "child_chunks": [
            {"id": str(c.id), "content": c.content, "position": c.position, "score": c.score}
            for c in hit.children
        ],
        "score": hit.score,
        "tsne_position": None,
        "files": [],
        "summary": None,
    }
    if explain:
        shape["explain"] = explanation(hit)
    return shape


def explanation(hit: Hit) -> Json:
    """How the score came about; the parts add up to it."""
    why = hit.explanation
    return {
        "point_id": str(why.point_id),
        "vector": _leg(why.dense, why.dense_weight),
        "full_text": _leg(why.text, why.text_weight),
        "rerank": _rerank(why.rerank),
        "score": hit.score,
    }


def reranked(outcome: Reranked) -> Json:
    """What came of the rerank step; not applied: the fused order stands."""
    return {
        "provider": outcome.provider,
        "model": outcome.model,
        "applied": outcome.applied,
        "complete": outcome.kind == "done",
        "candidates": outcome.asked,
        "judged": outcome.judged,
        "error": outcome.error,
    }


def _rerank(step: RerankScore | None) -> Json | None:
    if step is None:
        return None
    return {"fused_score": step.fused, "score": step.given, "behind": step.behind}


def _leg(leg: LegScore | None, weight: float) -> Json | None:
    if leg is None:
        return None
    return {
        "rank": leg.rank,
        "raw_score": leg.raw,
        "normalised_score": leg.normalised,
        "weight": weight,
        "contribution": weight * leg.normalised,
    }


def foreign_record(hit: ExternalHit) -> Json:
    """One record of another service's, with the four keys of the contract."""
    return {
        "content": hit.content,
        "title": hit.title,
        "score": hit.score,
        "metadata": hit.metadata,
    }


def record_of_foreign(hit: ExternalHit) -> Json:
    """The same as a record of a retrieve answer: with a segment that is nowhere else."""
    segment: Json = {
        "id": str(hit.id),
        "position": 0,
        "document_id": hit.document_id,
        "content": hit.content,
        "sign_content": hit.content,
        "answer": None,
        "word_count": len(hit.content),
        "tokens": 0,
        "keywords": [],
        "index_node_id": str(hit.id),
        "index_node_hash": None,
        "hit_count": 0,
        "enabled": True,
        "disabled_at": None,
        "disabled_by": None,
        "status": "completed",
        "created_by": None,
        "created_at": None,
        "indexing_at": None,
        "completed_at": None,
        "error": None,
        "stopped_at": None,
        "source": {},
        "document": {
            "id": hit.document_id,
            "data_source_type": "external",
            "name": hit.title,
            "doc_type": None,
            "doc_metadata": hit.metadata,
        },
    }
    return {
        "segment": segment,
        "child_chunks": [],
        "score": hit.score,
        "tsne_position": None,
        "files": [],
        "summary": None,
    }


def node_content(row: Segment) -> str:
    """A segment's text where there is one place for all of it: a question comes with its answer."""
    return row.content if row.answer is None else f"question:{row.content} \nanswer:{row.answer}"


def external_record(hit: Hit) -> Json:
    """One record of the external-knowledge contract."""
    row = hit.document
    return {
        "content": node_content(hit.segment),
        "score": hit.score,
        "title": row.name,
        "metadata": {
            **(row.doc_metadata or {}),
            "document_id": str(row.id),
            "segment_id": str(hit.segment.id),
            "position": hit.segment.position,
            **source(hit.segment),
        },
    }
