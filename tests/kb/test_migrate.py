"""Moving house: an embedded installation into PostgreSQL, Qdrant, S3 and Redis, and back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from kb import switching
from kb.adapters.data_directory import DataDirectory
from kb.api.app import create_app
from kb.db import now, reading, transaction
from kb.doctor import examine
from kb.errors import DataDirectoryInUse, InvalidParam
from kb.maintenance import run_next_job
from kb.migrate import Verdict, migrate
from kb.models import (
    Document,
    IndexingStatus,
    JobKind,
    Segment,
    Workspace,
)
from kb.resources import Resources
from kb.runner import Runner
from kb.settings import Embedding, Ingestion, Settings, settings_of
from kb.wiring import open_resources
from tests.contracts.qdrant_double import Double
from tests.contracts.qdrant_server import options_for
from tests.kb.ingesting import PARENTS, Killed, lines
from tests.kb.server import KEY, LINES, add_dataset, add_text, search, wait
from tests.models import model_cache
from tests.s3 import S3Server, s3_server
from tests.services import PostgreSQL, Redis


def quiet(_step: str, _done: int, _total: int) -> None:
    """No progress is shown."""


def embedded(data_dir: Path) -> Settings:
    """What is set where nothing is."""
    return Settings(data_dir=data_dir, embedding=Embedding(cache_dir=model_cache()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, str]]:
    """An embedded installation that ended in the middle of its work; its datasets."""
    settings = embedded(tmp_path_factory.mktemp("old") / "data")
    with open_resources(settings) as resources:
        with serving(resources, works=True) as client:
            datasets = {
                "flat": add_dataset(client, "flat"),
                "parents": add_dataset(client, "parents"),
                "cheap": add_dataset(client, "cheap", indexing_technique="economy"),
            }
            for name, dataset in datasets.items():
                for number in range(4):
                    text = lines(8, f"{name}{number}")
                    rule = PARENTS if name == "parents" else {"process_rule": LINES}
                    made = add_text(client, dataset, f"d{number}", text, **rule)
                    assert wait(client, dataset, made) == "completed"
            for dataset in datasets.values():
                search(client, dataset, "number 3 speaks")
        with serving(resources, works=False) as client:
            waiting = add_text(client, datasets["cheap"], "later", lines(3, "later"))
            add_text(client, datasets["flat"], "d0", lines(4, "anew"), process_rule=LINES)
            client.delete(f"/v1/datasets/{datasets['flat']}/documents/{first(client, datasets)}")
        at = now()
        with transaction(resources.sessions) as session:  # a worker that died at it
            session.execute(
                update(Document)
                .where(Document.id == uuid.UUID(waiting["document"]["id"]))
                .values(
                    indexing_status=IndexingStatus.PARSING,
                    lease_owner="dead",
                    lease_expires_at=at,
                )
            )
    return settings, datasets


def first(client: TestClient, datasets: dict[str, str]) -> str:
    listed = client.get(f"/v1/datasets/{datasets['flat']}/documents").json()["data"]
    return str(next(d["id"] for d in listed if d["name"] == "d1"))


@contextmanager
def serving(resources: Resources, *, works: bool) -> Iterator[TestClient]:
    runner = Runner(resources) if works else None
    app = create_app(resources, runner=runner, process_key=KEY)
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def target(
    tmp_path: Path, postgresql: PostgreSQL, redis_server: Redis, store: S3Server
) -> Iterator[Settings]:
    """Settings of an empty service installation."""
    with ExitStack() as stack:
        url = stack.enter_context(postgresql.database())
        double = Double(tmp_path / "qdrant")
        stack.callback(double.close)
        yield Settings(
            data_dir=tmp_path / "new",
            database_url=url,
            redis_url=SecretStr(redis_server.url),
            qdrant=options_for(double),
            blobs=store.options(),
            embedding=Embedding(cache_dir=model_cache()),
        )


def answers(settings: Settings, datasets: dict[str, str]) -> dict[str, Any]:
    """What two searches of each dataset give, with scores to the last bit."""
    alone = settings.model_copy(update={"redis_url": None})
    with open_resources(alone) as resources, serving(resources, works=False) as client:
        return {
            name: [
                (r["segment"]["id"], r["segment"]["content"], r["score"])
                for query in ("number 3 speaks of", f"{name}2 number 5")
                for r in search(client, dataset, query)
            ]
            for name, dataset in datasets.items()
        }


def counts(settings: Settings) -> tuple[int, int, int]:
    alone = settings.model_copy(update={"redis_url": None})
    with open_resources(alone) as resources, reading(resources.sessions) as session:
        return (
            session.scalar(select(func.count()).select_from(Document)) or 0,
            session.scalar(select(func.count()).select_from(Segment)) or 0,
            len(list(resources.blobs.keys())),
        )


def assert_moved(verdict: Verdict, old: Settings, new: Settings, datasets: dict[str, str]) -> None:
    assert verdict.differences == []
    assert verdict.complete
    assert counts(new) == counts(old)
    found, wanted = answers(new, datasets), answers(old, datasets)
    for name in datasets:
        assert [row[:2] for row in found[name]] == [row[:2] for row in wanted[name]] != []
        assert [row[2] for row in found[name]] == pytest.approx(
            [row[2] for row in wanted[name]], abs=1e-6
        )


def test_an_installation_moves_whole_and_answers_the_same(
    source: tuple[Settings, dict[str, str]], target: Settings, redis_server: Redis
) -> None:
    redis_server.restart()
    old, datasets = source
    steps: list[str] = []
    verdict = migrate(old, target, lambda step, done, total: steps.append(step))
    assert {"table documents", "files", "index", "compare", "doctor"} <= set(steps)
    assert verdict.rows["documents"] == 12
    assert verdict.waiting == 2
    assert_moved(verdict, old, target, datasets)
    with open_resources(target) as resources:
        assert resources.jobs.waiting is not None
        with reading(resources.sessions) as session:
            states = session.execute(
                select(Document.indexing_status, Document.lease_owner).where(
                    Document.pending_version.is_not(None)
                )
            ).all()
        assert [tuple(row) for row in states] == [(IndexingStatus.WAITING, None)] * 2


def test_a_move_that_dies_anywhere_goes_on_and_ends_the_same(
    source: tuple[Settings, dict[str, str]], target: Settings
) -> None:
    old, datasets = source
    dies_at, rounds = 1, 0
    while True:
        left = [dies_at]

        def dies(_step: str, _done: int, _total: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        try:
            verdict = migrate(old, target, dies)
            break
        except Killed:
            rounds += 1
            dies_at += 4
    assert rounds >= 4
    assert_moved(verdict, old, target, datasets)


def test_back_into_one_directory(
    source: tuple[Settings, dict[str, str]], target: Settings, tmp_path: Path
) -> None:
    old, datasets = source
    assert migrate(old, target, quiet).complete
    back = embedded(tmp_path / "back")
    assert_moved(migrate(target, back, quiet), old, back, datasets)


def test_a_source_in_use_is_refused(
    source: tuple[Settings, dict[str, str]], target: Settings
) -> None:
    old, _ = source
    with (
        DataDirectory(old.data_dir, url="http://127.0.0.1:8000"),
        pytest.raises(DataDirectoryInUse, match=r"in use by process \d+, a server at"),
    ):
        migrate(old, target, quiet)


def test_a_target_that_holds_data_is_refused_and_left_alone(
    source: tuple[Settings, dict[str, str]], target: Settings, tmp_path: Path
) -> None:
    old, _ = source
    alone = target.model_copy(update={"redis_url": None})
    with open_resources(alone) as resources, serving(resources, works=False) as client:
        add_dataset(client, "mine", indexing_technique="economy")
    with pytest.raises(InvalidParam, match="holds data already"):
        migrate(old, target, quiet)
    with open_resources(alone) as resources, serving(resources, works=False) as client:
        assert [d["name"] for d in client.get("/v1/datasets").json()["data"]] == ["mine"]
    with pytest.raises(InvalidParam, match="same data directory"):
        migrate(old, old, quiet)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InvalidParam, match=r"it has no kb\.db"):
        migrate(embedded(tmp_path / "nothing"), target, quiet)
    assert not list((tmp_path / "nothing").iterdir())


def test_a_target_with_files_or_that_takes_in_another_house_is_refused(
    source: tuple[Settings, dict[str, str]], target: Settings, tmp_path: Path
) -> None:
    old, _ = source
    alone = target.model_copy(update={"redis_url": None})
    with open_resources(alone) as resources:
        resources.blobs.put("uploads/x", b"x")
    with pytest.raises(InvalidParam, match="files are not empty"):
        migrate(old, target, quiet)
    with open_resources(alone) as resources:
        resources.blobs.delete("uploads/x")

    def dies(step: str, _done: int, _total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        migrate(old, target, dies)
    other = embedded(tmp_path / "other")
    with open_resources(other):
        pass
    with pytest.raises(InvalidParam, match="another installation"):
        migrate(other, target, quiet)


def test_what_differs_afterwards_is_said(
    source: tuple[Settings, dict[str, str]], target: Settings
) -> None:
    """Somebody writes to the target while it is filled: a row, a file, a point."""
    old, _ = source
    alone = target.model_copy(update={"redis_url": None})

    def dies(step: str, _done: int, _total: int) -> None:
        if step == "compare":
            raise Killed

    with pytest.raises(Killed):
        migrate(old, target, dies)
    from kb.wiring import open_stores

    with open_stores(alone) as stores:
        with transaction(stores.sessions) as session:
            session.execute(update(Workspace).values(name="changed"))
        keys = list(stores.blobs.keys())
        stores.blobs.put(keys[0], b"other bytes")
        stores.blobs.delete(keys[1])
    verdict = migrate(old, target, quiet)
    assert not verdict.complete
    said = "\n".join(verdict.differences)
    assert "table workspaces: 1 rows with checksum" in said
    assert f"file {keys[0]} has other bytes" in said
    assert f"file {keys[1]} is missing" in said


def test_settings_of_a_file_are_those_of_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KB_REDIS_URL", "redis://elsewhere")
    file = tmp_path / "service.env"
    file.write_text("KB_DATABASE_URL=postgresql://a@b/c\nKB_QDRANT__URL=http://q:6333\nOTHER=1\n")
    read = settings_of(file)
    assert (read.database_url, read.qdrant.url) == ("postgresql://a@b/c", "http://q:6333")
    assert read.redis_url is None
    directory = settings_of(tmp_path)
    assert (directory.data_dir, directory.database_url, directory.redis_url) == (
        tmp_path,
        None,
        None,
    )


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kb.cli", "migrate"),
            *("--from", tmp_path / "old", "--to", tmp_path / "service.env"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no file "), done.stderr


@pytest.mark.e2e
def test_kill_9_of_the_command_at_any_moment_loses_nothing(
    source: tuple[Settings, dict[str, str]], target: Settings, tmp_path: Path
) -> None:
    old, datasets = source
    file = tmp_path / "service.env"
    blobs, qdrant = target.blobs, target.qdrant
    assert target.redis_url is not None
    assert blobs.access_key_id is not None
    assert blobs.secret_access_key is not None
    file.write_text(
        f"""KB_DATABASE_URL={target.database_url}
