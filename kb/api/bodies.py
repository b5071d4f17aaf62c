"""Bodies of requests: JSON and multipart, read within their limits and validated."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from kb.api.deps import CallerDep, ResourcesDep, caller_of, check_path
from kb.api.text import short, storable
from kb.documents import Upload, check_upload
from kb.errors import (
    BadRequest,
    BodyTooLarge,
    FilenameMissing,
    FileTooLarge,
    InvalidParam,
    KBError,
    NoFileUploaded,
    TooManyFiles,
    Unprocessable,
)
from kb.settings import Limits

Body = TypeVar("Body", bound=BaseModel)

# As escapes; as the UTF-8 of a surrogate, which Python's parser lets pass; or anywhere in UTF-16
# and UTF-32, which are full of zero bytes.
_MAY_HOLD_SUCH = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]|\x00")
_LARGE = 100_000  # bytes of JSON beyond which parsing leaves the event loop
_SMALL = 100_000  # bytes of a body that is read sooner than its dataset is looked up


async def json_body(
    request: Request,
    resources: ResourcesDep,
    _caller: CallerDep,
    _: Annotated[None, Depends(check_path)],
) -> Any:
    """The parsed body, every text in it `storable`; None when there is none.

    Raises:
        BadRequest: it is not JSON.
        BodyTooLarge: it is beyond the limit; told by its Content-Length, it is not even read.
    """
    return await _read_json(request, resources.settings.limits.body_bytes)


async def query_body(request: Request, resources: ResourcesDep) -> Any:
    """As `json_body`, for routes that look at their path before they look into the body.

    A small body is read first: a query that looks its dataset up twice takes a tenth longer.
    """
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal() or int(announced) > _SMALL:
        await check_path(request, resources)
    elif "dataset_id" in request.path_params:
        await caller_of(request, resources)
    try:
        return await _read_json(request, resources.settings.limits.body_bytes)
    except KBError:
        await check_path(request, resources)  # what is wrong there is said first
        raise


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
QueryBody = Annotated[Any, Depends(query_body)]
LenientJsonBody = Annotated[Any, Depends(lenient_json_body)]


async def _read_json(request: Request, max_bytes: int) -> Any:
    parts = [part async for part in stream_body(request, max_bytes, _too_large(max_bytes))]
    raw = b"".join(parts)
    if not raw.strip():
        return None
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise BadRequest("the body is multipart/form-data; this route reads a JSON object")
    if len(raw) < _LARGE:
        return parse_json(raw, "the body", BadRequest)
    return await run_in_threadpool(parse_json, raw, "the body", BadRequest)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than the limit of {max_bytes:,} bytes; send less, or raise "
        "KB_LIMITS__BODY_BYTES"
    )


async def stream_body(
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
    stream = stream_body(request, max_bytes + _AROUND_THE_FILE, too_large)
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


def one_file(form: Form, limits: Limits) -> Upload:
    """The only file of a multipart body, checked.

    Raises:
        NoFileUploaded, TooManyFiles, FilenameMissing: there is not one file with a name.
        InvalidParam: its name holds a path.
        UnsupportedFileType, FileTooLarge: it cannot be read here.
    """
    if not form.files:
        raise NoFileUploaded("the upload has no file; send one part named 'file'")
    if len(form.files) > 1:
        raise TooManyFiles(f"the upload has {len(form.files)} files; send one file per call")
    file = form.files[0]
    if not file.name:
        raise FilenameMissing("the part 'file' has no file name; send it with filename=\"...\"")
    return check_upload(
        Upload(file.name, file.data, file.media_type),
        max_bytes=limits.file_bytes,
        max_name_chars=limits.document_name_chars,
    )


async def update_form(
    request: Request,
    resources: ResourcesDep,
    caller: CallerDep,
    checked: Annotated[None, Depends(check_path)],
) -> Form:
    """As `multipart`; settings alone may also come as a plain form's `data`, or as a JSON body."""
    content_type = request.headers.get("content-type", "").lower()
    if content_type.startswith("multipart/form-data"):
        return await multipart(request, resources, caller, checked)
    max_bytes = resources.settings.limits.body_bytes
    if not content_type.startswith("application/x-www-form-urlencoded"):
        body = await _read_json(request, max_bytes)
        return Form({} if body is None else body, ())
    sent = b"".join([part async for part in stream_body(request, max_bytes, _too_large(max_bytes))])
    fields = parse_qs(sent.decode("utf-8", "replace"), keep_blank_values=True)
    raw = fields.get("data", [""])[0]
    settings = parse_json(raw, "field 'data'", InvalidParam) if raw.strip() else None
    return Form({} if settings is None else settings, ())


UpdateForm = Annotated[Form, Depends(update_form)]
