"""What routes ask for: the resources, a session, the caller's rights, the object of the path."""

from __future__ import annotations

import hmac
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from kb.datasets import get_dataset
from kb.db import reading, transaction
from kb.documents import get_document
from kb.errors import BadRequest, Forbidden, InvalidParam, NotFound, Unauthorized, Unprocessable
from kb.models import ApiKey, Dataset, Document
from kb.resources import Resources
from kb.runner import Runner

Body = TypeVar("Body", bound=BaseModel)


def get_resources(request: Request) -> Resources:
    """The process's adapters."""
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(get_resources)]


def get_runner(request: Request) -> Runner | None:
    """The in-process task runner; None when workers run elsewhere."""
    runner: Runner | None = request.app.state.runner
    return runner


RunnerDep = Annotated[Runner | None, Depends(get_runner)]


@dataclass(frozen=True)
class Caller:
    """Whose key this is; `dataset_id` when the key opens only one dataset."""

    workspace_id: uuid.UUID
    dataset_id: uuid.UUID | None = None


def bearer_token(header: str | None) -> str:
    """The key in an Authorization header.

    Raises:
        Unauthorized: no header, or not `Bearer <key>`.
    """
    scheme, _, token = (header or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("send the API key as 'Authorization: Bearer <key>'")
    return token.strip()


def find_caller(token: str, resources: Resources, process_key: str | None) -> Caller | None:
    """Who this key belongs to, or None."""
    configured = resources.settings.api_key
    for known in (process_key, configured.get_secret_value() if configured else None):
        if known and hmac.compare_digest(known.encode(), token.encode()):
            return Caller(resources.workspace_id)
    digest = sha256(token.encode()).hexdigest()
    with reading(resources.sessions) as session:
        key = session.scalar(select(ApiKey).where(ApiKey.sha256 == digest))
    return Caller(key.workspace_id, key.dataset_id) if key else None


def get_caller(request: Request, resources: ResourcesDep) -> Caller:
    """The caller; every route but health and documentation asks for it."""
    token = bearer_token(request.headers.get("authorization"))
    caller = find_caller(token, resources, request.app.state.process_key)
    if caller is None:
        raise Unauthorized("the API key is not valid; see `kb serve` or KB_API_KEY for the key")
    return caller


CallerDep = Annotated[Caller, Depends(get_caller)]


def get_session(resources: ResourcesDep, _caller: CallerDep) -> Iterator[Session]:
    """A writing session; commits when the route returns, before the answer is sent."""
    with transaction(resources.sessions) as session:
        yield session


def get_read_session(resources: ResourcesDep, _caller: CallerDep) -> Iterator[Session]:
    """A session over one snapshot."""
    with reading(resources.sessions) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session, scope="function")]
ReadSessionDep = Annotated[Session, Depends(get_read_session, scope="function")]


def find_dataset(session: Session, caller: Caller, dataset_id: str) -> Dataset:
    """The dataset of a path, as far as the caller may see it."""
    dataset = get_dataset(session, caller.workspace_id, path_id("dataset", dataset_id))
    if caller.dataset_id is not None and caller.dataset_id != dataset.id:
        raise NotFound("dataset", dataset_id)
    if not dataset.enable_api:
        raise Forbidden(f"API access to dataset {dataset.name!r} is switched off")
    return dataset


def dataset_to_read(dataset_id: str, session: ReadSessionDep, caller: CallerDep) -> Dataset:
    """The dataset of the path, to look at."""
    return find_dataset(session, caller, dataset_id)


def dataset_to_write(dataset_id: str, session: SessionDep, caller: CallerDep) -> Dataset:
    """The dataset of the path, to change."""
    return find_dataset(session, caller, dataset_id)


DatasetDep = Annotated[Dataset, Depends(dataset_to_read)]
DatasetToWrite = Annotated[Dataset, Depends(dataset_to_write)]


def document_to_read(document_id: str, session: ReadSessionDep, dataset: DatasetDep) -> Document:
    """The document of the path, to look at."""
    return get_document(session, dataset.id, path_id("document", document_id))