KB_REDIS_URL={target.redis_url.get_secret_value()}
KB_DATA_DIR={target.data_dir}
KB_QDRANT__URL={qdrant.url}
KB_QDRANT__PREFER_GRPC=false
KB_BLOBS__BUCKET={blobs.bucket}
KB_BLOBS__PREFIX={blobs.prefix}
KB_BLOBS__ENDPOINT_URL={blobs.endpoint_url}
KB_BLOBS__REGION=us-east-1
KB_BLOBS__PATH_STYLE=true
KB_BLOBS__ACCESS_KEY_ID={blobs.access_key_id.get_secret_value()}
KB_BLOBS__SECRET_ACCESS_KEY={blobs.secret_access_key.get_secret_value()}
KB_EMBEDDING__CACHE_DIR={model_cache()}
"""
    )
    command = [sys.executable, "-m", "kb.cli", "migrate", "--from", str(old.data_dir)]
    kills = 0
    for seen in ("table documents", "table segments", "files", "index", None):
        process = subprocess.Popen(
            [*command, "--to", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert process.stderr is not None
        for line in process.stderr:
            if seen is not None and line.strip() == seen:
                time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
                break
        out, _ = process.communicate(timeout=120)
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 3
    assert process.returncode == 0, out
    assert out.splitlines()[-1].startswith("verified: ")
    alone = target.model_copy(update={"redis_url": None})
    with open_resources(alone) as resources:
        assert examine(resources, repair=False, deep=True).healthy()
    assert answers(target, datasets).keys() == datasets.keys()


def test_a_running_switch_moves_without_its_copies_and_makes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "_SLICE_S", 0.0)
    small = {"ingestion": Ingestion(batch_segments=2, poll_s=0.05)}
    old, new = (embedded(tmp_path / name).model_copy(update=small) for name in ("old", "new"))
    with open_resources(old) as resources:
        with serving(resources, works=True) as client:
            dataset = add_dataset(client, "words", indexing_technique="economy")
            made = add_text(client, dataset, "a", lines(6), process_rule=LINES)
            assert wait(client, dataset, made) == "completed"
        with serving(resources, works=False) as client:
            asked = {"indexing_technique": "high_quality"}
            assert client.patch(f"/v1/datasets/{dataset}", json=asked).status_code == 200
            assert run_next_job(resources, "w", (JobKind.SWITCH_DATASET,))
            assert client.get(f"/v1/datasets/{dataset}/switch").json()["done"] == 2
    verdict = migrate(old, new, quiet)
    assert verdict.complete, verdict.differences
    with open_resources(new) as resources, serving(resources, works=True) as client:
        ends = time.monotonic() + 60
        while client.get(f"/v1/datasets/{dataset}/switch").json()["status"] == "running":
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert len(search(client, dataset, "number", search_method="semantic_search")) == 6
        report = examine(resources, repair=False, deep=True)
        assert report.healthy(), report.shape()
