"""Options of configured models: where a model is and how it is used; checked when it is added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kb.errors import InvalidParam
from kb.models import ModelKind, ModelType

KINDS: dict[ModelType, tuple[ModelKind, ...]] = {
    ModelType.EMBEDDING: (ModelKind.LOCAL, ModelKind.OPENAI, ModelKind.TEI),
    ModelType.RERANK: (
        ModelKind.LOCAL,
        ModelKind.COHERE,
        ModelKind.JINA,
        ModelKind.TEI,
        ModelKind.VLLM,
    ),
    ModelType.CHAT: (ModelKind.OPENAI,),
}
"""What a model of each type can be."""

_HAVE_A_HOME = (ModelKind.OPENAI, ModelKind.COHERE, ModelKind.JINA)
"""Kinds whose own service is asked when there is no URL."""


class ServerOptions(BaseModel):
    """What every model may say: where it is, and how patient we are with its server."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    path: Path | None = Field(
        default=None, description="local: directory of the model, on the machine of each process"
    )
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]",
        max_length=2000,
        description="address of the server; without one that of OpenAI, Cohere or Jina itself",
    )
    api_key_header: str = Field(
        default="Authorization",
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="takes the key, after `Bearer` if it is Authorization; Azure wants `api-key`",
    )
    timeout_s: float = Field(
        default=60.0, gt=0, le=3600, description="longest silence within one request"
    )
    connect_timeout_s: float = Field(
        default=5.0, gt=0, le=600, description="how long a new connection may take"
    )
    retries: int = Field(
        default=5, ge=0, le=50, description="attempts after the first one that fails for a while"
    )
    retry_base_s: float = Field(
        default=0.5, ge=0, le=600, description="wait before the second attempt; doubles"
    )
    retry_max_s: float = Field(
        default=10.0, ge=0, le=3600, description="longest wait within a call"
    )


class EmbeddingOptions(ServerOptions):
    """Of an embedding model; meaning and defaults as in the settings `KB_EMBEDDING__...`."""

    dimensions: int | None = Field(
        default=None, gt=0, le=65_536, description="length of the vectors; asked once if left out"
    )
    send_dimensions: bool = Field(
        default=False, description="ask for vectors of that length; not every model can be cut"
    )
    max_tokens: int | None = Field(
        default=None, gt=0, le=1_000_000, description="a longer text is cut there"
    )
    query_prefix: str | None = Field(
        default=None, max_length=2000, description="put before each query"
    )
    document_prefix: str | None = Field(
        default=None, max_length=2000, description="put before each text of a document"
    )
    request_texts: int = Field(default=64, gt=0, le=2048, description="texts per request at most")
    request_chars: int = Field(default=200_000, gt=0, description="characters per request at most")
    max_requests: int = Field(
        default=4, gt=0, le=256, description="requests for documents at once, in each process"
    )
    query_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="how long a query may take to be embedded"
    )
    threads: int | None = Field(
        default=None, gt=0, le=256, description="local: mini-batches at once; one for each core"
    )
    batch_size: int = Field(default=8, gt=0, le=1024, description="local: texts per mini-batch")

    @model_validator(mode="after")
    def _fits(self) -> EmbeddingOptions:
        if self.send_dimensions and self.dimensions is None:
            raise ValueError("send_dimensions needs a number; set dimensions")
        return self


class RerankOptions(ServerOptions):
    """Of a rerank model."""

    budget_s: float = Field(
        default=2.0,
        gt=0,
        le=600,
        description="for one query; texts whose turn did not come keep their order behind",
    )
    max_tokens: int | None = Field(
        default=None,
        gt=1,
        le=1_000_000,
        description="query and text together; what is longer is cut (local, cohere, vllm)",
    )
    raw_scores: bool = Field(
        default=False, description="the server answers with logits: bring them into [0, 1]"
    )
    request_texts: int = Field(default=64, gt=0, le=1000, description="texts per request at most")
    max_requests: int = Field(
        default=4, gt=0, le=256, description="requests of one query at once, in each process"
    )
    threads: int | None = Field(
        default=None, gt=0, le=256, description="local: mini-batches at once; one for each core"
    )
    batch_size: int = Field(default=8, gt=0, le=1024, description="local: texts per mini-batch")


class ChatOptions(ServerOptions):
    """Of a chat model."""

    total_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="for a whole call with its retries"
    )
    max_tokens: int | None = Field(
        default=None, gt=0, le=1_000_000, description="of an answer; the server's own if left out"
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="what the server calls it; OpenAI's newest: the second"
    )
    temperature: float | None = Field(
        default=0.0, ge=0, le=2, description="0: as steady as it can be; null: not sent"
    )
    context_tokens: int = Field(
        default=8192, gt=0, description="that the model reads; shown in lists"
    )
    json_mode: Literal["schema", "object", "none"] = Field(
        default="schema",
        description="how data is asked for: by JSON schema, as some JSON object, or in words only",
    )


Options = EmbeddingOptions | RerankOptions | ChatOptions
OPTIONS: dict[ModelType, type[EmbeddingOptions] | type[RerankOptions] | type[ChatOptions]] = {
    ModelType.EMBEDDING: EmbeddingOptions,
    ModelType.RERANK: RerankOptions,
    ModelType.CHAT: ChatOptions,
}


def checked_options(type: ModelType, kind: ModelKind, given: Mapping[str, Any]) -> Options:
    """The options as a value.

    Raises:
        InvalidParam: the kind does not fit the type, an option is unknown or out of its range, or
            the place of the model is missing; the message names what would work.
    """
    if kind not in KINDS[type]:
        known = ", ".join(KINDS[type])
        raise InvalidParam(f"kind is {kind.value!r}; a model of type {type.value!r} is {known}")
    try:
        options: Options = OPTIONS[type].model_validate(dict(given))
    except ValidationError as exc:
        raise InvalidParam(_sentences(exc, OPTIONS[type])) from exc
    if kind is ModelKind.LOCAL:
        if options.path is None:
            raise InvalidParam("kind 'local' needs the path of the model's directory; send path")
        if options.url is not None:
            raise InvalidParam("kind 'local' has no url; send path alone")
    elif options.path is not None:
        raise InvalidParam(f"kind {kind.value!r} has no path; send url, or kind 'local'")
    elif options.url is None and kind not in _HAVE_A_HOME:
        raise InvalidParam(f"kind {kind.value!r} needs a server; send url, such as http://HOST:80")
    return options


def stored(options: Options) -> dict[str, Any]:
    """What a row keeps: the options that were given."""
    return options.model_dump(mode="json", exclude_unset=True)


def _sentences(exc: ValidationError, model: type[BaseModel]) -> str:
    said = []
    for error in exc.errors(include_url=False):
        name = ".".join(str(part) for part in error["loc"]) or "options"
        if error["type"] == "extra_forbidden":
            said.append(f"no option {name!r}; known: {', '.join(model.model_fields)}")
        else:
            message = error["msg"].removeprefix("Value error, ")
            said.append(f"{name}: {message} (got {str(error['input'])[:100]!r})")
    return "\n".join(said)
