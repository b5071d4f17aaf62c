"""What comes in: request bodies, lenient where existing clients are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    Tag,
    model_validator,
)

from kb.document_status import DisplayStatus
from kb.models import DocForm, FieldType, IndexingTechnique
from kb.process_rules import ProcessRuleIn
from kb.retrieval.conditions import (
    OTHER_SPELLINGS,
    Comparison,
    Conditions,
    Not,
    Operator,
    find_operator,
    grouped,
)

Permission = Literal["only_me", "all_team_members", "partial_members"]


def not_blank(value: str) -> str:
    """Raises: ValueError: there is nothing but white space in it."""
    if not value.strip():
        raise ValueError("must not be blank; give a name")
    return value


def blank_to_none(value: Any) -> Any:
    """None for an empty text."""
    return None if value == "" else value


DatasetName = Annotated[
    str, StringConstraints(min_length=1, max_length=40), AfterValidator(not_blank)
]
TagName = Annotated[str, StringConstraints(min_length=1, max_length=50), AfterValidator(not_blank)]
Description = Annotated[str, StringConstraints(max_length=400)]


Technique = Annotated[IndexingTechnique | None, BeforeValidator(blank_to_none)]
ModelName = Annotated[str | None, StringConstraints(max_length=255)]


class Lenient(BaseModel):
    """A body in which unknown keys are ignored, and a null means what an absent key means."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        defaults = {n: i.default for n, i in cls.model_fields.items() if not i.is_required()}
        return {k: v for k, v in value.items() if v is not None or defaults.get(k) is None}


class RerankingModel(Lenient):
    """Which model reorders the hits; empty names mean none."""

    reranking_provider_name: str | None = None
    """Provider of the rerank model."""
    reranking_model_name: str | None = None
    """Name of the rerank model."""


class VectorSetting(Lenient):
    """The dense leg's part of a weighted hybrid query."""

    vector_weight: float = Field(ge=0)
    """Share of meaning in the score, at least 0."""
    embedding_provider_name: str | None = None
    """Accepted; the dataset's own model is used."""
    embedding_model_name: str | None = None
    """Accepted; the dataset's own model is used."""


class KeywordSetting(Lenient):
    """The full-text leg's part of a weighted hybrid query."""

    keyword_weight: float = Field(ge=0)
    """Share of words in the score, at least 0."""


class WeightsIn(Lenient):
    """Weights of a hybrid query; `weight_type` is a hint for user interfaces."""

    weight_type: str | None = None
    """A hint for user interfaces; has no effect."""
    vector_setting: VectorSetting | None = None
    """The part of meaning."""
    keyword_setting: KeywordSetting | None = None
    """The part of words."""

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if (
            self.vector_setting is not None
            and self.keyword_setting is not None
            and self.vector_setting.vector_weight + self.keyword_setting.keyword_weight == 0
        ):
            raise ValueError("vector_weight and keyword_weight are both 0; one must be above 0")
        return self


def _known_operator(value: str) -> str:
    if find_operator(value) is None:
        known = ", ".join([*Operator, *OTHER_SPELLINGS])
        raise ValueError(f"there is no such operator; use one of: {known}")
    return value


Scalar = StrictStr | StrictInt | StrictFloat
"""Strict: true is not 1."""


class Condition(Lenient):
    """One comparison with a metadata field. A null value compares nothing, and is left out."""

    name: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="Of a metadata field or built-in field; of a list, any one may match.",
        examples=["author"],
    )
    comparison_operator: Annotated[str, AfterValidator(_known_operator)] = Field(
        description="contains, not contains, start with, end with, is, is not, in, not in, empty, "
        "not empty; = ≠ > < ≥ ≤ (or ==, !=, >=, <=), before and after for numbers and times.",
        examples=["is"],
    )
    value: Scalar | list[Scalar] | None = Field(
        default=None,
        description="As the field's type has it; times in Unix seconds or ISO 8601; a list or a "
        "text with commas for in and not in.",
        examples=["Ann"],
    )
    ignore_case: bool = Field(
        default=False, description="Compare texts without regard to case (beyond the contract)."
    )

    def tree(self) -> Conditions | None:
        """The comparison, or None when it has no effect."""
        operator = find_operator(self.comparison_operator)
        assert operator is not None
        value = tuple(self.value) if isinstance(self.value, list) else self.value
        if not operator.takes_value:
            value = None
        elif value is None or (
            isinstance(value, tuple) and operator not in (Operator.IN, Operator.NOT_IN)
        ):
            return None
        names = [self.name] if isinstance(self.name, str) else self.name
        return grouped(
            [Comparison(name, operator, value, self.ignore_case) for name in names], every=False
        )


