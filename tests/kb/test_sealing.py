"""Sealed columns: signing keys of webhooks from an older version, rotation, moves, the way back."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from kb.db import open_database, reading, transaction
from kb.doctor import Kind, examine
from kb.errors import InvalidParam, SecretUnreadable
from kb.migrate import migrate
from kb.migrations import downgrade, upgrade
from kb.models import Webhook
from kb.resources import Resources
from kb.sealing import open_all, seal_all
from kb.secrets import is_sealed, open_keyring
from kb.settings import Settings
from kb.wiring import open_resources
from tests.kb.ingesting import Lab, open_lab
from tests.kb.server import test_settings
from tests.kb.test_webhooks import EAGER, deliveries, one_message
from tests.receiver import Receiver, receiving

CLEAR = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def key(fill: int) -> str:
    return base64.b64encode(bytes([fill]) * 32).decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


def stored(resources: Resources) -> str:
    with reading(resources.sessions) as session:
        return session.scalars(select(Webhook.secret)).one()


def with_hook(settings: Settings, secret: str | None = None) -> None:
    """An installation with one webhook, whose secret is stored in clear when it is given."""
    with open_resources(settings) as resources:
        keyring = resources.keyring
        with transaction(resources.sessions) as session:
            session.add(
                Webhook(
                    workspace_id=resources.workspace_id,
                    url="https://example.org",
                    events=[],
                    secret=secret or keyring.seal(CLEAR),
                )
            )


def test_a_webhooks_secret_is_sealed_in_the_database(database: str, tmp_path: Path) -> None:
    with open_lab(tmp_path / "data", webhooks=EAGER) as lab:
        body = {"url": "https://example.org/hook", "secret": CLEAR}
        made = lab.client.post("/v1/webhooks", json=body).json()
        assert made["secret"] == CLEAR
        assert made["secret_hint"] == f"{CLEAR[:10]}…"
        assert is_sealed(stored(lab.resources))
        assert CLEAR[6:] not in stored(lab.resources)
        assert lab.resources.keyring.open(stored(lab.resources)) == CLEAR


def test_a_secret_of_an_older_version_is_sealed_by_the_next_start_and_still_signs(
    tmp_path: Path, receiver: Receiver
) -> None:
    def sign(lab: Lab) -> str:
        lab.settle()
        return str(receiver.messages[-1].headers["webhook-signature"])

    with open_lab(tmp_path / "data", webhooks=EAGER) as lab:
        one_message(lab, receiver, secret=CLEAR)
        with transaction(lab.resources.sessions) as session:
            session.execute(update(Webhook).values(secret=CLEAR))
        assert sign(lab)
        one_message(lab, receiver, secret=CLEAR)
    with open_lab(tmp_path / "data", webhooks=EAGER) as lab:
        with reading(lab.resources.sessions) as session:
            secrets = session.scalars(select(Webhook.secret)).all()
        assert all(map(is_sealed, secrets))
        assert {lab.resources.keyring.open(secret) for secret in secrets} == {CLEAR}
        before = len(receiver.messages)
        assert sign(lab)
        assert len(receiver.messages) == before + 1


def test_after_a_restart_with_a_new_first_key_the_old_one_is_not_needed(tmp_path: Path) -> None:
    def settings(*fills: int) -> Settings:
        keys = SecretStr(",".join(map(key, fills)))
        return test_settings(tmp_path / "data", secret_key=keys)

    with_hook(settings(1))
    with open_resources(settings(2, 1)) as resources:
        assert resources.keyring.is_current(stored(resources))
    with open_resources(settings(2)) as resources:
        assert resources.keyring.open(stored(resources)) == CLEAR
        before = stored(resources)
    with open_resources(settings(2)) as resources:
        assert stored(resources) == before, "what is sealed well is not written again"


def test_with_a_wrong_key_all_else_works_and_what_cannot_is_said(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, Any] = {"secret_key": SecretStr(key(1))}
    with open_lab(tmp_path / "data", webhooks=EAGER, changes=changes) as lab:
        made = one_message(lab, receiver)
    changes = {"secret_key": SecretStr(key(2))}
    with (
        caplog.at_level(logging.ERROR, "kb.secrets"),
        open_lab(tmp_path / "data", webhooks=EAGER, changes=changes) as lab,
    ):
        assert "none of the keys of KB_SECRET_KEY" in caplog.text
        assert lab.client.get("/v1/webhooks").json()["data"][0]["secret_hint"] is None
        (found,) = examine(lab.resources, repair=True).first(Kind.UNREADABLE_SECRETS)
        assert found.startswith(f"webhooks.secret of {made['id']} (a stored secret cannot be read")
        lab.settle()
        assert receiver.messages == []
        (delivery,) = deliveries(lab.client, made["id"])
        assert "none of the keys of KB_SECRET_KEY" in delivery["last_error"]


def test_the_way_back_refuses_sealed_secrets_and_keeps_opened_ones(
    database: str, tmp_path: Path
) -> None:
    settings = test_settings(tmp_path / "data")
    with_hook(settings)
    sessions = open_database(settings.sqlalchemy_url)
    keyring = open_keyring(None, settings.data_dir, several=False)
    strange = open_keyring(key(9), settings.data_dir, several=False)
    try:
        with pytest.raises(RuntimeError, match="1 signing keys of webhooks are sealed"):
            downgrade(sessions.engine, "0006")
        with pytest.raises(SecretUnreadable):
            open_all(sessions, strange)
        assert open_all(sessions, keyring) == 1
        downgrade(sessions.engine, "0006")
        upgrade(sessions.engine)
        with reading(sessions) as session:
            assert session.scalars(select(Webhook.secret)).one() == CLEAR
        assert seal_all(sessions, keyring) == 1
        assert seal_all(sessions, keyring) == 0
    finally:
        sessions.close()


def quiet(_step: str, _done: int, _total: int) -> None:
    """No progress is shown."""


def test_a_move_seals_secrets_anew_with_the_targets_key(tmp_path: Path) -> None:
    old = test_settings(tmp_path / "old", database_url=None)
    new = test_settings(tmp_path / "new", database_url=None, secret_key=SecretStr(key(5)))
    with_hook(old)
    verdict = migrate(old, new, quiet)
    assert verdict.differences == []
    assert verdict.rows["webhooks"] == 1
    with open_resources(new) as resources:
        assert resources.keyring.source == "KB_SECRET_KEY"
        assert resources.keyring.open(stored(resources)) == CLEAR


def test_a_move_that_could_lose_secrets_is_refused(tmp_path: Path) -> None:
    old = test_settings(tmp_path / "old", database_url=None)
    with_hook(old)
    lost = old.model_copy(update={"secret_key": SecretStr(key(9))})
    new = test_settings(tmp_path / "new", database_url=None)
    with pytest.raises(InvalidParam, match=r"the source: .*none of the keys of KB_SECRET_KEY"):
        migrate(lost, new, quiet)
    service = new.model_copy(update={"redis_url": SecretStr("redis://nowhere")})
    with pytest.raises(InvalidParam, match=r"the source holds 1 secrets.*set KB_SECRET_KEY"):
        migrate(old, service, quiet)
