"""The broker: which URLs work, what a dead one costs, and what does not go together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from kb.adapters.celery_queue import CLEAN_UP, QUEUES, SWEEP, CeleryQueue, celery_config
from kb.adapters.in_process_queue import InProcessQueue
from kb.errors import Misconfigured
from kb.ports import Queue
from kb.runner import Runner, runner_for
from kb.settings import Ingestion, Qdrant, Redis, Settings
from kb.wiring import check_service, open_resources
from tests.kb.server import KEY, add_dataset, add_text, test_settings
from tests.services import PostgreSQL, free_port, redis_program, start_redis
from tests.services import Redis as RedisServer
from tests.workers.service import ECONOMY, Service, open_service
from workers.schedule import beat_schedule

DEAD = "redis://127.0.0.1:1/0"
QDRANT = Qdrant(url="http://127.0.0.1:1")
POSTGRESQL = "postgresql://kb@127.0.0.1:1/kb"


def round_trip(queue: CeleryQueue) -> None:
    """Messages arrive in their queues."""
    assert queue.waiting(Queue.BULK) == 0
    for _ in range(3):
        queue.index_document(uuid.uuid4(), Queue.BULK)
    queue.index_document(uuid.uuid4(), Queue.INTERACTIVE)
    assert (queue.waiting(Queue.BULK), queue.waiting(Queue.INTERACTIVE)) == (3, 1)


# --- reachable brokers ---------------------------------------------------------------------------


@pytest.mark.integration
def test_messages_wait_in_the_queue_of_their_document(redis_server: RedisServer) -> None:
    redis_server.restart()
    queue = CeleryQueue(redis_server.url, Redis())
    round_trip(queue)
    redis_server.restart()
    assert queue.waiting(Queue.BULK) in (0, None), "None: the lost connection is noticed"
    queue.close()
    queue.close()


@pytest.mark.integration
def test_a_password_is_sent(redis_server: RedisServer) -> None:
    locked = start_redis("--requirepass", "s3cret/#")
    try:
        queue = CeleryQueue(f"redis://:s3cret%2F%23@127.0.0.1:{locked.port}/0", Redis())
        round_trip(queue)
        queue.close()
        stranger = CeleryQueue(locked.url, Redis())
        stranger.index_document(uuid.uuid4(), Queue.BULK)
        assert stranger.waiting(Queue.BULK) is None
        stranger.close()
    finally:
        locked.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for `localhost` that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    made = tmp_path_factory.mktemp("tls")
    certificate, key = made / "cert.pem", made / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def tls_port(certificate: tuple[Path, Path], redis_server: RedisServer) -> Iterator[int]:
    """A Redis that also speaks TLS, on this port."""
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(certificate[0]), "--tls-key-file", str(certificate[1])]
    server = start_redis(*options, "--tls-ca-cert-file", str(certificate[0]))
    yield port
    server.stop()


@pytest.mark.integration
def test_tls_is_spoken_with_a_server_whose_certificate_is_known(
    tls_port: int, certificate: tuple[Path, Path]
) -> None:
    queue = CeleryQueue(f"rediss://localhost:{tls_port}/0", Redis(tls_ca_file=certificate[0]))
    round_trip(queue)
    queue.close()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("host", "options", "trusted"),
    [
        ("localhost", {}, False),
        ("127.0.0.1", {"tls_ca_file": 0}, False),
        ("127.0.0.1", {"tls_verify": False}, True),
    ],
    ids=["unknown signer", "another name", "told not to look"],
)
def test_a_server_that_cannot_prove_its_name_gets_nothing(
    tls_port: int,
    certificate: tuple[Path, Path],
    host: str,
    options: dict[str, Any],
    trusted: bool,
) -> None:
    if "tls_ca_file" in options:
        options = {"tls_ca_file": certificate[0]}
    queue = CeleryQueue(f"rediss://{host}:{tls_port}/0", Redis(**options))
    queue.index_document(uuid.uuid4(), Queue.BULK)
    assert queue.waiting(Queue.BULK) == (1 if trusted else None)
    queue.close()


@pytest.mark.integration
def test_sentinels_are_asked_for_the_master(redis_server: RedisServer, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor kb-master 127.0.0.1 {redis_server.port} 1\n"
    )
    redis_server.restart()
    sentinel = subprocess.Popen(
        [redis_program(), str(config), "--sentinel"], stdout=subprocess.DEVNULL
    )
    try:
        wait_for_port(port)
        url = f"sentinel://127.0.0.1:1;sentinel://127.0.0.1:{port}"  # the first one is dead
        queue = CeleryQueue(url, Redis(sentinel_master="kb-master"))
        round_trip(queue)
        queue.close()
    finally:
        sentinel.terminate()
        sentinel.wait(10)


def wait_for_port(port: int) -> None:
    import socket

    ends = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < ends
            time.sleep(0.05)
        else:
            return


# --- dead brokers --------------------------------------------------------------------------------


def test_a_dead_broker_costs_a_moment_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = CeleryQueue(DEAD, Redis(connect_timeout_s=1))
    started = time.monotonic()
    for _ in range(50):
        queue.index_document(uuid.uuid4(), Queue.BULK)
    queue.run_jobs()
    assert queue.waiting(Queue.BULK) is None
    assert time.monotonic() - started < 3
    assert caplog.text.count("the broker does not answer") == 1
    queue.close()


@pytest.mark.integration
def test_uploads_are_accepted_while_the_broker_is_away(
    tmp_path: Path, postgresql: PostgreSQL, redis_server: RedisServer
) -> None:
    with open_service(tmp_path, postgresql, redis_server) as service:
        away = service.settings.model_copy(update={"redis_url": SecretStr(DEAD)})
        with open_resources(away) as resources:
            from starlette.testclient import TestClient

            from kb.api.app import create_app

            headers = {"Authorization": f"Bearer {KEY}"}
            with TestClient(create_app(resources, process_key=KEY), headers=headers) as client:
                dataset = add_dataset(client, "plain", **ECONOMY)
                add_text(client, dataset, "a", "whales")
        assert service.states() == {"waiting": 1}
        from kb.sweeper import sweep

        assert sweep(service.resources) == 1


# --- what does not go together -------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["amqp://guest@localhost//", "localhost:6379", "http://localhost", "redis:localhost"]
)
def test_another_broker_is_refused_with_those_that_work(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"redis://:PASSWORD@HOST:6379/0, rediss://"):
        celery_config(url, Redis())


def test_sentinels_and_the_name_of_their_master_go_together() -> None:
    with pytest.raises(Misconfigured, match="KB_REDIS__SENTINEL_MASTER"):
        celery_config("sentinel://127.0.0.1:26379", Redis())
    with pytest.raises(Misconfigured, match="KB_REDIS__SENTINEL_MASTER"):
        celery_config("redis://127.0.0.1:6379", Redis(sentinel_master="kb"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"qdrant": Qdrant()}, "set KB_QDRANT__URL to a Qdrant server"),
        ({"database_url": None}, "set KB_DATABASE_URL=postgresql://"),
        ({"database_url": "sqlite:///x.db"}, "set KB_DATABASE_URL=postgresql://"),
    ],
)
def test_what_belongs_to_one_process_cannot_be_shared(changes: dict[str, Any], says: str) -> None:
    fitting: dict[str, Any] = {"redis_url": DEAD, "qdrant": QDRANT, "database_url": POSTGRESQL}
    check_service(Settings(**fitting))
    with pytest.raises(Misconfigured, match=says):
        check_service(Settings(**{**fitting, **changes}))
    check_service(Settings(**{**fitting, **changes, "redis_url": None}))


def test_without_a_broker_this_process_works_on_documents(tmp_path: Path) -> None:
    with open_resources(test_settings(tmp_path)) as resources:
        assert isinstance(resources.jobs, InProcessQueue)
        assert isinstance(runner_for(resources), Runner)


@pytest.fixture
def service(tmp_path: Path, postgresql: PostgreSQL, redis_server: RedisServer) -> Iterator[Service]:
    with open_service(tmp_path, postgresql, redis_server) as opened:
        yield opened


@pytest.mark.integration
def test_with_a_broker_it_leaves_them_to_the_workers(service: Service) -> None:
    assert isinstance(service.resources.jobs, CeleryQueue)
    assert runner_for(service.resources) is None
    with open_resources(service.settings):  # a second API on the same installation
        pass


@pytest.mark.integration
def test_without_a_broker_a_second_process_on_the_database_is_refused(
    tmp_path: Path, postgresql: PostgreSQL
) -> None:
    from kb.errors import DataDirectoryInUse

    with postgresql.database() as url:
        first = Settings(data_dir=tmp_path / "a", database_url=url)
        second = Settings(data_dir=tmp_path / "b", database_url=url)
        with (
            open_resources(first),
            pytest.raises(DataDirectoryInUse, match="KB_REDIS_URL and KB_QDRANT__URL"),
            open_resources(second),
        ):
            pass
        with open_resources(second):
            pass


def kb(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "kb.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["worker"], {}, "error: KB_REDIS_URL is not set"),
        (["beat"], {}, "error: KB_REDIS_URL is not set"),
        (["worker"], {"KB_REDIS_URL": DEAD}, "error: KB_REDIS_URL is set, so several"),
        (["serve"], {"KB_REDIS_URL": DEAD}, "error: KB_REDIS_URL is set, so several"),
        (["worker", "--queues=fast"], {}, "error: no queue 'fast'; known: interactive, bulk"),
        (["worker"], {"KB_INGESTION__LEASE_S": "soon"}, "error: KB_INGESTION__LEASE_S"),
    ],
)
def test_a_process_that_cannot_work_says_why_in_a_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    ended = kb(*arguments, **environment, KB_DATA_DIR=str(tmp_path / "data"))
    assert ended.returncode == 1
    assert ended.stderr.startswith(says), ended.stderr
    assert len(ended.stderr.splitlines()) == 1


# --- the agreement of all processes --------------------------------------------------------------


def test_tasks_are_acknowledged_when_done_and_carry_json_only() -> None:
    config = celery_config("redis://localhost/0", Redis(visibility_timeout_s=77))
    assert config["task_acks_late"] is True
    assert config["task_reject_on_worker_lost"] is True
    assert config["worker_prefetch_multiplier"] == 1
    assert config["accept_content"] == ["json"]
    assert config["worker_send_task_events"] is True
    assert config["broker_transport_options"]["visibility_timeout"] == 77
    assert set(config["task_queues"]) == set(QUEUES) == {"interactive", "bulk", "maintenance"}


def test_the_clock_rings_for_the_sweep_and_the_clean_up() -> None:
    entries = beat_schedule(Ingestion(sweep_s=7, clean_up_s=900)).values()
    every = {(entry["task"], entry["schedule"].seconds) for entry in entries}
    assert every == {(SWEEP, 7), (CLEAN_UP, 900)}
    # Long enough for a worker whose clock is wrong by hours, short enough not to pile up for ever.
    assert all(12 * 3600 < entry["options"]["expires"] < 7 * 86_400 for entry in entries)
