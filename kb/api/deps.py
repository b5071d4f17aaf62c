"""What routes ask for: who calls, the rows that the caller may reach, page, JSON body, upload."""

from __future__ import annotations

import hmac
import json
import re
import reprlib
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from kb.datasets import get_dataset
from kb.db import reading, transaction
from kb.documents import get_document
from kb.errors import (
    BadRequest,
    BodyTooLarge,
    FileTooLarge,
    Forbidden,
    InvalidParam,
    KBError,
    NoFileUploaded,
    NotFound,
    Unauthorized,
    Unprocessable,
)
from kb.models import ApiKey, Dataset, Document
from kb.query_log import QueryLog
from kb.resources import Resources

Body = TypeVar("Body", bound=BaseModel)

# Dependencies that do nothing slow are coroutines: a plain function costs a thread switch.


def get_resources(request: Request) -> Resources:
    """The process's adapters."""
    resources: Resources = request.app.state.resources
    return resources


async def _resources(request: Request) -> Resources:
    return get_resources(request)


ResourcesDep = Annotated[Resources, Depends(_resources)]


# --- who calls ---------------------------------------------------------------------------------


def get_query_log(request: Request) -> QueryLog:
    """The history of what was asked."""
    history: QueryLog = request.app.state.query_log
    return history


QueryLogDep = Annotated[QueryLog, Depends(get_query_log)]


@dataclass(frozen=True)
class Caller:
    """Whose key this is; `dataset_id` when the key opens only one dataset."""

    workspace_id: uuid.UUID
    dataset_id: uuid.UUID | None = None

    def needs_whole_workspace(self, what: str) -> None:
        """Refuse a key of one dataset.

        Raises:
            Forbidden: it is one.
        """
        if self.dataset_id is not None:
            raise Forbidden(
                f"this API key opens dataset {str(self.dataset_id)!r} only; {what} needs a key of "
                "the workspace"
            )


def bearer_token(header: str | None) -> str:
    """The key in an Authorization header.

    Raises:
        Unauthorized: no header, or not `Bearer <key>`.
    """
    match = re.fullmatch(r"\s*(\S+)\s+(\S.*?)\s*", header or "", re.DOTALL)
    if match is None or match[1].lower() != "bearer":
        raise Unauthorized("send the API key in the header 'Authorization: Bearer <key>'")
    return match[2]


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


_in_manual = HTTPBearer(auto_error=False, description="The key that `kb serve` printed.")


def get_caller(
    request: Request,
    resources: ResourcesDep,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_in_manual)] = None,
) -> Caller:
    """The caller; every route but health and documentation asks for it.

    Raises:
        Unauthorized: no key, or one that is not known.
    """
    return caller_of(request, resources)


def caller_of(request: Request, resources: Resources) -> Caller:
    """The caller; looked up once per request."""
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    token = bearer_token(request.headers.get("authorization"))
    caller = find_caller(token, resources, request.app.state.process_key)
    if caller is None:
        raise Unauthorized(
            "the API key is not known here; use the one that `kb serve` printed at its first "
            "start, or the value of KB_API_KEY in the server's environment"
        )
    request.state.caller = caller
    return caller


CallerDep = Annotated[Caller, Depends(get_caller)]