def _kind_of_condition(value: Any) -> str:
    if isinstance(value, Negation):
        return "not"
    if isinstance(value, Mapping) and ("not" in value or "part" in value):
        return "not"
    if isinstance(value, MetadataFilter) or (isinstance(value, Mapping) and "conditions" in value):
        return "group"
    return "comparison"


AnyCondition = Annotated[
    Annotated[Condition, Tag("comparison")]
    | Annotated["MetadataFilter", Tag("group")]
    | Annotated["Negation", Tag("not")],
    Discriminator(_kind_of_condition),
]


class Negation(Lenient):
    """What its condition does not match, documents without the field among it (ours, beyond the
    contract)."""

    model_config = ConfigDict(populate_by_name=True)  # as it is kept with a query

    part: AnyCondition = Field(alias="not", description="A condition or a group.")

    def tree(self) -> Conditions | None:
        """The negation, or None when there is nothing to negate."""
        part = self.part.tree()
        return None if part is None else Not(part)


class MetadataFilter(Lenient):
    """Conditions on metadata; groups may hold groups (beyond the contract)."""

    logical_operator: Literal["and", "or"] | None = Field(
        default="and", description="and (when left out): all must match; or, null: any one."
    )
    conditions: list[AnyCondition] | None = Field(
        default=None, description="Comparisons; beyond the contract also groups and negations."
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_or(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("logical_operator", "") is None:
            return {**value, "logical_operator": "or"}
        return value

    def tree(self) -> Conditions | None:
        """What it asks for; None: nothing that would restrict an answer."""
        parts = [tree for part in self.conditions or [] if (tree := part.tree()) is not None]
        return grouped(parts, every=self.logical_operator == "and")


class RetrievalModelIn(Lenient):
    """How to search; missing parts have defaults."""

    search_method: Literal[
        "semantic_search", "full_text_search", "hybrid_search", "keyword_search"
    ] = "semantic_search"
    """By meaning, by words (full text or keywords), or by both."""
    reranking_enable: bool = False
    """Whether `reranking_model` reorders the hits."""
    reranking_model: RerankingModel | None = None
    """Which model reorders the hits."""
    reranking_mode: str | None = None
    """reranking_model or weighted_score; the weights of a hybrid search count in either."""
    top_k: int | None = None
    """Hits at most; 4 when left out."""
    score_threshold_enabled: bool = False
    """Whether `score_threshold` counts."""
    score_threshold: float | None = None
    """Only hits that score at least this, in [0, 1]."""
    weights: WeightsIn | None = None
    """Shares of meaning and words in a hybrid search."""
    metadata_filtering_conditions: MetadataFilter | None = None
    """Only documents whose metadata meets these conditions."""

    @property
    def reranks_by_model(self) -> bool:
        """Whether these settings ask for a rerank model."""
        return bool(
            self.reranking_enable
            and self.reranking_mode != "weighted_score"
            and self.reranking_model
            and self.reranking_model.reranking_model_name
        )

    def stored(self) -> dict[str, Any]:
        """As kept with a dataset: without the filter of a single call."""
        return self.model_dump(mode="json", exclude={"metadata_filtering_conditions"})


class ExternalRetrievalModel(Lenient):
    """How a service is asked that holds a dataset's knowledge."""

    top_k: int | None = Field(default=None, description="Records at most; 4 when never set.")
    score_threshold: float | None = Field(
        default=None, description="Only records with at least this score."
    )
    score_threshold_enabled: bool | None = Field(
        default=None, description="Whether score_threshold counts."
    )


class SummaryIndexSetting(Lenient):
    """Kept and shown; summaries are not made."""

    enable: bool | None = None
    """Kept and shown."""
    model_name: str | None = None
    """Kept and shown."""
    model_provider_name: str | None = None
    """Kept and shown."""
    summary_prompt: str | None = None
    """Kept and shown."""


class DatasetCreate(Lenient):
    """POST /datasets."""

    name: DatasetName
    """1 to 40 characters, unique in the workspace."""
    description: Description = ""
    """At most 400 characters."""
    indexing_technique: Technique = None
    """high_quality: vectors and words; economy: words. The first document decides when left out."""
    permission: Permission | None = "only_me"
    """Who sees it in lists."""
    provider: Literal["vendor", "external"] = "vendor"
    """vendor: documents are uploaded; external: an external knowledge service is asked."""
    external_knowledge_api_id: str | None = None
    """Of an external dataset: the service."""
    external_knowledge_id: Annotated[str | None, StringConstraints(max_length=2000)] = None
    """Of an external dataset: which knowledge of the service."""
    external_retrieval_model: ExternalRetrievalModel | None = None
    """Of an external dataset: how it is asked."""
    embedding_model: ModelName = None
    """Name of the embedding model; the default one when left out."""
    embedding_model_provider: ModelName = None
    """Provider of the embedding model."""
    retrieval_model: RetrievalModelIn | None = None
    """How to search when a query does not say; left out: by meaning."""
    summary_index_setting: SummaryIndexSetting | None = None
    """Kept and shown; summaries are not made."""


class MemberIn(Lenient):
    """Somebody who may see a dataset."""

    user_id: UUID
    """Of the member."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"user_id": value} if isinstance(value, str) else value


class DatasetUpdate(Lenient):
    """PATCH /datasets/{id}; only keys that are present are applied, null only to `description`.

    `partial_member_list` counts with permission `partial_members`; ids alone are taken, too.
    """

    name: DatasetName | None = None
    """1 to 40 characters, unique in the workspace."""
    description: Description | None = None
    """At most 400 characters; null clears it."""
    indexing_technique: Technique = None
    """high_quality or economy."""
    permission: Permission | None = None
    """Who sees it in lists."""
    embedding_model: ModelName = None
    """Name of the embedding model."""
    embedding_model_provider: ModelName = None
    """Provider of the embedding model."""
    retrieval_model: RetrievalModelIn | None = None
    """Replaces the settings that were stored."""
    partial_member_list: list[MemberIn] | None = None
    """Who sees it, with permission partial_members; replaces the list before."""
    external_knowledge_api_id: str | None = None
    """Of an external dataset: the service."""
    external_knowledge_id: Annotated[str | None, StringConstraints(max_length=2000)] = None
    """Of an external dataset: which knowledge of the service."""
    external_retrieval_model: ExternalRetrievalModel | None = None
    """Of an external dataset: how it is searched."""


class TagCreate(Lenient):
    """POST /datasets/tags."""

    name: TagName
    """1 to 50 characters, unique in the workspace."""


class TagUpdate(Lenient):
    """PATCH /datasets/tags."""

    tag_id: str
    """Of the tag."""
    name: TagName
    """1 to 50 characters, unique in the workspace."""


class TagDelete(Lenient):
    """DELETE /datasets/tags."""

    tag_id: str
    """Of the tag."""


class TagBind(Lenient):
    """POST /datasets/tags/binding."""

    tag_ids: list[str] = Field(min_length=1)
    """Ids of tags, at least one."""
    target_id: str
    """Of the dataset."""


class TagUnbind(Lenient):
    """POST /datasets/tags/unbinding; `tag_id` is how older clients name a single tag."""

    tag_ids: list[str] | None = None
    """Ids of tags."""
    tag_id: str | None = None
    """Of a single tag, as older clients send it."""
    target_id: str
    """Of the dataset."""

    @model_validator(mode="after")
    def _names_a_tag(self) -> Self:
        if not self.all_tag_ids:
            raise ValueError("tag_ids is empty and tag_id is missing; name a tag in one of them")
        return self

    @property
    def all_tag_ids(self) -> list[str]:
        """The tags that are named."""
        return self.tag_ids or ([self.tag_id] if self.tag_id else [])


class DocumentSettings(Lenient):
    """What every way to create a document may say."""

    indexing_technique: Technique = None
    """Of the first document of a dataset that has none; else ignored."""
    doc_form: Annotated[DocForm | None, BeforeValidator(blank_to_none)] = None
    """The first document decides for the dataset; text_model when left out."""
    doc_language: Annotated[str, StringConstraints(max_length=64)] = "English"
    """Of the text."""
    process_rule: ProcessRuleIn | None = None
    """How the text is cleaned and cut; the dataset's latest rule when left out, else automatic."""
    original_document_id: Annotated[UUID | None, BeforeValidator(blank_to_none)] = None
    """The upload is a new version of this document."""
    retrieval_model: RetrievalModelIn | None = None
    """Of the first document: how the dataset is searched."""
    embedding_model: ModelName = None
    """Of the first document: name of the dataset's embedding model."""
    embedding_model_provider: ModelName = None
    """Of the first document: its provider."""
    duplicate: bool = True
    """false: add another document although one has this name."""


class DocumentByText(DocumentSettings):
    """POST .../document/create-by-text."""

    name: str
    """Cut to 200 characters; a document of the same name is replaced."""
    text: str
    """What is indexed."""


class DocumentUpdate(Lenient):
    """PATCH .../documents/{id}: what is left out stays as it is, but for the process rule, which is
    then the dataset's latest."""

    name: str | None = None
    """The new name; stays when left out."""
    doc_form: Annotated[DocForm | None, BeforeValidator(blank_to_none)] = None
    """Must be that of the dataset."""
    doc_language: Annotated[
        str | None, StringConstraints(max_length=64), BeforeValidator(blank_to_none)
    ] = None
    """Of the text; stays when left out."""
    process_rule: ProcessRuleIn | None = None
    """How the text is cleaned and cut; the dataset's latest rule when left out."""
    retrieval_model: RetrievalModelIn | None = None
    """Checked, and else without effect."""


class DocumentUpdateByText(DocumentUpdate):
    """POST .../documents/{id}/update-by-text: a `text` needs a `name`."""

    text: str | None = None
    """The new text; needs a name."""


class DocumentIds(Lenient):
    """Which documents of the dataset."""

    document_ids: list[str]
    """Ids of documents of the dataset."""


class SegmentIn(Lenient):
    """A segment to be added; `answer` is asked of documents of questions and answers."""

    content: str
    """The text; the question in a document of questions and answers."""
    answer: str | None = None
    """The answer, in a document of questions and answers."""
    keywords: list[str] | None = None
    """Words that it is found by beside its text."""


class SegmentsCreate(Lenient):
    """POST .../segments."""

    segments: list[SegmentIn]
    """At least one."""


class SegmentPatch(Lenient):
    """What is to be changed of a segment.

    `enabled: false` on an enabled segment disables it, whatever else is sent. An empty `content`,
    or an empty list of `keywords`, keeps what there is.
    """

    content: str | None = None
    """The new text; stays when empty or left out."""
    answer: str | None = None
    """The new answer, in a document of questions and answers."""
    keywords: list[str] | None = None
    """The new keywords; stay when empty or left out."""
    enabled: bool | None = None
    """false switches the segment off and ignores the rest; true switches it on."""
    regenerate_child_chunks: bool = False
    """Make the child chunks anew from the content."""


class SegmentUpdate(Lenient):
    """POST .../segments/{segment_id}."""

    segment: SegmentPatch
    """What is to be changed."""


class OverlayApply(Lenient):
    """POST .../overlays/{overlay_id}/apply: where a hand edit that fits no more shall go."""

    segment_id: UUID
    """The segment that the hand edit is applied to."""
    child_chunk_id: Annotated[UUID | None, BeforeValidator(blank_to_none)] = None
    """The child chunk that it is applied to."""


class ChildIn(Lenient):
    """The text of a child chunk."""

    content: str
    """Its text."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _in_utc(value: datetime | None) -> datetime | None:
    if value is None or value.tzinfo is None:
        return value and value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("must lie within the years 1 to 9999 in UTC, too") from exc


Moment = Annotated[datetime | None, AfterValidator(_in_utc)]
"""Without a zone it is UTC."""


class DocumentFilter(BaseModel):
    """Which documents an action is for: all parts that are given must hold, and one must be given,
    or `all`. A key that is not known is refused: a condition that is ignored does too much.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    dataset_id: UUID | None = Field(None, description="Documents of this dataset.")
    document_ids: list[UUID] | None = Field(None, description="These documents.")
    status: Annotated[list[DisplayStatus] | None, BeforeValidator(_as_list)] = Field(
        None, description="Display status, or several of them.", examples=[["error"]]
    )
    error_code: Annotated[list[str] | None, BeforeValidator(_as_list)] = Field(
        None,
        max_length=100,
        description="Code of the failure, or several of them.",
        examples=[["no_text"]],
    )
    tag: Annotated[list[str] | None, BeforeValidator(_as_list)] = Field(
        None,
        max_length=100,
        description="Tag of the dataset, by name or id, or several: any of them.",
    )
    created_from: Moment = Field(
        None, description="Created at this moment or later: ISO 8601 or Unix seconds."
    )
    created_to: Moment = Field(None, description="Created before this moment.")
    all: bool = Field(False, description="Every document that this key opens.")

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if not self.all and not self.model_fields_set - {"all", *self._nothing_said()}:
            raise ValueError("there is no condition; give one, or all: true for every document")
        return self

    def _nothing_said(self) -> set[str]:
        return {name for name in type(self).model_fields if getattr(self, name) is None}


class DocumentsAction(BaseModel):
    """POST /v1/documents/{action}: `process_rule` belongs to `rechunk`."""

    model_config = ConfigDict(extra="forbid")

    filter: DocumentFilter = Field(description="Which documents.")
    process_rule: ProcessRuleIn | None = Field(
        None, description="Of `rechunk`: how to cut them; the dataset's latest when left out."
    )


class DocumentRename(Lenient):
    """POST .../documents/{id}/rename."""

    name: str = Field(description="The new name, at most as long as the settings allow.")


class DocumentRechunk(Lenient):
    """POST .../documents/{id}/rechunk."""

    process_rule: ProcessRuleIn | None = Field(
        None, description="How to cut it; the dataset's latest rule when left out."
    )


class HitTesting(Lenient):
    """POST .../retrieve."""

    query: str
    """1 to 250 characters."""
    retrieval_model: RetrievalModelIn | None = None
    """How to search; replaces the dataset's settings for this call."""
    external_retrieval_model: ExternalRetrievalModel | None = Field(
        default=None, description="Of a dataset whose knowledge another service holds."
    )
    attachment_ids: list[str] | None = None
    """Accepted; images are not searched for."""


class RetrievalSetting(Lenient):
    """`retrieval_setting` of the external-knowledge contract."""

    top_k: int | None = None
    """Hits at most."""
    score_threshold: float | None = None
    """Only hits that score at least this."""


class ExternalRetrieval(Lenient):
    """POST /retrieval: a body-less or empty probe is answered with no records."""

    knowledge_id: str = ""
    """Id of a dataset; empty in a probe, which finds nothing."""
    query: str = ""
    """What is asked."""
    retrieval_setting: RetrievalSetting | None = None
    """How much is wanted."""
    metadata_condition: MetadataFilter | None = None
    """Only documents whose metadata meets these conditions."""


class MetadataFieldCreate(Lenient):
    """POST .../metadata."""

    type: FieldType = Field(description="Of the field's values; a time is in Unix seconds.")
    name: str = Field(
        description="1 to 255 characters, unique in the dataset and no built-in field's.",
        examples=["author"],
    )


class MetadataFieldUpdate(Lenient):
    """PATCH .../metadata/{id}."""

    name: str = Field(description="The new name.", examples=["writer"])


class MetadataValue(Lenient):
    """One value of a document."""

    id: str = Field(description="Of the field; entries with `built-in` are passed over.")
    name: str = Field(default="", description="Not looked at: the id says which field it is.")
    value: Scalar | None = Field(
        default=None,
        description="Of the field's type; times also in ISO 8601. A null is no value.",
        examples=["Ann", 2024],
    )


class MetadataOperation(Lenient):
    """The metadata of one document."""

    document_id: str = Field(description="A document of the dataset.")
    metadata_list: list[MetadataValue] = Field(description="Its values, each field once.")
    partial_update: bool = Field(
        default=False, description="Keep values that are not given, instead of replacing all."
    )


class MetadataOperations(Lenient):
    """POST .../documents/metadata."""

    operation_data: list[MetadataOperation] = Field(
        description="Applied in order, all or none; a limit of the server says how many."
    )


class WebhookCreate(Lenient):
    """POST /v1/webhooks: `events` when left out are all, `secret` when left out is made."""

    url: str
    """Where messages are sent by POST."""
    events: list[str] | None = None
    """What it is told of; everything when left out."""
    dataset_id: Annotated[UUID | None, BeforeValidator(blank_to_none)] = None
    """Of which dataset; all when left out."""
    secret: str | None = None
    """What messages are signed with; made when left out."""


class WebhookUpdate(Lenient):
    """PATCH /v1/webhooks/{id}: only keys that are present are applied."""

    url: str | None = None
    """Where messages are sent by POST."""
    events: list[str] | None = None
    """What it is told of."""
    enabled: bool | None = None
    """false: send nothing; true: send again, and forget failures."""
