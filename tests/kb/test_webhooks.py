"""Webhooks: each outcome is told, with one id, signed, and again until it is received."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import shutil
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update
from starlette.testclient import TestClient

from kb.adapters.webhook_http import HttpSender
from kb.addresses import is_public
from kb.db import now, reading, transaction
from kb.models import Job, Webhook, WebhookDelivery
from kb.ports import NotDelivered
from kb.settings import Webhooks
from kb.sweeper import clean_up
from kb.webhooks import signature
from tests.kb.api import NOWHERE, refused
from tests.kb.ingesting import ECONOMY, Killed, Lab, lines, open_lab
from tests.kb.server import add_dataset, add_file, add_text, wait
from tests.receiver import (
    Behaviour,
    Message,
    Receiver,
    dies,
    drips,
    hangs,
    receiving,
    redirects,
    says_later,
    talks_nonsense,
)
from tests.services import free_port

EAGER = Webhooks(allow_private=True, retry_base_s=0.0, timeout_s=1.0, max_attempts=4)


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path / "data", webhooks=EAGER) as opened:
        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


def hook(client: TestClient, url: str, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/webhooks", json={"url": url, **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def deliveries(client: TestClient, hook_id: str, **params: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/webhooks/{hook_id}/deliveries", params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def one_message(lab: Lab, receiver: Receiver, **body: Any) -> dict[str, Any]:
    """A webhook with one message on its way."""
    made = hook(lab.client, receiver.url, **body)
    assert lab.client.post(f"/v1/webhooks/{made['id']}/test").status_code == 202
    return made


# --- what is told --------------------------------------------------------------------------------


def test_a_document_that_is_completed_or_fails_is_told_once(lab: Lab, receiver: Receiver) -> None:
    hook(lab.client, receiver.url)
    dataset = lab.dataset("plain", **ECONOMY)
    good = lab.add(dataset, "good", lines(3))
    bad = add_file(lab.client, dataset, "blank.txt", b"  ")["document"]["id"]
    lab.settle()
    told = {message.data["document_id"]: message for message in receiver.messages}
    assert len(receiver.messages) == 2
    assert told[str(good)].event == "document.completed"
    assert told[str(good)].data == {
        "document_id": str(good),
        "dataset_id": dataset,
        "name": "good",
        "batch": lab.document(good).batch,
        "version": 1,
        "indexing_status": "completed",
        "word_count": lab.document(good).word_count,
        "tokens": 0,
        "error_code": None,
        "error": None,
        "error_stage": None,
    }
    failed = told[bad]
    assert failed.event == "document.failed"
    assert (failed.data["error_code"], failed.data["error_stage"]) == ("no_text", "parsing")
    assert "white space" in failed.data["error"]
    assert failed.path == "/hook?a=1"
    assert failed.headers["content-type"] == "application/json"
    assert failed.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_what_is_tried_again_is_told_at_its_end_only(lab: Lab, receiver: Receiver) -> None:
    hook(lab.client, receiver.url)
    lab.embedder.before = _fails_twice()
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(1))
    lab.settle()
    assert [m.event for m in receiver.messages] == ["document.completed"]
    lab.add(dataset, "a", lines(2))  # a second version
    lab.settle()
    assert [m.data["version"] for m in receiver.messages] == [1, 2]
    assert {m.data["document_id"] for m in receiver.messages} == {str(document)}


def _fails_twice() -> Any:
    from pipelines.errors import TransientError
    from tests.kb.ingesting import fails

    return fails(2, lambda: TransientError("later"))


def test_a_webhook_hears_of_its_events_and_its_dataset_only(lab: Lab, receiver: Receiver) -> None:
    mine, other = lab.dataset("mine", **ECONOMY), lab.dataset("other", **ECONOMY)
    hook(lab.client, f"{receiver.url}&all")
    hook(lab.client, f"{receiver.url}&mine", dataset_id=mine)
    hook(lab.client, f"{receiver.url}&failed", events=["document.failed"])
    lab.add(mine, "a", "whales")
    lab.add(other, "b", "whales")
    lab.settle()
    heard = sorted((m.path.rpartition("&")[2], m.data["name"]) for m in receiver.messages)
    assert heard == [("all", "a"), ("all", "b"), ("mine", "a")]
    assert len({m.id for m in receiver.messages}) == 3, "each message has an id of its own"


def test_a_process_with_workers_delivers_by_itself(
    client: TestClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = client.app.state.resources.settings  # type: ignore[attr-defined]
    object.__setattr__(client.app.state.resources.webhooks._http, "_allow_private", True)  # type: ignore[attr-defined]
    object.__setattr__(settings, "webhooks", EAGER)
    hook(client, receiver.url)
    dataset = add_dataset(client, **ECONOMY)
    assert wait(client, dataset, add_text(client, dataset, "a", "whales")) == "completed"
    ends = time.monotonic() + 30
    while not receiver.messages and time.monotonic() < ends:
        time.sleep(0.02)
    assert [m.event for m in receiver.messages] == ["document.completed"]


# --- signatures ----------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_specification() -> None:
    # The example of the reference libraries.
    made = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_every_message_is_signed_with_the_secret_that_was_shown_once(
    lab: Lab, receiver: Receiver
) -> None:
    made = one_message(lab, receiver)
    lab.settle()
    (message,) = receiver.messages
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    assert len(key) == 32
    at = message.headers["webhook-timestamp"]
    assert abs(int(at) - time.time()) < 60
    signed = f"{message.id}.{at}.".encode() + message.body
    expected = base64.b64encode(hmac.new(key, signed, sha256).digest()).decode()
    assert message.headers["webhook-signature"] == f"v1,{expected}"
    for path in ("/v1/webhooks", f"/v1/webhooks/{made['id']}"):
        assert made["secret"] not in lab.client.get(path).text


# --- receivers that fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (500, "answered 500"),
        (404, "answered 404"),
        (302, "answered 302"),
        (hangs, "no answer within 1 s"),
        (drips, "no answer within 1 s"),
        (dies, "no answer"),
        (talks_nonsense, "no answer"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value)[:12],
)
def test_a_message_that_fails_comes_again_with_the_same_id_and_body(
    lab: Lab, receiver: Receiver, behaviour: Behaviour, reason: str
) -> None:
    made = one_message(lab, receiver)
    receiver.then = [behaviour]
    started = time.monotonic()
    assert lab.jobs() == 2
    assert time.monotonic() - started < 10
    first, second = receiver.messages
    assert (first.id, first.body) == (second.id, second.body)
    (delivery,) = deliveries(lab.client, made["id"])
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == (
        "delivered",
        2,
        204,
    )
    assert first.id == delivery["id"]


def test_the_record_says_why_a_message_was_not_received(lab: Lab, receiver: Receiver) -> None:
    made = one_message(lab, receiver)
    receiver.then = [503]
    run_one(lab)
    (delivery,) = deliveries(lab.client, made["id"])
    assert (delivery["status"], delivery["attempts"]) == ("pending", 1)
    assert (delivery["last_status"], delivery["last_error"]) == (503, "answered 503")
    assert lab.client.get(f"/v1/webhooks/{made['id']}").json()["failing_since"] is not None
    lab.jobs()
    assert lab.client.get(f"/v1/webhooks/{made['id']}").json()["failing_since"] is None


def run_one(lab: Lab) -> None:
    from kb.maintenance import run_next_job

    assert run_next_job(lab.resources, "upkeep")


def test_a_message_is_given_up_after_the_last_attempt(lab: Lab, receiver: Receiver) -> None:
    made = one_message(lab, receiver)
    receiver.then = [500] * 9
    assert lab.jobs() == 4
    assert len(receiver.messages) == 4
    (delivery,) = deliveries(lab.client, made["id"], status="failed")
    assert (delivery["attempts"], delivery["last_error"]) == (4, "answered 500")
    assert lab.waiting_jobs() == []


def test_nobody_listening_is_a_failure_like_others(lab: Lab) -> None:
    port = free_port()
    made = hook(lab.client, f"http://127.0.0.1:{port}/")
    lab.client.post(f"/v1/webhooks/{made['id']}/test")
    run_one(lab)
    (delivery,) = deliveries(lab.client, made["id"])
    assert "Connection refused" in delivery["last_error"]
    with receiving(port) as receiver:
        lab.jobs()
        assert [m.id for m in receiver.messages] == [delivery["id"]]


def test_a_redirect_is_not_followed(lab: Lab, receiver: Receiver) -> None:
    with receiving() as elsewhere:
        one_message(lab, receiver)
        receiver.then = [redirects(elsewhere.url)] * 4
        lab.jobs()
        assert elsewhere.messages == []
    assert len(receiver.messages) == 4


def test_a_receiver_in_trouble_costs_one_attempt_and_not_one_a_message(
    tmp_path: Path, receiver: Receiver
) -> None:
    settings = EAGER.model_copy(update={"retry_base_s": 60.0})
    with open_lab(tmp_path / "data", webhooks=settings) as lab:
        made = hook(lab.client, receiver.url)
        for _ in range(5):
            lab.client.post(f"/v1/webhooks/{made['id']}/test")
        receiver.then = [503] * 5
        assert lab.jobs() == 5, "each is looked at and put off"
        assert len(receiver.messages) == 1
        attempts = sorted(d["attempts"] for d in deliveries(lab.client, made["id"]))
        assert attempts == [0, 0, 0, 0, 1]
        with reading(lab.resources.sessions) as session:
            waits = [(at - now()).total_seconds() for at in session.scalars(select(Job.not_before))]
        assert all(50 < wait < 70 for wait in waits), waits
        over(lab)
        receiver.then = []
        assert lab.jobs() == 5
    assert len({m.id for m in receiver.messages}) == 5


def over(lab: Lab) -> None:
    """All that is waited for is over."""
    with transaction(lab.resources.sessions) as session:
        session.execute(update(Job).values(not_before=now()))
        session.execute(update(Webhook).values(retry_at=None))


def test_one_message_that_is_refused_holds_up_no_other(tmp_path: Path, receiver: Receiver) -> None:
    settings = EAGER.model_copy(update={"retry_base_s": 60.0})
    with open_lab(tmp_path / "data", webhooks=settings) as lab:
        made = hook(lab.client, receiver.url)
        for _ in range(3):
            lab.client.post(f"/v1/webhooks/{made['id']}/test")
        receiver.then = [400]
        lab.jobs()
        states = sorted(d["status"] for d in deliveries(lab.client, made["id"]))
    assert states == ["delivered", "delivered", "pending"]


@pytest.mark.parametrize(("asked", "waits"), [(300, 300), (10**8, 21_600)])
def test_retry_after_is_honoured_up_to_the_longest_wait(
    lab: Lab, receiver: Receiver, asked: int, waits: int
) -> None:
    one_message(lab, receiver)
    receiver.then = [says_later(429, asked)]
    lab.jobs()
    (job,) = lab.waiting_jobs()
    assert (job.not_before - now()).total_seconds() == pytest.approx(waits, abs=20)


def test_waits_double_up_to_the_longest(tmp_path: Path, receiver: Receiver) -> None:
    settings = EAGER.model_copy(update={"retry_base_s": 10.0, "retry_max_s": 35.0})
    with open_lab(tmp_path / "data", webhooks=settings) as lab:
        one_message(lab, receiver)
        receiver.then = [500] * 3
        waits = []
        for _ in range(3):
            lab.jobs()
            (job,) = lab.waiting_jobs()
            waits.append((job.not_before - now()).total_seconds())
            over(lab)
    assert waits[0] == pytest.approx(10.5, abs=1)
    assert waits[1] == pytest.approx(21, abs=1.5)
    assert waits[2] == pytest.approx(35, abs=0.5)


def test_a_webhook_that_fails_for_days_is_disabled_with_the_reason(
    lab: Lab, receiver: Receiver
) -> None:
    made = one_message(lab, receiver)
    receiver.then = [500] * 9
    run_one(lab)
    with transaction(lab.resources.sessions) as session:
        session.execute(update(Webhook).values(failing_since=now() - timedelta(days=6)))
    lab.client.post(f"/v1/webhooks/{made['id']}/test")
    lab.jobs()
    shown = lab.client.get(f"/v1/webhooks/{made['id']}").json()
    assert shown["enabled"] is False
    assert "no message was received since" in shown["disabled_reason"]
    assert shown["disabled_reason"].endswith("answered 500")
    assert {d["status"] for d in deliveries(lab.client, made["id"])} == {"failed"}
    sent = len(receiver.messages)
    dataset = lab.dataset("plain", **ECONOMY)
    lab.add(dataset, "a", "whales")
    lab.settle()
    assert len(receiver.messages) == sent, "it hears nothing more"
    answer = lab.client.patch(f"/v1/webhooks/{made['id']}", json={"enabled": True})
    assert (answer.json()["enabled"], answer.json()["failing_since"]) == (True, None)
    receiver.then = []
    lab.add(dataset, "b", "whales")
    lab.settle()
    assert receiver.messages[-1].data["name"] == "b"


def test_a_receiver_that_is_gone_is_not_asked_again(lab: Lab, receiver: Receiver) -> None:
    made = one_message(lab, receiver)
    receiver.then = [410]
    assert lab.jobs() == 1
    shown = lab.client.get(f"/v1/webhooks/{made['id']}").json()
    assert shown["disabled_reason"] == "the receiver answered 410 Gone"


# --- nothing lost, nothing twice -----------------------------------------------------------------


def test_a_message_exists_exactly_when_the_outcome_does(lab: Lab, receiver: Receiver) -> None:
    hook(lab.client, receiver.url)
    dataset = lab.dataset("plain", **ECONOMY)
    document = lab.add(dataset, "a", "whales")
    claim = lab.claim()
    commits = []

    def dies_at_third(_connection: object) -> None:
        commits.append(1)
        if len(commits) == 2:  # the text is staged, the version is about to go live
            raise Killed

    event.listen(lab.resources.sessions.engine, "commit", dies_at_third)
    with pytest.raises(Killed):
        lab.ingest(claim)
    event.remove(lab.resources.sessions.engine, "commit", dies_at_third)
    assert lab.document(document).indexing_status.value == "indexing"
    with reading(lab.resources.sessions) as session:
        assert session.scalars(select(WebhookDelivery)).all() == []
    lab.restart()
    lab.settle()
    assert [m.event for m in receiver.messages] == ["document.completed"]


def test_a_crash_after_delivery_repeats_the_message_under_its_id(
    lab: Lab, receiver: Receiver
) -> None:
    one_message(lab, receiver)

    posted = lab.resources.webhooks.post

    def post(*arguments: Any) -> Any:
        posted(*arguments)
        raise Killed

    lab.resources.webhooks.post = post  # type: ignore[method-assign]
    with pytest.raises(Killed):
        lab.jobs()
    lab.resources.webhooks.post = posted  # type: ignore[method-assign]
    assert lab.jobs() == 0, "still leased by the process that died"
    lab.restart()
    assert lab.jobs() == 1
    first, second = receiver.messages
    assert (first.id, first.body) == (second.id, second.body)


def test_a_job_that_is_done_twice_sends_nothing_more(lab: Lab, receiver: Receiver) -> None:
    from kb.webhooks import deliver

    one_message(lab, receiver)
    (job,) = lab.waiting_jobs()
    lab.jobs()
    deliver(lab.resources, job.payload)
    assert len(receiver.messages) == 1


def test_deleting_a_webhook_drops_its_messages(lab: Lab, receiver: Receiver) -> None:
    made = one_message(lab, receiver)
    assert lab.client.delete(f"/v1/webhooks/{made['id']}").status_code == 204
    assert lab.jobs() == 1
    assert receiver.messages == []
    refused(lab.client.get(f"/v1/webhooks/{made['id']}"), 404, "not_found")


def test_a_dataset_takes_its_webhooks_with_it(lab: Lab, receiver: Receiver) -> None:
    dataset = lab.dataset("plain", **ECONOMY)
    hook(lab.client, receiver.url, dataset_id=dataset)
    lab.delete(dataset)
    lab.settle()
    assert lab.client.get("/v1/webhooks").json() == {"data": []}


def test_old_records_are_removed_and_waiting_messages_stay(lab: Lab, receiver: Receiver) -> None:
    made = one_message(lab, receiver)
    lab.jobs()
    lab.client.post(f"/v1/webhooks/{made['id']}/test")
    with transaction(lab.resources.sessions) as session:
        session.execute(update(WebhookDelivery).values(created_at=now() - timedelta(days=31)))
    assert clean_up(lab.resources) == 1
    assert [d["status"] for d in deliveries(lab.client, made["id"])] == ["pending"]


@pytest.mark.sqlite_only
def test_a_slow_receiver_holds_up_no_other_job(database: str, tmp_path: Path) -> None:
    from kb.jobs import enqueue
    from kb.models import JobKind
    from kb.runner import Runner

    with (
        open_lab(tmp_path / "data", webhooks=EAGER.model_copy(update={"timeout_s": 5.0})) as lab,
        receiving() as receiver,
    ):
        made = hook(lab.client, receiver.url)
        released = threading.Event()
        receiver.then = [lambda handler: released.wait(5) and handler.send_response(204)]
        lab.client.post(f"/v1/webhooks/{made['id']}/test")
        runner = Runner(lab.resources)
        runner.start()
        try:
            until(lambda: bool(receiver.messages))
            with transaction(lab.resources.sessions) as session:
                enqueue(session, JobKind.DELETE_BLOBS, keys=[])
            runner.wake()
            until(lambda: [j.kind for j in lab.waiting_jobs()] == ["deliver_webhook"])
        finally:
            released.set()
            runner.stop(timeout_s=20)


def until(done: Any) -> None:
    ends = time.monotonic() + 20
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.02)


# --- where messages may go -----------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.5.5",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:1:2:3:4:80ff:fffe",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    sender = HttpSender(timeout_s=1, allow_private=False)
    with pytest.raises(NotDelivered, match="not a public address; KB_WEBHOOKS__ALLOW_PRIVATE"):
        sender.post(f"http://{host}:9/", b"", {})


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def answering(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names lead to these addresses, one list a question; what was asked."""
    import socket

    asked: list[str] = []
    left = list(answers)

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> Any:
        asked.append(host)
        addresses = left.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ["93.184.216.34", "10.0.0.1"])
    with pytest.raises(NotDelivered, match=r"'example\.org' is 10\.0\.0\.1"):
        HttpSender(timeout_s=1, allow_private=False).post("http://example.org/", b"", {})


