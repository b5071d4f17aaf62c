"""Webhooks: who is told what about documents, signed, and again until it is received.

Wire format: Standard Webhooks, https://www.standardwebhooks.com (specification of 2023): headers
`webhook-id`, `webhook-timestamp`, `webhook-signature`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import random
import secrets
import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from kb import addresses
from kb.db import Sessions, after_commit, now, reading, transaction
from kb.errors import InvalidParam, NotFound, SecretUnreadable
from kb.jobs import ComeAgain, enqueue
from kb.logs import log_ids
from kb.metrics import WEBHOOKS
from kb.models import (
    Dataset,
    DeliveryStatus,
    Document,
    JobKind,
    Webhook,
    WebhookDelivery,
    WebhookEvent,
)
from kb.ports import JobQueue, NotDelivered, Receipt
from kb.resources import Resources
from kb.settings import Webhooks

log = logging.getLogger("kb.webhooks")

EVENTS = (WebhookEvent.COMPLETED, WebhookEvent.FAILED)
"""What a webhook may ask for."""
_PREFIX = "whsec_"
_SECRET_BYTES = 32
_ERROR_CHARS = 500
ALLOW_PRIVATE = "KB_WEBHOOKS__ALLOW_PRIVATE"


# --- what a workspace keeps ----------------------------------------------------------------------


def add_webhook(
    session: Session,
    workspace_id: uuid.UUID,
    url: str,
    events: Sequence[WebhookEvent],
    *,
    dataset_id: uuid.UUID | None = None,
    secret: str,
    most: int,
) -> Webhook:
    """Make a webhook whose messages are signed with `secret`, which is sealed.

    Raises:
        InvalidParam: the workspace has `most` of them.
        NotFound: the dataset is not in the workspace.
    """
    if dataset_id is not None and session.scalar(_in_workspace(dataset_id, workspace_id)) is None:
        raise NotFound("dataset", dataset_id)
    known = session.scalar(
        select(func.count()).select_from(Webhook).where(Webhook.workspace_id == workspace_id)
    )
    if (known or 0) >= most:
        raise InvalidParam(
            f"the workspace has {known} webhooks, which is the limit; delete one, or raise "
            "KB_WEBHOOKS__MOST"
        )
    made = Webhook(
        workspace_id=workspace_id,
        dataset_id=dataset_id,
        url=url,
        events=[event.value for event in events],
        secret=secret,
    )
    session.add(made)
    session.flush()
    return made


def get_webhook(session: Session, workspace_id: uuid.UUID, webhook_id: uuid.UUID) -> Webhook:
    """Raises: NotFound: it is not in this workspace."""
    found = session.get(Webhook, webhook_id)
    if found is None or found.workspace_id != workspace_id:
        raise NotFound("webhook", webhook_id)
    return found


def list_webhooks(session: Session, workspace_id: uuid.UUID) -> Sequence[Webhook]:
    """Oldest first; a workspace has few."""
    return session.scalars(
        select(Webhook)
        .where(Webhook.workspace_id == workspace_id)
        .order_by(Webhook.created_at, Webhook.id)
    ).all()


def enable_webhook(webhook: Webhook, *, enabled: bool) -> None:
    """Switch it on, as if it had never failed, or off."""
    if not enabled:
        webhook.disabled_at, webhook.disabled_reason = now(), "switched off by a person"
        return
    webhook.disabled_at = webhook.disabled_reason = None
    webhook.failing_since = webhook.retry_at = None
    webhook.failures = 0


def list_deliveries(
    session: Session, webhook: Webhook, *, page: int, limit: int, status: str | None = None
) -> tuple[Sequence[WebhookDelivery], int]:
    """A page of a webhook's messages, newest first, and how many there are."""
    where = [WebhookDelivery.webhook_id == webhook.id]
    if status in set(DeliveryStatus):
        where.append(WebhookDelivery.status == DeliveryStatus(status))
    total = session.scalar(select(func.count()).select_from(WebhookDelivery).where(*where)) or 0
    rows = session.scalars(
        select(WebhookDelivery)
        .where(*where)
        .order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id)
        .offset((page - 1) * limit)
        .limit(limit)
    ).all()
    return rows, total


def checked_url(url: str, *, allow_private: bool) -> str:
    """The URL, if messages could be sent to it.

    Raises:
        InvalidParam: the message says what is wrong with it.
    """
    return addresses.checked_url(
        url, what="url", allow_private=allow_private, setting=ALLOW_PRIVATE
    )


