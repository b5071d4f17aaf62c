"""Bodies of the routes of configured models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from kb.models import ModelKind, ModelType
from kb.schemas import Lenient


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("has characters that cannot be shown; leave them out")
    return value


_Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, strip_whitespace=True),
    AfterValidator(_one_line),
]
_Options = Annotated[
    dict[str, Any],
    Field(
        description="Further options by name, such as timeout_s or dimensions; a wrong name is "
        "answered with the list of those that the type has. In a change null brings back the "
        "default.",
        examples=[{"timeout_s": 20}],
    ),
]
_Url = Annotated[
    str | None,
    Field(
        description="Address of the server; OpenAI, Cohere and Jina need none for their own.",
        examples=["http://localhost:8080"],
    ),
]
_Path = Annotated[
    str | None,
    Field(
        description="Kind local: directory of the model, on the machine of each process.",
        examples=["/models/ms-marco-MiniLM-L6-v2"],
    ),
]
_Key = Annotated[
    SecretStr | None,
    Field(
        description="API key of the server; stored sealed, and never shown again.",
        examples=["sk-..."],
    ),
]


class ModelCreate(Lenient):
    """POST /v1/models."""

    type: ModelType = Field(description="What it does: text-embedding, rerank or llm.")
    provider: _Name = Field(
        description="A name of your choice for where it comes from; send it as "
        "embedding_model_provider or reranking_provider_name.",
        examples=["openai"],
    )
    model: _Name = Field(
        description="Its name, as its server knows it; of a local one a name of your choice.",
        examples=["text-embedding-3-small"],
    )
    kind: ModelKind = Field(
        description="What its server speaks: openai, tei, cohere, jina or vllm; or local.",
        examples=["openai"],
    )
    url: _Url = None
    path: _Path = None
    api_key: _Key = None
    options: _Options = Field(default_factory=dict)

    def all_options(self) -> dict[str, Any]:
        """With the place of the model among them."""
        place = {"url": self.url, "path": self.path}
        return self.options | {k: v for k, v in place.items() if v is not None}


class ModelUpdate(Lenient):
    """PATCH /v1/models/{id}: only keys that are present are applied; a null api_key removes it."""

    url: _Url = None
    path: _Path = None
    api_key: _Key = None
    options: _Options = Field(default_factory=dict)

    def all_options(self) -> dict[str, Any]:
        """With the place of the model among them, when it was sent."""
        place = {"url": self.url, "path": self.path}
        return self.options | {k: v for k, v in place.items() if k in self.model_fields_set}
