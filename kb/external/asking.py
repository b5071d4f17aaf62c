"""A question to a service that holds a dataset's knowledge, and what it answers."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.orm import Session

from kb.errors import ExternalKnowledgeFailed, InvalidParam
from kb.external.records import ExternalHit, read_records
from kb.models import Dataset, ExternalApi, ExternalBinding
from kb.ports import ExternalKnowledge
from kb.resources import Resources
from kb.schemas import ExternalRetrievalModel, MetadataFilter

_EXECUTED_TOP_K = 4
_SAID = 300
_REFUSED_AT_PROBE = (403, 404, 502)


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset's knowledge at its service, and how to ask for it.

    Attributes:
        threshold: records below it are left out; None: none is.
    """

    dataset_id: uuid.UUID
    name: str
    endpoint: str
    api_key: str = field(repr=False)
    knowledge_id: str
    top_k: int = _EXECUTED_TOP_K
    threshold: float | None = None

    def asked(self, model: ExternalRetrievalModel | None, *, most: int) -> Source:
        """The same, asked so.

        Raises:
            InvalidParam: top_k is beyond the limit.
        """
        if model is None:
            return self
        top_k = self.top_k if model.top_k is None else model.top_k
        if not 1 <= top_k <= most:
            raise InvalidParam(
                f"top_k is {top_k}; it must lie between 1 and {most} (KB_LIMITS__TOP_K)"
            )
        threshold = model.score_threshold if model.score_threshold_enabled else None
        return replace(self, top_k=top_k, threshold=threshold)


def source_of(session: Session, dataset: Dataset, resources: Resources) -> Source:
    """How a dataset's service is asked, with the settings that are kept with the dataset.

    Raises:
        InvalidParam: the dataset is bound to none.
        SecretUnreadable: the key cannot be opened here.
    """
    binding = session.get(ExternalBinding, dataset.id)
    api = session.get(ExternalApi, binding.api_id) if binding is not None else None
    if binding is None or api is None:
        raise InvalidParam(
            f"dataset {dataset.name!r} is external but bound to no external knowledge API; send "
            "external_knowledge_api_id and external_knowledge_id with PATCH "
            f"/v1/datasets/{dataset.id}"
        )
    source = Source(
        dataset_id=dataset.id,
        name=dataset.name,
        endpoint=api.endpoint,
        api_key=resources.keyring.open(api.api_key),
        knowledge_id=binding.knowledge_id,
    )
    own = ExternalRetrievalModel.model_validate(dataset.retrieval_model or {})
    return source.asked(own, most=resources.settings.limits.top_k)


def ask(
    source: Source, query: str, conditions: MetadataFilter | None, door: ExternalKnowledge
) -> list[ExternalHit]:
    """What the service answers, best first, at most `top_k`, with the scores that it gives.

    Raises:
        ExternalKnowledgeFailed: no answer, or none of the contract.
    """
    body = {
        "retrieval_setting": {"top_k": source.top_k, "score_threshold": source.threshold or 0.0},
        "query": query,
        "knowledge_id": source.knowledge_id,
        "metadata_condition": _condition(conditions),
    }
    who = f"the external knowledge API {source.endpoint}"
    answer = door.post(source.endpoint, source.api_key, _json(body))
    if answer.status != 200:
        raise ExternalKnowledgeFailed(
            f"{who} answered with status {answer.status}: {_said(answer.body, source.api_key)}"
        )
    hits = read_records(answer.body, source.dataset_id, who)
    low = source.threshold
    return [hit for hit in hits if low is None or hit.score >= low][: source.top_k]


def probe(endpoint: str, api_key: str, door: ExternalKnowledge) -> int:
    """Try a service out, as the contract has it: an empty question; the status of its answer.

    Raises:
        InvalidParam: nobody answers there, or somebody else, or the key is refused.
    """
    body = {
        "knowledge_id": "",
        "query": "",
        "retrieval_setting": {"top_k": 1, "score_threshold": 0.0},
    }
    try:
        answer = door.post(endpoint, api_key, _json(body))
    except ExternalKnowledgeFailed as exc:
        raise InvalidParam(exc.message) from exc
    if answer.status in _REFUSED_AT_PROBE:
        remedy = "check api_key" if answer.status == 403 else "check endpoint"
        raise InvalidParam(f"{endpoint}/retrieval answered with status {answer.status}; {remedy}")
    return answer.status


def _condition(conditions: MetadataFilter | None) -> Any:
    """As the contract has it: null where nothing is asked, extensions of ours only where used."""
    if conditions is None or conditions.tree() is None:
        return None
    return _plain(conditions.model_dump(mode="json", by_alias=True))


def _plain(value: Any) -> Any:
    """The same without the switch of ours that is off."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {k: _plain(v) for k, v in value.items() if (k, v) != ("ignore_case", False)}


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _said(body: bytes, api_key: str) -> str:
    """What an answer says, without the key."""
    text = " ".join(body.decode("utf-8", "replace").replace(api_key, "***").split())
    return text[:_SAID] or "(nothing)"