def new_secret() -> str:
    """32 random bytes as the specification writes them."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def checked_secret(text: str) -> str:
    """Raises: InvalidParam: not `whsec_` and the base64 of 24 to 64 bytes."""
    try:
        size = len(_key(text))
    except (binascii.Error, ValueError):
        size = 0
    if not text.startswith(_PREFIX) or not 24 <= size <= 64:
        raise InvalidParam(
            "secret must be 'whsec_' and the base64 of 24 to 64 bytes; leave it out to get one"
        )
    return text


def _key(secret: str) -> bytes:
    """Its padding may be missing, as in the libraries of the specification."""
    encoded = secret.removeprefix(_PREFIX)
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)


def _in_workspace(dataset_id: uuid.UUID, workspace_id: uuid.UUID) -> Any:
    return select(Dataset.id).where(Dataset.id == dataset_id, Dataset.workspace_id == workspace_id)


# --- what happened -------------------------------------------------------------------------------


def announce(
    session: Session,
    event: WebhookEvent,
    dataset_id: uuid.UUID,
    document_id: uuid.UUID,
    jobs: JobQueue,
) -> int:
    """Write a message down for each webhook that asked for the event; how many there are.

    They exist exactly when the transaction commits, which is the one that records the event: none
    is lost, and none speaks of something that did not happen.
    """
    asked = session.scalars(
        select(Webhook)
        .join(Dataset, Dataset.workspace_id == Webhook.workspace_id)
        .where(Dataset.id == dataset_id, Webhook.disabled_at.is_(None))
        .where(or_(Webhook.dataset_id.is_(None), Webhook.dataset_id == dataset_id))
        .order_by(Webhook.id)
    ).all()
    told = [webhook for webhook in asked if event.value in webhook.events]
    if told:
        document = session.get_one(Document, document_id, populate_existing=True)
        data = _document(document)
        for webhook in told:
            write_down(session, webhook, event, data)
        after_commit(session, jobs.run_jobs)
    return len(told)


def write_down(
    session: Session, webhook: Webhook, event: WebhookEvent, data: dict[str, Any]
) -> WebhookDelivery:
    """A message and the job that delivers it, in the session's transaction."""
    at = now()
    delivery = WebhookDelivery(
        id=uuid.uuid4(),
        webhook_id=webhook.id,
        event=event,
        body=json.dumps(
            {"type": event.value, "timestamp": _moment(at), "data": data}, ensure_ascii=False
        ),
        created_at=at,
    )
    session.add(delivery)
    session.flush()
    enqueue(session, JobKind.DELIVER_WEBHOOK, delivery_id=str(delivery.id))
    return delivery


def _document(row: Document) -> dict[str, Any]:
    return {
        "document_id": str(row.id),
        "dataset_id": str(row.dataset_id),
        "name": row.name,
        "batch": row.batch,
        "version": row.pending_version or row.version,
        "indexing_status": row.indexing_status.value,
        "word_count": row.word_count,
        "tokens": row.tokens,
        "error_code": row.error_code,
        "error": row.error,
        "error_stage": row.error_stage,
    }


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- delivery ------------------------------------------------------------------------------------


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: version and HMAC-SHA256 of `ID.TIMESTAMP.BODY`.

    Args:
        timestamp: Unix seconds.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, sha256)).decode()


def deliver(resources: Resources, payload: dict[str, Any]) -> None:
    """Try once to deliver a message, and write down what came of it.

    A receiver in trouble (no answer, 429, 5xx) is left alone for a while: its other messages wait
    with this one, so that it costs one attempt a while and not one a message.

    Raises:
        ComeAgain: it was not received, or must wait; the job is to be repeated then.
    """
    delivery_id = uuid.UUID(payload["delivery_id"])
    with reading(resources.sessions) as session:
        delivery = session.get(WebhookDelivery, delivery_id)
        webhook = session.get(Webhook, delivery.webhook_id) if delivery else None
    if delivery is None or webhook is None or delivery.status is not DeliveryStatus.PENDING:
        return
    with log_ids(webhook=webhook.id, delivery=delivery.id):
        _deliver(resources, webhook, delivery)


def _deliver(resources: Resources, webhook: Webhook, delivery: WebhookDelivery) -> None:
    if webhook.disabled_at is not None:
        _record(
            resources.sessions,
            delivery,
            status=DeliveryStatus.FAILED,
            next_attempt_at=None,
            last_error=f"the webhook is disabled: {webhook.disabled_reason}",
        )
        WEBHOOKS.labels("given_up").inc()
        return
    if webhook.retry_at is not None and webhook.retry_at > now():
        raise ComeAgain(webhook.retry_at, "the receiver is left alone for a while")
    receipt: Receipt | None = None
    try:
        receipt = _post(resources, webhook, delivery)
        failure = None if 200 <= receipt.status < 300 else f"answered {receipt.status}"
    except (NotDelivered, SecretUnreadable) as exc:
        failure = str(exc)
    if failure is None:
        _succeeded(resources.sessions, webhook, delivery, receipt)
    else:
        shown = "".join(c if c.isprintable() else "?" for c in failure[:_ERROR_CHARS])
        _failed(resources, webhook, delivery, receipt, shown)


