"""`kill -9` of a real server at random moments: nothing is lost, doubled or embedded twice.

`KB_TEST_KILL_SEED` and `KB_TEST_KILL_ROUNDS` choose other moments and more of them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest

from kb.adapters.qdrant_edge import QdrantEdgeIndex
from kb.ports import Space
from pipelines.types import Vector
from tests.e2e.server_process import KEY, ServerProcess

pytestmark = pytest.mark.e2e

SEED = int(os.environ.get("KB_TEST_KILL_SEED", "1"))
ROUNDS = int(os.environ.get("KB_TEST_KILL_ROUNDS", "8"))
WORDS = re.findall(
    r"\w+",
    "amber anchor april barley basket beacon bramble bridge candle canyon cedar cellar cinder "
    "clover copper cotton cradle dagger delta ember falcon fennel ferry flint forest garnet "
    "ginger granite harbour hazel heron honey iron island ivory jasper kettle lantern larch "
    "ledger linen magnet maple marble meadow mercury millet mirror needle nettle oar ochre "
    "olive orchard otter paddle parcel pebble pepper pewter pigeon plum quarry quill raven "
    "ribbon river saffron salt sandal shutter silver slate spindle sparrow stable stirrup "
    "sugar tallow tanner thimble thistle timber tinder trellis turnip valley velvet vessel "
    "walnut weaver willow window winter yarrow",
)


def rule(separator: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    segmentation = {"separator": separator, "max_tokens": max_tokens, "chunk_overlap": 0}
    rules = {"pre_processing_rules": [], "segmentation": segmentation, **more}
    return {"mode": "hierarchical" if more else "custom", "rules": rules}


FLAT = {"process_rule": rule("\n", 200)}
FAMILY = {
    "doc_form": "hierarchical_model",
    "process_rule": rule(
        "\n\n",
        400,
        parent_mode="paragraph",
        subchunk_segmentation={"separator": "\n", "max_tokens": 100, "chunk_overlap": 0},
    ),
}


@dataclass(frozen=True)
class File:
    """What is uploaded."""

    dataset: str
    name: str
    data: bytes
    settings: dict[str, Any]


def sentence(chance: random.Random) -> str:
    return f"The {' '.join(chance.choices(WORDS, k=chance.randint(4, 9)))}."


def flat_file(chance: random.Random, number: int, lines: int) -> File:
    """A text, Markdown, CSV or HTML file of about so many segments."""
    rows = [sentence(chance) for _ in range(lines)]
    if number % 5 == 0:  # a text that other files have, too
        rows[0] = "Copyright of the harbour office, all rights reserved."
    kind = ("txt", "md", "csv", "html")[number % 4]
    if kind == "md":
        text = "\n".join(
            f"## Part {n}\n{row}" if n % 10 == 0 else row for n, row in enumerate(rows)
        )
    elif kind == "csv":
        text = "name,said\n" + "\n".join(f"{chance.choice(WORDS)},{row}" for row in rows)
    elif kind == "html":
        text = "<h1>Log</h1>" + "".join(f"<p>{row}</p>" for row in rows)
    else:
        text = "\n".join(rows)
    return File("flat", f"{number:02}-{lines}.{kind}", text.encode(), FLAT)


def family_file(chance: random.Random, number: int, paragraphs: int) -> File:
    """A text whose paragraphs are parents and whose lines are children."""
    text = "\n\n".join(
        "\n".join(sentence(chance) for _ in range(chance.randint(2, 5))) for _ in range(paragraphs)
    )
    return File("family", f"family-{number:02}.txt", text.encode(), FAMILY)


def corpus(chance: random.Random) -> list[File]:
    """33 files for every 20 rounds, tiny ones and some of several hundred segments, and at the end
    some with the name of an earlier one, which they replace.
    """
    shares = -(-ROUNDS // 20)
    sizes = [1, 2, 3, 300, 5, 40, 1, 260, 2, 25, 60, 3, 1, 350, 4, 30, 2, 1, 220, 6, 3, 45, 2, 400]
    paragraphs = [2, 1, 40, 3, 60, 2, 5, 30, 1]
    flat = [flat_file(chance, number, lines) for number, lines in enumerate(sizes * shares)]
    family = [family_file(chance, number, n) for number, n in enumerate(paragraphs * shares)]
    files = [*flat, *family]
    chance.shuffle(files)
    half = [
        replace(old, data=old.data[: len(old.data) // 2] + new.data)
        for old, new in ((flat[1], flat[13]), (flat[5], flat[9]), (flat[4], flat[12]))
    ]
    return [*files, *half, family_file(chance, 2, 20), family_file(chance, 4, 10)]


@dataclass
class Client:
    """Uploads one file after the other and sends again what got no answer."""

    server: ServerProcess
    files: list[File]
    datasets: dict[str, str] = field(default_factory=dict)
    answered: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: int = 0

    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )

    def make_datasets(self) -> None:
        with self.http() as http:
            for name in ("flat", "family"):
                body = {"name": name, "indexing_technique": "high_quality"}
                answer = http.post("/v1/datasets", json=body)
                assert answer.status_code == 200, answer.text
                self.datasets[name] = answer.json()["id"]

    def upload_next(self, http: httpx.Client) -> bool:
        """False: no answer, so the same file comes again."""
        file = self.files[self.sent]
        try:
            answer = http.post(
                f"/v1/datasets/{self.datasets[file.dataset]}/document/create-by-file",
                data={"data": json.dumps(file.settings)},
                files={"file": (file.name, file.data)},
            )
        except httpx.TransportError:
            return False
        assert answer.status_code == 200, answer.text
        self.answered[file.name] = answer.json()["document"]
        self.sent += 1
        return True

    def upload(self, most: int) -> None:
        with self.http() as http:
            for _ in range(min(most, len(self.files) - self.sent)):
                if not self.upload_next(http):
                    return

    def wait_for_all(self, limit_s: float = 180.0) -> None:
        """Until every document is completed and no job is left; fails at the first error."""
        ends = time.monotonic() + limit_s
        with self.http() as http:
            while time.monotonic() < ends:
                states = Counter(
                    (document["indexing_status"], document["error"])
                    for dataset in self.datasets.values()
                    for document in http.get(
                        f"/v1/datasets/{dataset}/documents", params={"limit": 100}
                    ).json()["data"]
                )
                assert not [s for s in states if s[0] == "error"], states
                if set(states) == {("completed", None)}:
                    if http.post("/v1/doctor").json()["pending_jobs"] == 0:
                        return
                    self.server.hurry_jobs()
                time.sleep(0.1)
        raise AssertionError(f"not done within {limit_s} s: {states}")

    def doctor(self) -> dict[str, Any]:
        with self.http() as http:
            report: dict[str, Any] = http.post("/v1/doctor").json()
            return report


@contextmanager
def database_of(server: ServerProcess) -> Iterator[sqlite3.Connection]:
    """What the database of a dead server holds, read from a copy: the original is not touched."""
    copy = server.data_dir.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in server.data_dir.glob("kb.db*"):
        shutil.copy(file, copy)
    with closing(sqlite3.connect(copy / "kb.db")) as connection:
        yield connection


@dataclass(frozen=True)
class Kill:
    """What was there at the moment of a kill."""

    cached: frozenset[str]
    log_chars: int
    unfinished: int
    staged: int


def look(server: ServerProcess, client: Client) -> Kill:
    """After a kill: everything that was answered is there; what else is."""
    with database_of(server) as db:
        known = {row[0] for row in db.execute("SELECT id FROM documents")}
        lost = {d["id"].replace("-", "") for d in client.answered.values()} - known
        assert not lost
        (unfinished,) = db.execute(
            "SELECT count(*) FROM documents WHERE pending_version IS NOT NULL"
        ).fetchone()
        (staged,) = db.execute(
            "SELECT count(DISTINCT document_id) FROM segments WHERE staged_version IS NOT NULL"
        ).fetchone()
        cached = frozenset(row[0] for row in db.execute("SELECT text_hash FROM embedding_cache"))
    return Kill(cached, len(server.text()), unfinished, staged)


def test_a_server_killed_at_random_moments_ends_up_like_one_that_never_was(
    tmp_path: Path,
) -> None:
    chance = random.Random(SEED)
    files = corpus(chance)
    final = {file.name: file for file in files}
    assert len(final) >= 30

    with ServerProcess(tmp_path / "killed", settings={"KB_LOG_LEVEL": "debug"}) as server:
        client = Client(server, files)
        kills, starts = rounds_of_kills(server, client, chance)
        server.start()
        client.upload(len(files))
        client.wait_for_all()
        report = client.doctor()
        assert report["healthy"], report
        assert report["pending_jobs"] == 0
        assert server.stop() == 0

    with ServerProcess(tmp_path / "undisturbed") as calm:
        calm.start()
        reference = Client(calm, list(final.values()))
        reference.make_datasets()
        reference.upload(len(final))
        reference.wait_for_all()
        assert calm.stop() == 0

    log = server.text()
    embedded = embedded_in(log)
    print(
        f"\nseed {SEED}: {len(kills)} kills, {sum(k.unfinished > 0 for k in kills)} with work "
        f"left, {sum(k.staged > 0 for k in kills)} amid a staged version; start "
        f"{np.median(starts):.2f} s; {len(embedded)} texts embedded"
    )
    assert len(kills) == ROUNDS
    assert embedded, "the log says nothing of the kind that is looked for"
    assert sum(kill.unfinished > 0 for kill in kills) >= ROUNDS * 0.75
    for kill in kills:
        again = {h[:16] for h in kill.cached} & set(embedded_in(log[kill.log_chars :]))
        assert not again, "these were in the cache when the process was killed"
    assert len(kills[-1].cached) > 100

    here, there = contents(server.data_dir), contents(calm.data_dir)
    assert Counter(here.texts) == Counter(there.texts)
    assert here.points.keys() == there.points.keys()
    assert Counter(here.heads) == Counter(there.heads)
    for key, vector in here.points.items():
        assert np.allclose(vector, there.points[key], atol=1e-4), key


def rounds_of_kills(
    server: ServerProcess, client: Client, chance: random.Random
) -> tuple[list[Kill], list[float]]:
    """Start, upload some files, kill, look; so many times as there are rounds."""
    kills: list[Kill] = []
    starts: list[float] = []
    per_round = -(-len(client.files) // ROUNDS)
    while len(kills) < ROUNDS:
        moment = len(kills) % 5
        if moment == 4:  # before it can answer, or just then
            server.start(ready=False)
            time.sleep(chance.uniform(0.2, 1.2))
        else:
            starts.append(server.start())
            if not client.datasets:
                client.make_datasets()
            uploader = threading.Thread(target=client.upload, args=(per_round + moment % 2,))
            uploader.start()
            if moment == 1:  # during an upload
                time.sleep(chance.uniform(0, 0.25))
            else:
                uploader.join()
            if moment != 1:  # right after an answer, or after some work
                wait_for_work(server, chance.choice((0, 10, 40, 80)))
                time.sleep(chance.uniform(0, 0.1))
        server.kill()
        if moment != 4:
            uploader.join()
        kills.append(look(server, client))
    return kills, starts


def wait_for_work(server: ServerProcess, texts: int, limit_s: float = 10.0) -> None:
    """Until so many texts more were embedded, or there is nothing to embed."""
    ends = time.monotonic() + limit_s
    enough = len(embedded_in(server.text())) + texts
    while len(embedded_in(server.text())) < enough and time.monotonic() < ends:
        time.sleep(0.005)


def embedded_in(log: str) -> list[str]:
    """The first 16 digits of the hash of each text that went to the model."""
    lines = re.findall(r"logger=kb\.embedding .*?embedded ([0-9a-f ]+)$", log, re.MULTILINE)
    return [digest for line in lines for digest in line.split()]


@dataclass(frozen=True)
class Contents:
    """What a data directory holds, told by names instead of ids.

    Attributes:
        texts: (document, kind, position, text, start, end) of every segment and child chunk.
        heads: (document, text hash) of every point.
        points: those with the vector of each.
    """

    texts: list[tuple[Any, ...]]
    heads: list[tuple[str, str]]
    points: dict[tuple[str, str], Vector]


def contents(data_dir: Path) -> Contents:
    """Read both sides of a stopped server; each point has one row and each leaf row one point."""
    with closing(sqlite3.connect(data_dir / "kb.db")) as db:
        names = {UUID(row[0]): row[1] for row in db.execute("SELECT id, name FROM documents")}
        rows = db.execute(
            "SELECT id, document_id, 'segment', position, content, start_offset, end_offset, "
            "live, staged_version, has_children, text_hash FROM segments UNION ALL "
            "SELECT id, document_id, 'child', position, content, start_offset, end_offset, "
            "live, staged_version, 0, text_hash FROM child_chunks"
        ).fetchall()
        ((space_name, dim),) = db.execute("SELECT DISTINCT space_name, space_dim FROM datasets")
    assert len(set(names.values())) == len(names)
    assert all(row[7] == 1 and row[8] is None for row in rows)
    leaves = {UUID(row[0]): (names[UUID(row[1])], row[10]) for row in rows if not row[9]}
    index = QdrantEdgeIndex(data_dir / "index")
    try:
        space = Space(space_name, dim)
        heads = list(index.scan(space))
        vectors = index.vectors(space, [head.id for head in heads])
    finally:
        index.close()
    told = {head.id: (names[head.document_id], head.text_hash) for head in heads}
    assert len(told) == len(heads)
    assert told == leaves
    return Contents(
        [(names[UUID(row[1])], *row[2:7]) for row in rows],
        list(told.values()),
        {told[i]: dense for i, (dense, _) in vectors.items() if dense is not None},
    )
