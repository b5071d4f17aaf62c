"""What a knowledge-retrieval node is configured with, and is sent as a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from kb.schemas import Lenient, MetadataFilter, WeightsIn

_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")
_BREAKS = re.compile(r"[\r\n\t]+")


class NodeRerankingModel(Lenient):
    """Which model reorders the hits of all datasets; without names none does."""

    provider: str | None = Field(
        default=None,
        validation_alias=AliasChoices("provider", "reranking_provider_name"),
        description="Provider of the rerank model.",
    )
    model: str | None = Field(
        default=None,
        validation_alias=AliasChoices("model", "reranking_model_name"),
        description="Name of the rerank model.",
    )


class MultipleRetrieval(Lenient):
    """How all datasets are searched together."""

    top_k: int | None = Field(
        default=None, description="Hits in all, over all datasets; 4 when left out.", examples=[5]
    )
    score_threshold: float | None = Field(
        default=None, description="Only hits whose final score is at least this; null: all."
    )
    reranking_mode: str | None = Field(
        default="reranking_model",
        description="reranking_model: by the model, if one is named; weighted_score: hybrid "
        "search with `weights`.",
    )
    reranking_enable: bool = Field(default=True, description="Whether `reranking_model` is used.")
    reranking_model: NodeRerankingModel | None = Field(
        default=None, description="Needed for reranking_mode reranking_model."
    )
    weights: WeightsIn | None = Field(
        default=None, description="Needed for reranking_mode weighted_score."
    )

    @model_validator(mode="after")
    def _weights_are_there(self) -> Self:
        if self.reranking_enable and self.reranking_mode == "weighted_score":
            given = self.weights
            if given is None or given.vector_setting is None or given.keyword_setting is None:
                raise ValueError(
                    "reranking_mode is 'weighted_score', which needs weights with vector_setting "
                    "and keyword_setting"
                )
        return self


class ChatModelConfig(Lenient):
    """Which chat model is asked."""

    provider: str | None = Field(default=None, description="Provider of the chat model.")
    name: str | None = Field(default=None, description="Name of the chat model.")
    mode: str | None = Field(default=None, description="Accepted; chat is what is done.")
    completion_params: dict[str, Any] = Field(
        default_factory=dict, description="Of these temperature and max_tokens are used."
    )


class SingleRetrieval(Lenient):
    """Which chat model chooses the one dataset that is searched."""

    model: ChatModelConfig | None = Field(default=None, description="The chat model.")


class KnowledgeRetrieval(Lenient):
    """POST /v1/knowledge-retrieval: the node's configuration, and the question."""

    query: str | None = Field(
        default=None,
        description="The question; without one the answer is empty.",
        examples=["How do I reset the station?"],
    )
    dataset_ids: list[str] = Field(description="The datasets that are asked.")
    retrieval_mode: Literal["single", "multiple"] = Field(
        default="multiple",
        description="multiple: all datasets; single: the one that a chat model chooses.",
    )
    multiple_retrieval_config: MultipleRetrieval = Field(
        default_factory=MultipleRetrieval, description="Of retrieval_mode multiple."
    )
    single_retrieval_config: SingleRetrieval = Field(
        default_factory=SingleRetrieval, description="Of retrieval_mode single."
    )
    metadata_filtering_mode: Literal["disabled", "automatic", "manual"] = Field(
        default="disabled",
        description="disabled: no filter; manual: by metadata_filtering_conditions; automatic: by "
        "conditions that a chat model finds in the question.",
    )
    metadata_model_config: ChatModelConfig | None = Field(
        default=None, description="The chat model of metadata_filtering_mode automatic."
    )
    metadata_filtering_conditions: MetadataFilter | None = Field(
        default=None,
        description="Conditions; in their values {{name}} stands for the input of this name.",
    )
    inputs: dict[str, Any] = Field(
        default_factory=dict, description="What placeholders in conditions stand for."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_placeholders(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("inputs") or {}, Mapping):
            return value
        asked = value.get("metadata_filtering_conditions")
        filled = _filled(asked, value.get("inputs") or {})
        return {**value, "metadata_filtering_conditions": filled}


def _filled(conditions: Any, inputs: Mapping[str, Any]) -> Any:
    """The same conditions with the placeholders of their values replaced; unknown ones stay."""
    if isinstance(conditions, list):
        return [_filled(part, inputs) for part in conditions]
    if not isinstance(conditions, Mapping):
        return conditions
    return {
        key: _filled_value(part, inputs) if key == "value" else _filled(part, inputs)
        for key, part in conditions.items()
    }


def _filled_value(value: Any, inputs: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled_value(part, inputs) for part in value]
    if not isinstance(value, str) or "{{" not in value:
        return value
    text = _PLACEHOLDER.sub(lambda found: str(inputs.get(found[1], found[0])), value)
    return _BREAKS.sub(" ", text).strip()
