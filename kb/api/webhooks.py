"""Routes of webhooks: make, list, change, delete, try out; the record of what was sent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from kb import webhooks
from kb.api.bodies import JsonBody, parse
from kb.api.deps import AccessDep, PageDep, path_id, query_text
from kb.api.shapes import epoch, text
from kb.db import after_commit
from kb.errors import SecretUnreadable
from kb.models import Webhook, WebhookDelivery, WebhookEvent
from kb.schemas import WebhookCreate, WebhookUpdate
from kb.secrets import Keyring
from kb.webhooks import EVENTS

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

_HINT_CHARS = 10


@router.post("", status_code=201)
def create_webhook(body: JsonBody, access: AccessDep) -> dict[str, Any]:
    """Have messages sent to `url` about the `events` of the workspace, or of `dataset_id` alone.

    The answer holds the `secret` that messages are signed with; it is not shown again.
    """
    access.caller.needs_whole_workspace("making a webhook")
    asked = parse(WebhookCreate, body)
    settings = access.resources.settings.webhooks
    url = webhooks.checked_url(asked.url, allow_private=settings.allow_private)
    events = EVENTS if asked.events is None else webhooks.known_events(asked.events)
    secret = webhooks.new_secret()
    if asked.secret is not None:
        secret = webhooks.checked_secret(asked.secret)
    keyring = access.resources.keyring
    with access.writing() as session:
        row = webhooks.add_webhook(
            session,
            access.caller.workspace_id,
            url,
            events,
            dataset_id=asked.dataset_id,
            secret=keyring.seal(secret),
            most=settings.most,
        )
        return shape(row, keyring) | {"secret": secret}


@router.get("")
def list_webhooks(access: AccessDep) -> dict[str, Any]:
    """List the workspace's webhooks, oldest first."""
    access.caller.needs_whole_workspace("listing webhooks")
    with access.reading() as session:
        rows = webhooks.list_webhooks(session, access.caller.workspace_id)
        return {"data": [shape(row, access.resources.keyring) for row in rows]}


@router.get("/{webhook_id}")
def get_webhook(webhook_id: str, access: AccessDep) -> dict[str, Any]:
    """Show a webhook, and whether it fails."""
    with access.reading() as session:
        return shape(_row(session, webhook_id, access), access.resources.keyring)


@router.patch("/{webhook_id}")
def update_webhook(webhook_id: str, body: JsonBody, access: AccessDep) -> dict[str, Any]:
    """Change the keys that are sent: `url`, `events`, `enabled`; true also forgets failures."""
    asked = parse(WebhookUpdate, body)
    allow_private = access.resources.settings.webhooks.allow_private
    with access.writing() as session:
        row = _row(session, webhook_id, access)
        if asked.url is not None:
            row.url = webhooks.checked_url(asked.url, allow_private=allow_private)
        if asked.events is not None:
            row.events = [event.value for event in webhooks.known_events(asked.events)]
        if asked.enabled is not None:
            webhooks.enable_webhook(row, enabled=asked.enabled)
        return shape(row, access.resources.keyring)


@router.delete("/{webhook_id}", status_code=204)
def delete_webhook(webhook_id: str, access: AccessDep) -> Response:
    """Delete a webhook; messages that were not delivered are dropped."""
    with access.writing() as session:
        session.delete(_row(session, webhook_id, access))
    return Response(status_code=204)


@router.post("/{webhook_id}/test", status_code=202)
def send_test(webhook_id: str, access: AccessDep) -> dict[str, Any]:
    """Send a message of type `webhook.test`, on the way that all others go; look at its delivery
    for what came of it.
    """
    with access.writing() as session:
        row = _row(session, webhook_id, access)
        data = {"webhook_id": str(row.id)}
        delivery = webhooks.write_down(session, row, WebhookEvent.TEST, data)
        after_commit(session, access.resources.jobs.run_jobs)
        return delivery_shape(delivery)


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: str, request: Request, page: PageDep, access: AccessDep
) -> dict[str, Any]:
    """List the messages to a webhook, newest first; `status`: pending, delivered or failed."""
    with access.reading() as session:
        row = _row(session, webhook_id, access)
        rows, total = webhooks.list_deliveries(
            session,
            row,
            page=page.page,
            limit=page.limit,
            status=query_text(request, "status"),
        )
    return {
        "data": [delivery_shape(row) for row in rows],
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


def _row(session: Any, webhook_id: str, access: AccessDep) -> Webhook:
    access.caller.needs_whole_workspace("a webhook")
    key = path_id("webhook", webhook_id)
    return webhooks.get_webhook(session, access.caller.workspace_id, key)


def shape(row: Webhook, keyring: Keyring) -> dict[str, Any]:
    """As JSON, without its secret; the hint is null when this process cannot read that."""
    try:
        hint = f"{keyring.open(row.secret)[:_HINT_CHARS]}…"
    except SecretUnreadable:
        hint = None
    return {
        "id": str(row.id),
        "url": row.url,
        "events": row.events,
        "dataset_id": text(row.dataset_id),
        "secret_hint": hint,
        "created_at": epoch(row.created_at),
        "enabled": row.disabled_at is None,
        "disabled_at": epoch(row.disabled_at),
        "disabled_reason": row.disabled_reason,
        "failing_since": epoch(row.failing_since),
    }


def delivery_shape(row: WebhookDelivery) -> dict[str, Any]:
    """As JSON."""
    return {
        "id": f"msg_{row.id.hex}",
        "event": row.event,
        "status": row.status,
        "attempts": row.attempts,
        "created_at": epoch(row.created_at),
        "last_attempt_at": epoch(row.last_attempt_at),
        "next_attempt_at": epoch(row.next_attempt_at),
        "delivered_at": epoch(row.delivered_at),
        "last_status": row.last_status,
        "last_error": row.last_error,
        "body": row.body,
    }
