"""The backup and restore of docs/operations.md, run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.runner import Runner
from kb.settings import Settings
from kb.wiring import open_resources
from tests.kb.server import KEY, LINES, add_dataset, add_text, search, test_settings, wait

ROOT = Path(__file__).parents[2]
POEM = "The harbour sleeps under snow.\nA lamp burns in the keeper's house.\nNobody sails today."
MANUAL = "Press the red button to stop.\nError E42 means that the pump runs dry."


def script(title: str) -> str:
    """The commands below `<!-- tested: TITLE -->` in the manual."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- tested: {title} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None, title
    return found[1]


def run(commands: str, tmp_path: Path, data_dir: Path, url: str | None) -> None:
    """Run commands of the manual; `kb` is that of this tree."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    kb = programs / "kb"
    kb.write_text(f'#!/bin/sh\nexec {sys.executable} -m kb.cli "$@"\n')
    kb.chmod(0o755)
    path = [str(programs), os.environ["PATH"], *postgres_programs()]
    settings = test_settings(data_dir, database_url=url)
    environment = os.environ | {
        "PATH": os.pathsep.join(path),
        "DATA": str(data_dir),
        "BACKUP": str(tmp_path / "backup"),
        "KB_EMBEDDING__CACHE_DIR": str(settings.embedding.cache_dir),
    }
    if url is not None:
        environment["KB_DATABASE_URL"] = url
    done = subprocess.run(
        ["sh", "-euc", commands], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def postgres_programs() -> list[str]:
    """Where Debian keeps pg_dump and pg_restore of the server that the tests run."""
    return [str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin"))][-1:]


def answers(client: TestClient, dataset: str) -> list[dict[str, Any]]:
    """Everything that a client can see of two questions."""
    return [
        record
        for query in ("What does E42 mean?", "Who lives by the sea?")
        for record in search(client, dataset, query, search_method="hybrid_search")
    ]


def filled(client: TestClient) -> str:
    """A dataset with two finished documents; its id."""
    dataset = add_dataset(client)
    for name, text in (("poem.txt", POEM), ("manual.txt", MANUAL)):
        created = add_text(client, dataset, name, text, process_rule=LINES)
        assert wait(client, dataset, created) == "completed"
    return dataset


def opened(settings: Settings, work: Any) -> Any:
    """What `work(client)` gives, on a process with these settings."""
    with open_resources(settings) as resources:
        app = create_app(resources, runner=Runner(resources), process_key=KEY)
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
            return work(client)


@pytest.mark.e2e
@pytest.mark.sqlite_only
def test_an_embedded_backup_taken_while_it_runs_gives_the_same_answers(
    database: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "kb-data", tmp_path / "restored"

    def save(client: TestClient) -> tuple[str, list[dict[str, Any]]]:
        dataset = filled(client)
        run(script("embedded backup"), tmp_path, source, None)
        seen = answers(client, dataset)
        add_text(client, dataset, "later.txt", "Not in the backup.", process_rule=LINES)
        return dataset, seen

    dataset, before = opened(test_settings(source), save)
    assert len(before) == 10
    assert not (tmp_path / "backup" / "index").exists()
    run(script("embedded restore"), tmp_path, target, None)
    settings = test_settings(target)
    assert opened(settings, lambda client: answers(client, dataset)) == before
    after = opened(settings, lambda client: client.post("/v1/doctor").json())
    assert after["healthy"]
    assert after["points"] == 5


@pytest.mark.e2e
def test_a_dump_of_postgresql_and_the_files_give_the_same_answers(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgresql")
    if shutil.which("pg_dump") is None and not postgres_programs():
        pytest.skip("needs pg_dump: apt-get install postgresql-client")
    source, target = tmp_path / "kb-data", tmp_path / "restored"
    with server.database() as old, server.database() as new:

        def save(client: TestClient) -> tuple[str, list[dict[str, Any]]]:
            dataset = filled(client)
            run(script("service backup"), tmp_path, source, old)
            return dataset, answers(client, dataset)

        before_settings = test_settings(source, database_url=old)
        dataset, before = opened(before_settings, save)
        run(script("service restore"), tmp_path, target, new)
        shutil.copytree(source / "blobs", target / "blobs")
        run(f"kb doctor --repair --data-dir {target}", tmp_path, target, new)
        restored = test_settings(target, database_url=new)
        assert opened(restored, lambda client: answers(client, dataset)) == before
        assert opened(restored, lambda client: client.post("/v1/doctor").json())["healthy"]