def document_to_write(document_id: str, session: SessionDep, dataset: DatasetToWrite) -> Document:
    """The document of the path, to change."""
    return get_document(session, dataset.id, path_id("document", document_id))


DocumentDep = Annotated[Document, Depends(document_to_read)]
DocumentToWrite = Annotated[Document, Depends(document_to_write)]


def path_id(noun: str, text: str) -> uuid.UUID:
    """A UUID of a path; anything else is simply not there."""
    try:
        return uuid.UUID(text)
    except ValueError as exc:
        raise NotFound(noun, text) from exc


@dataclass(frozen=True)
class Page:
    """Which rows of a listing; `asked` is the limit as sent, `limit` the one in force."""

    page: int
    limit: int
    asked: int


def get_page(request: Request, resources: ResourcesDep) -> Page:
    """`page` and `limit` of the query string."""
    page = query_int(request, "page", 1)
    asked = query_int(request, "limit", 20)
    return Page(page, min(asked, resources.settings.limits.page_rows), asked)


PageDep = Annotated[Page, Depends(get_page)]


def query_int(request: Request, name: str, default: int) -> int:
    """A positive integer of the query string.

    Raises:
        InvalidParam: it is something else.
    """
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    try:
        value = int(text)
    except ValueError as exc:
        raise InvalidParam(f"{name} is {text!r}; it must be an integer") from exc
    if value < 1:
        raise InvalidParam(f"{name} is {value}; it must be at least 1")
    return value


async def json_body(request: Request) -> Any:
    """The parsed body; None when there is none.

    Raises:
        BadRequest: it is not JSON.
    """
    raw = await request.body()
    if not raw.strip():
        return None
    try:
        return json.loads(raw)
    except ValueError as exc:
        raise BadRequest(f"the body is not valid JSON: {exc}") from exc


async def lenient_json_body(request: Request) -> Any:
    """The parsed body; an empty object when it is missing or not JSON."""
    try:
        return await json_body(request) or {}
    except BadRequest:
        return {}


JsonBody = Annotated[Any, Depends(json_body)]
LenientJsonBody = Annotated[Any, Depends(lenient_json_body)]


def parse(model: type[Body], value: Any) -> Body:
    """Validate a body.

    Raises:
        InvalidParam: the message names each field, what it was, and what is allowed.
    """
    if not isinstance(value, dict):
        raise InvalidParam("the body must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise InvalidParam(_explain(exc)) from exc


def parse_or_422(model: type[Body], value: Any) -> Body:
    """As `parse`, with the error shape of the routes that create and change datasets.

    Raises:
        Unprocessable: its message is a JSON list of the validator's errors.
    """
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise Unprocessable(exc.json(include_url=False, include_context=False)) from exc


def _explain(exc: ValidationError) -> str:
    return "\n".join(
        f"{'.'.join(str(part) for part in error['loc']) or 'body'}: {error['msg']}"
        + ("" if error["type"] == "missing" else f" (got {_short(error['input'])})")
        for error in exc.errors(include_url=False)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass(frozen=True)
class FormFile:
    """One `file` part."""

    name: str
    data: bytes
    media_type: str | None


@dataclass(frozen=True)
class Form:
    """A multipart body: the JSON settings of part `data`, and the files."""

    settings: Any
    files: tuple[FormFile, ...]


async def multipart(request: Request) -> Form:
    """Read a multipart body; `data` may be a plain field or a typed text part.

    Raises:
        BadRequest: not multipart, or `data` is not JSON.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise BadRequest("send multipart/form-data with parts 'data' (JSON) and 'file'")
    async with request.form() as form:
        files = []
        for part in form.getlist("file"):
            if isinstance(part, UploadFile):
                files.append(FormFile(part.filename or "", await part.read(), part.content_type))
            else:  # a part without a file name arrives as text
                files.append(FormFile("", part.encode(), None))
        raw = form.get("data")
        text = (await raw.read()).decode("utf-8") if isinstance(raw, UploadFile) else raw
    try:
        settings = json.loads(text) if text else {}
    except ValueError as exc:
        raise InvalidParam(f"part 'data' is not valid JSON: {exc}") from exc
    return Form(settings, tuple(files))


MultipartForm = Annotated[Form, Depends(multipart)]