def _post(resources: Resources, webhook: Webhook, delivery: WebhookDelivery) -> Receipt:
    body, at = delivery.body.encode(), int(now().timestamp())
    message_id = f"msg_{delivery.id.hex}"
    secret = resources.keyring.open(webhook.secret)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "kb-webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": signature(secret, message_id, at, body),
    }
    return resources.webhooks.post(webhook.url, body, headers)


def _succeeded(
    sessions: Sessions, webhook: Webhook, delivery: WebhookDelivery, receipt: Receipt | None
) -> None:
    at = now()
    _record(
        sessions,
        delivery,
        status=DeliveryStatus.DELIVERED,
        attempts=delivery.attempts + 1,
        last_attempt_at=at,
        next_attempt_at=None,
        delivered_at=at,
        last_status=receipt.status if receipt else None,
        last_error=None,
    )
    if webhook.failing_since is not None:
        _change(sessions, webhook, failing_since=None, failures=0, retry_at=None)
    WEBHOOKS.labels("delivered").inc()
    log.debug("delivered %s", delivery.event)


def _failed(
    resources: Resources,
    webhook: Webhook,
    delivery: WebhookDelivery,
    receipt: Receipt | None,
    failure: str,
) -> None:
    settings, at = resources.settings.webhooks, now()
    attempts = delivery.attempts + 1
    in_trouble = receipt is None or receipt.status == 429 or receipt.status >= 500
    failures = webhook.failures + 1 if in_trouble else webhook.failures
    retry_at = at + timedelta(
        seconds=_wait_s(settings, failures if in_trouble else attempts, receipt)
    )
    since = webhook.failing_since or at
    changes: dict[str, Any] = {"failing_since": since, "failures": failures}
    if in_trouble:
        changes["retry_at"] = retry_at
    gone = receipt is not None and receipt.status == 410
    if gone or at - since >= timedelta(days=settings.disable_after_days):
        changes |= {
            "disabled_at": at,
            "disabled_reason": "the receiver answered 410 Gone"
            if gone
            else f"no message was received since {_moment(since)}; at last: {failure}",
        }
        log.warning("webhook disabled: %s", changes["disabled_reason"])
    _change(resources.sessions, webhook, **changes)
    given_up = "disabled_at" in changes or attempts >= settings.max_attempts
    _record(
        resources.sessions,
        delivery,
        status=DeliveryStatus.FAILED if given_up else DeliveryStatus.PENDING,
        attempts=attempts,
        last_attempt_at=at,
        next_attempt_at=None if given_up else retry_at,
        last_status=receipt.status if receipt else None,
        last_error=failure,
    )
    WEBHOOKS.labels("given_up" if given_up else "retried").inc()
    log.warning("attempt %d failed: %s", attempts, failure)
    if not given_up:
        raise ComeAgain(retry_at, failure)


def _wait_s(settings: Webhooks, failures: int, receipt: Receipt | None) -> float:
    """Doubling, with up to a tenth more by chance; longer when the receiver asks for it."""
    wait = settings.retry_base_s * 2.0 ** min(failures - 1, 40) * random.uniform(1.0, 1.1)
    asked = receipt.retry_after_s if receipt and receipt.retry_after_s else 0.0
    return min(settings.retry_max_s, max(wait, asked))


def _record(sessions: Sessions, delivery: WebhookDelivery, **values: Any) -> None:
    with transaction(sessions) as session:
        session.execute(
            update(WebhookDelivery).where(WebhookDelivery.id == delivery.id).values(**values)
        )


def _change(sessions: Sessions, webhook: Webhook, **values: Any) -> None:
    with transaction(sessions) as session:
        session.execute(update(Webhook).where(Webhook.id == webhook.id).values(**values))


def known_events(names: Collection[str]) -> tuple[WebhookEvent, ...]:
    """Events by name, each once, in our order.

    Raises:
        InvalidParam: there is no such event; the message names those that are.
    """
    known = [event.value for event in EVENTS]
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise InvalidParam(
            f"events: {', '.join(map(repr, unknown)) or 'none'}; choose from {', '.join(known)}"
        )
    return tuple(event for event in EVENTS if event.value in names)