def test_a_name_is_looked_up_once_and_spoken_to_as_it_was_checked(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    import socket

    real = socket.getaddrinfo
    asked = []

    def getaddrinfo(host: str, *arguments: Any, **more: Any) -> Any:
        if host != "rebinding.example":
            return real(host, *arguments, **more)  # an address, when it is connected to
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url = f"http://rebinding.example:{receiver.port}/"
    receipt = HttpSender(timeout_s=2, allow_private=True).post(url, b"x", {})
    assert receipt.status == 204
    assert asked == ["rebinding.example"]
    assert receiver.messages[0].headers["host"] == f"rebinding.example:{receiver.port}"


def test_a_proxy_of_the_environment_is_not_used(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        HttpSender(timeout_s=2, allow_private=True).post(receiver.url, b"x", {})
        assert (len(proxy.messages), len(receiver.messages)) == (0, 1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for `localhost` that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    made = tmp_path_factory.mktemp("tls")
    paths = made / "cert.pem", made / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(paths[1])]
    subprocess.run([*command, "-out", str(paths[0])], check=True, capture_output=True)
    return paths


def test_the_certificate_must_be_that_of_the_name(certificate: tuple[Path, Path]) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*certificate)
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    with receiving(tls=server) as receiver:
        known = HttpSender(timeout_s=5, allow_private=True, trusted=trusted)
        answered = known.post(f"https://localhost:{receiver.port}/", b"x", {})
        assert answered.status == 204
        with pytest.raises(NotDelivered, match="certificate"):
            known.post(f"https://127.0.0.1:{receiver.port}/", b"x", {})
        stranger = HttpSender(timeout_s=5, allow_private=True)
        with pytest.raises(NotDelivered, match="certificate"):
            stranger.post(f"https://localhost:{receiver.port}/", b"x", {})
    assert len(receiver.messages) == 1


# --- the routes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Private addresses are forbidden, two webhooks at most."""
    directory = tmp_path_factory.mktemp("strict")
    with open_lab(directory / "data", webhooks=Webhooks(most=2)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.org/", "send one like https://"),
        ("example.org/hook", "send one like https://"),
        ("https://", "send one like https://"),
        ("https://münchen.example/", "in ASCII"),
        ("https://user:pass@example.org/", "holds a user"),
        ("https://example.org/#x", "holds a user, a fragment"),
        ("https://example.org:99999/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
        ("https://example.org/a b", "white space"),
        ("https://example.org/" + "a" * 2000, "more than 2000 characters"),
        ("http://localhost:8000/", "not a public address; KB_WEBHOOKS__ALLOW_PRIVATE"),
        ("http://169.254.169.254/latest", "not a public address"),
        ("http://[::ffff:10.0.0.1]/", "not a public address"),
    ],
)
def test_an_url_that_cannot_be_used_is_refused_with_the_reason(
    strict: Lab, url: str, says: str
) -> None:
    said = refused(strict.client.post("/v1/webhooks", json={"url": url}), 400, "invalid_param")
    assert says in said


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "url is required"),
        ({"url": 5}, 400, "url"),
        ({"events": ["document.lost"]}, 400, "'document.lost'; choose from document.completed"),
        ({"events": []}, 400, "choose from document.completed, document.failed"),
        ({"events": ["webhook.test"]}, 400, "choose from"),
        ({"secret": "whsec_c2hvcnQ="}, 400, "24 to 64 bytes"),
        ({"secret": "plain-text-secret-of-mine-which-is-long"}, 400, "whsec_"),
        ({"dataset_id": NOWHERE}, 404, NOWHERE),
        ({"dataset_id": "x"}, 400, "dataset_id"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_with_the_remedy(
    strict: Lab, body: dict[str, Any], status: int, says: str
) -> None:
    url = {"url": "https://example.org/"} if body and "url" not in body else {}
    answer = strict.client.post("/v1/webhooks", json=url | body)
    assert says in refused(answer, status, "not_found" if status == 404 else "invalid_param")


def test_webhooks_are_made_changed_listed_and_bounded(strict: Lab) -> None:
    secret = "whsec_" + base64.b64encode(bytes(range(40))).decode()
    first = hook(strict.client, "https://example.org/1", secret=secret)
    assert first["secret"] == secret
    second = hook(strict.client, "https://example.org/2", events=["document.failed"])
    answer = strict.client.post("/v1/webhooks", json={"url": "https://example.org/3"})
    assert "KB_WEBHOOKS__MOST" in refused(answer, 400, "invalid_param")
    listed = strict.client.get("/v1/webhooks").json()["data"]
    assert [w["id"] for w in listed] == [first["id"], second["id"]]
    assert [w["events"] for w in listed] == [
        ["document.completed", "document.failed"],
        ["document.failed"],
    ]
    path = f"/v1/webhooks/{first['id']}"
    changed = strict.client.patch(
        path, json={"url": "https://example.org/9", "events": ["document.failed"]}
    ).json()
    assert (changed["url"], changed["events"]) == ("https://example.org/9", ["document.failed"])
    off = strict.client.patch(path, json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "switched off by a person")
    refused(strict.client.patch(path, json={"url": "http://10.0.0.1/"}), 400, "invalid_param")
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries")):
        for unknown in (NOWHERE, "x"):
            answer = strict.client.request(method, f"/v1/webhooks/{unknown}{tail}")
            refused(answer, 404, "not_found")
    for made in (first, second):
        assert strict.client.delete(f"/v1/webhooks/{made['id']}").status_code == 204


def test_webhooks_need_the_key_of_the_workspace(strict: Lab) -> None:
    from kb.models import ApiKey

    dataset = strict.dataset("of a key", **ECONOMY)
    with transaction(strict.resources.sessions) as session:
        session.add(
            ApiKey(
                workspace_id=strict.resources.workspace_id,
                dataset_id=uuid.UUID(dataset),
                hint="one",
                sha256=sha256(b"one").hexdigest(),
            )
        )
    headers = {"Authorization": "Bearer one"}
    for answer in (
        strict.client.post("/v1/webhooks", json={"url": "https://e.org"}, headers=headers),
        strict.client.get("/v1/webhooks", headers=headers),
        strict.client.get(f"/v1/webhooks/{NOWHERE}", headers=headers),
    ):
        refused(answer, 403, "forbidden")


def test_a_message_is_json_of_the_specification(lab: Lab, receiver: Receiver) -> None:
    one_message(lab, receiver)
    lab.jobs()
    message: Message = receiver.messages[0]
    body = json.loads(message.body)
    assert set(body) == {"type", "timestamp", "data"}
    assert body["type"] == "webhook.test"
    assert body["timestamp"].endswith("Z")
    assert message.id.startswith("msg_")