# --- the rows that the caller may reach ----------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """The caller, and the rows that a call may read and change.

    A route opens its transaction itself, in one `with`. Were that a dependency's work, a call would
    hold the database's write lock while it waits for its next turn on the thread pool; forty calls
    that wait for the lock are enough to leave it none, and all of them fail after 30 s.
    """

    caller: Caller
    resources: Resources

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session over one snapshot."""
        with reading(self.resources.sessions) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that commits at the end; nothing slow may happen inside."""
        with transaction(self.resources.sessions) as session:
            yield session

    def dataset(self, session: Session, dataset_id: str, *, lock: bool = False) -> Dataset:
        """The dataset of a path.

        Args:
            lock: let no other writer near the dataset until the transaction ends.
        Raises:
            NotFound: it is not there, or not for this key.
            Forbidden: API access to it is switched off.
        """
        return find_dataset(session, self.caller, dataset_id, lock=lock)

    def document(self, session: Session, dataset: Dataset, document_id: str) -> Document:
        """The document of a path.

        Raises:
            NotFound: it is not in this dataset.
        """
        return get_document(session, dataset.id, path_id("document", document_id))


async def get_access(caller: CallerDep, resources: ResourcesDep) -> Access:
    """What the caller may reach."""
    return Access(caller, resources)


AccessDep = Annotated[Access, Depends(get_access)]


def find_dataset(
    session: Session, caller: Caller, dataset_id: str, *, lock: bool = False
) -> Dataset:
    """The dataset of a path, as far as the caller may see it."""
    key = path_id("dataset", dataset_id)
    if caller.dataset_id is not None and caller.dataset_id != key:
        raise NotFound("dataset", dataset_id)
    dataset = get_dataset(session, caller.workspace_id, key, lock=lock)
    if not dataset.enable_api:
        raise Forbidden(f"API access to dataset {dataset.name!r} is switched off")
    return dataset


_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def path_id(noun: str, text: str) -> uuid.UUID:
    """A UUID of a path; anything else is simply not there."""
    if not _UUID.fullmatch(text):
        raise NotFound(noun, text[:100])
    return uuid.UUID(text)


def check_path(request: Request, resources: ResourcesDep) -> None:
    """Refuse a call before its body is read: a wrong key, an unknown dataset.

    The route looks again in its own transaction; this one is over before the body arrives.
    """
    dataset_id = request.path_params.get("dataset_id")
    if dataset_id is not None:
        caller = caller_of(request, resources)
        with reading(resources.sessions) as session:
            find_dataset(session, caller, dataset_id)


# --- query string --------------------------------------------------------------------------------

_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Page:
    """Which rows of a listing; `asked` is the limit as sent, `limit` the one in force."""

    page: int
    limit: int
    asked: int


async def get_page(request: Request, resources: ResourcesDep) -> Page:
    """`page` and `limit` of the query string."""
    page = query_int(request, "page", 1)
    asked = query_int(request, "limit", 20)
    return Page(page, min(asked, resources.settings.limits.page_rows), asked)


PageDep = Annotated[Page, Depends(get_page)]


def query_int(request: Request, name: str, default: int) -> int:
    """A positive integer of the query string; the default when it is absent or empty.

    Raises:
        InvalidParam: it is something else.
    """
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    if len(text) > 20 or not _INTEGER.fullmatch(text) or not 1 <= int(text) <= _LARGEST:
        raise InvalidParam(
            f"{name} is {short(text)}; it must be an integer from 1 to {_LARGEST}, such as "
            f"{name}={default}"
        )
    return int(text)


def query_text(request: Request, name: str) -> str | None:
    """A text of the query string, or None."""
    value = request.query_params.get(name)
    return None if value is None else storable(value)


def query_flag(request: Request, name: str) -> bool:
    """Whether a switch of the query string is on: `1`, `true` or `yes`."""
    return request.query_params.get(name, "").lower() in ("1", "true", "yes")


# --- JSON bodies ---------------------------------------------------------------------------------

_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
# As escapes; as the UTF-8 of a surrogate, which Python's parser lets pass; or anywhere in UTF-16
# and UTF-32, which are full of zero bytes.
_MAY_HOLD_SUCH = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]|\x00")
_LARGE = 100_000  # bytes of JSON beyond which parsing leaves the event loop


def storable(text: str) -> str:
    """The text with U+FFFD for NUL and for lone surrogates.

    PostgreSQL stores no NUL, and UTF-8 has no lone surrogates.
    """
    return _NOT_STORABLE.sub("\ufffd", text)


async def json_body(
    request: Request, resources: ResourcesDep, _: Annotated[None, Depends(check_path)]
) -> Any:
    """The parsed body, every text in it `storable`; None when there is none.

    Raises:
        BadRequest: it is not JSON.
        BodyTooLarge: it is beyond the limit; told by its Content-Length, it is not even read.
    """
    return await _read_json(request, resources.settings.limits.body_bytes)


async def lenient_json_body(
    request: Request,
    resources: ResourcesDep,
    _caller: CallerDep,
    _: Annotated[None, Depends(check_path)],
) -> Any:
    """The parsed body; an empty object when it is missing.

    Raises:
        Unprocessable: it is not JSON.
        BodyTooLarge: it is beyond the limit.
    """
    try:
        body = await _read_json(request, resources.settings.limits.body_bytes)
    except BadRequest as exc:
        error = {"type": "json_invalid", "loc": [], "msg": exc.message}
        raise Unprocessable(json.dumps([error])) from exc
    return {} if body is None else body


JsonBody = Annotated[Any, Depends(json_body)]
LenientJsonBody = Annotated[Any, Depends(lenient_json_body)]


async def _read_json(request: Request, max_bytes: int) -> Any:
    too_large = BodyTooLarge(
        f"the body is larger than the limit of {max_bytes:,} bytes; send less, or raise "
        "KB_LIMITS__BODY_BYTES"
    )
    parts = [part async for part in _stream(request, max_bytes, too_large)]
    raw = b"".join(parts)
    if not raw.strip():
        return None
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise BadRequest("the body is multipart/form-data; this route reads a JSON object")
    if len(raw) < _LARGE:
        return parse_json(raw, "the body", BadRequest)
    return await run_in_threadpool(parse_json, raw, "the body", BadRequest)


async def _stream(
    request: Request, max_bytes: int, too_large: KBError
) -> AsyncGenerator[bytes, None]:
    """The body as it arrives; raises `too_large` as soon as it is known to be."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > max_bytes:
            raise too_large
        yield part


