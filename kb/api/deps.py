"""What routes ask for: who calls, the rows that the caller may reach, the query string."""

from __future__ import annotations

import hmac
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from kb.api.text import short, storable
from kb.datasets import get_dataset
from kb.db import reading, transaction
from kb.documents import get_document
from kb.errors import Forbidden, InvalidParam, NotFound, Unauthorized
from kb.models import ApiKey, Dataset, Document
from kb.query_log import QueryLog
from kb.resources import Resources

# Dependencies that do nothing slow are coroutines: a plain function costs a thread switch.


def get_resources(request: Request) -> Resources:
    """The process's adapters."""
    resources: Resources = request.app.state.resources
    return resources


async def _resources(request: Request) -> Resources:
    return get_resources(request)


ResourcesDep = Annotated[Resources, Depends(_resources)]


# --- who calls ---------------------------------------------------------------------------------


async def get_query_log(request: Request) -> QueryLog:
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
    return _of_process(token, resources, process_key) or _of_table(token, resources)


def _of_process(token: str, resources: Resources, process_key: str | None) -> Caller | None:
    configured = resources.settings.api_key
    for known in (process_key, configured.get_secret_value() if configured else None):
        if known and hmac.compare_digest(known.encode(), token.encode()):
            return Caller(resources.workspace_id)
    return None


def _of_table(token: str, resources: Resources) -> Caller | None:
    digest = sha256(token.encode()).hexdigest()
    with reading(resources.sessions) as session:
        key = session.scalar(select(ApiKey).where(ApiKey.sha256 == digest))
    return Caller(key.workspace_id, key.dataset_id) if key else None


_in_manual = HTTPBearer(auto_error=False, description="The key that `kb serve` printed.")


async def get_caller(
    request: Request,
    resources: ResourcesDep,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_in_manual)] = None,
) -> Caller:
    """The caller; every route but health and documentation asks for it.

    Raises:
        Unauthorized: no key, or one that is not known.
    """
    return await caller_of(request, resources)


async def caller_of(request: Request, resources: Resources) -> Caller:
    """The caller; looked up once per request."""
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    token = bearer_token(request.headers.get("authorization"))
    caller = _of_process(token, resources, request.app.state.process_key)
    if caller is None:
        caller = await run_in_threadpool(_of_table, token, resources)
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

    def document(
        self, session: Session, dataset: Dataset, document_id: str, *, lock: bool = False
    ) -> Document:
        """The document of a path.

        Args:
            lock: let nobody else change it until the transaction ends; the dataset first.
        Raises:
            NotFound: it is not in this dataset.
        """
        return get_document(session, dataset.id, path_id("document", document_id), lock=lock)


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


def find_id(text: str) -> uuid.UUID | None:
    """The UUID that the text is, or None."""
    return uuid.UUID(text) if _UUID.fullmatch(text) else None


def path_id(noun: str, text: str) -> uuid.UUID:
    """A UUID of a path; anything else is simply not there."""
    found = find_id(text)
    if found is None:
        raise NotFound(noun, text[:100])
    return found


async def check_path(request: Request, resources: ResourcesDep) -> None:
    """Refuse a call before its body is read: a wrong key, an unknown dataset.

    The route looks again in its own transaction; this one is over before the body arrives.
    """
    dataset_id = request.path_params.get("dataset_id")
    if dataset_id is not None:
        caller = await caller_of(request, resources)
        await run_in_threadpool(_check_dataset, caller, dataset_id, resources)


def _check_dataset(caller: Caller, dataset_id: str, resources: Resources) -> None:
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
