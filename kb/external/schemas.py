"""What comes in about external knowledge."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from kb.schemas import (
    Description,
    ExternalRetrievalModel,
    Lenient,
    MetadataFilter,
    blank_to_none,
    not_blank,
)

HIDDEN = "[__HIDDEN__]"
"""What is shown in place of a key; sent back, it stands for the key that is kept."""

_Name = Annotated[str, StringConstraints(min_length=1, max_length=40), AfterValidator(not_blank)]
_DatasetName = Annotated[
    str, StringConstraints(min_length=1, max_length=100), AfterValidator(not_blank)
]
_Key = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[\x21-\x7e]+$")]


class ExternalApiSettings(Lenient):
    """How a service is reached."""

    endpoint: str = Field(
        description="http:// or https://; /retrieval is put behind it.",
        examples=["https://knowledge.example.org/api"],
    )
    api_key: _Key = Field(
        description=f"Sent as bearer token; {HIDDEN} in PATCH keeps the one that is stored.",
        examples=["s3cret"],
    )


class ExternalApiIn(Lenient):
    """POST .../external-knowledge-api, and PATCH of one."""

    name: _Name = Field(description="What people call the service.", examples=["Archive"])
    description: Description = Field(default="", description="For people.")
    settings: ExternalApiSettings = Field(description="How it is reached.")


class ExternalDatasetCreate(Lenient):
    """POST /v1/datasets/external."""

    external_knowledge_api_id: Annotated[UUID | None, BeforeValidator(blank_to_none)] = Field(
        default=None, description="The service."
    )
    external_knowledge_id: Annotated[str | None, StringConstraints(max_length=2000)] = Field(
        default=None, description="What the service calls the knowledge base.", examples=["KB-42"]
    )
    name: _DatasetName = Field(description="Unique in the workspace.", examples=["Archive"])
    description: Description = Field(default="", description="For people, and for a chat model.")
    external_retrieval_model: ExternalRetrievalModel | None = Field(
        default=None, description="How the service is asked."
    )


class ExternalHitTesting(Lenient):
    """POST /v1/datasets/{dataset_id}/external-hit-testing."""

    query: str = Field(description="The question.")
    external_retrieval_model: ExternalRetrievalModel | None = Field(
        default=None, description="In place of the dataset's own."
    )
    metadata_filtering_conditions: MetadataFilter | None = Field(
        default=None, description="Passed on to the service."
    )