def parse_json(raw: bytes | str, what: str, error: type[InvalidParam]) -> Any:
    """A JSON value as RFC 8259 has it: no NaN, no Infinity; every text in it is `storable`.

    Raises:
        InvalidParam: as `error`; it is not.
    """
    try:
        value = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
        data = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
        return _storable_throughout(value) if _MAY_HOLD_SUCH.search(data) else value
    except ValueError as exc:
        raise error(f"{what} is not valid JSON: {exc}") from exc
    except RecursionError as exc:
        raise error(f"{what} is JSON that is nested too deeply; send it flat") from exc


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{short(text)} is beyond the range of a number")
    return value


def _storable_throughout(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable_throughout(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): _storable_throughout(item) for key, item in value.items()}
    return value


def parse(model: type[Body], value: Any, *, what: str = "the body") -> Body:
    """Validate a body.

    Raises:
        BadRequest: there is none.
        InvalidParam: the message names each field, what it was, and what is allowed.
    """
    if value is None:
        raise BadRequest(f"{what} is empty; send a JSON object{_required(model)}")
    if not isinstance(value, dict):
        raise InvalidParam(f"{what} is {short(value)}; send a JSON object{_required(model)}")
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise InvalidParam("\n".join(explain(exc))) from exc


def parse_or_422(model: type[Body], value: Any) -> Body:
    """As `parse`, with the error shape of the routes that create and change datasets.

    Raises:
        Unprocessable: its message is a JSON list of the validator's errors.
    """
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        errors = [
            {"type": e["type"], "loc": e["loc"], "msg": said, "input": short(e["input"])}
            for e, said in zip(exc.errors(include_url=False), explain(exc), strict=True)
        ]
        raise Unprocessable(json.dumps(errors)) from exc


def explain(exc: ValidationError) -> list[str]:
    """One sentence per error: which field, what is wrong with it, what was sent."""
    sentences = []
    for error in exc.errors(include_url=False):
        field = ".".join(str(part) for part in error["loc"]) or "the body"
        if error["type"] == "missing":
            sentences.append(f"{field} is required")
        else:
            said = error["msg"].removeprefix("Value error, ")
            sentences.append(f"{field}: {said} (got {short(error['input'])})")
    return sentences


def _required(model: type[BaseModel]) -> str:
    names = [name for name, info in model.model_fields.items() if info.is_required()]
    return f" with {', '.join(names)}" if names else ""


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 3, 100, 100


def short(value: object) -> str:
    """A value as messages quote it, whatever its size."""
    text = _brief.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


# --- uploads -------------------------------------------------------------------------------------

_AROUND_THE_FILE = 2 * 1024 * 1024
"""Bytes that a multipart body may have beyond its file: the settings (at most 1 MiB each part) and
the lines between the parts."""


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


async def multipart(
    request: Request,
    resources: ResourcesDep,
    _caller: CallerDep,
    _: Annotated[None, Depends(check_path)],
) -> Form:
    """Read a multipart body; `data` may be a plain field or a typed text part.

    Raises:
        NoFileUploaded: the body is not multipart.
        FileTooLarge: by its Content-Length, before it is read; or as soon as it has grown so far.
        BadRequest: it is damaged.
        InvalidParam: `data` is not JSON.
    """
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise NoFileUploaded(
            f"the body is {content_type.partition(';')[0] or 'of no type'}; send "
            "multipart/form-data with the parts 'file' and 'data' (settings as JSON)"
        )
    max_bytes = resources.settings.limits.file_bytes
    too_large = FileTooLarge(
        f"the upload is larger than the limit of {max_bytes:,} bytes per file; split the file, or "
        "raise KB_LIMITS__FILE_BYTES"
    )
    stream = _stream(request, max_bytes + _AROUND_THE_FILE, too_large)
    try:
        form = await MultiPartParser(request.headers, stream).parse()
    except MultiPartException as exc:
        raise BadRequest(f"the multipart body cannot be read: {exc.message}") from exc
    except UnicodeError as exc:
        raise BadRequest(
            f"the multipart body cannot be read: {exc}; send it in charset utf-8"
        ) from exc
    try:
        files = tuple([await _file(part) for part in form.getlist("file")])
        return Form(await _settings(form), files)
    finally:
        await form.close()


async def _file(part: UploadFile | str) -> FormFile:
    if isinstance(part, str):  # a part without a file name arrives as text
        return FormFile("", b"", None)
    media_type = storable(part.content_type)[:255] if part.content_type else None
    return FormFile(storable(part.filename or ""), await part.read(), media_type)


async def _settings(form: FormData) -> Any:
    part = form.get("data")
    raw = await part.read() if isinstance(part, UploadFile) else (part or "").lstrip("\ufeff")
    if not raw.strip():
        return {}
    settings = await run_in_threadpool(parse_json, raw, "part 'data'", InvalidParam)
    return {} if settings is None else settings


MultipartForm = Annotated[Form, Depends(multipart)]
