"""What the embedded index promises beyond the contract of every SegmentIndex."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest

from kb.adapters.qdrant_edge import LAYOUT, QdrantEdgeIndex
from kb.errors import StoreUnavailable
from kb.ports import Space
from tests.contracts.segment_index import (
    DIM,
    SPACE,
    Oracle,
    assert_ranked,
    numbered,
    point,
    random_points,
    terms,
)

pytestmark = pytest.mark.integration

Open = Callable[..., QdrantEdgeIndex]
HUGE = 2**62


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the index under `tmp_path`, with SPACE in it; closes all at the end."""
    indexes: list[QdrantEdgeIndex] = []

    def open_index(**options: float) -> QdrantEdgeIndex:
        defaults = {"min_free_bytes": 0, "min_free_share": 0}
        index = QdrantEdgeIndex(tmp_path, **{**defaults, **options})  # type: ignore[arg-type]
        indexes.append(index)
        index.ensure_space(SPACE)
        return index

    yield open_index
    for index in indexes:
        index.close()


def segments(directory: Path) -> list[Path]:
    return list((directory / SPACE.name / "shard" / "segments").iterdir())


def test_the_layout_on_disk(opened: Open, tmp_path: Path) -> None:
    opened()
    described = json.loads((tmp_path / SPACE.name / "space.json").read_text())
    assert described == {"layout": LAYOUT, "name": SPACE.name, "dim": DIM}
    assert {path.name for path in tmp_path.iterdir()} == {SPACE.name, "lock"}


# -- one process at a time


def test_a_second_process_is_told_who_is_in_the_way(opened: Open, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.contracts.segment_index", "qdrant_edge", str(tmp_path)]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        waiting = QdrantEdgeIndex(tmp_path)
        with pytest.raises(StoreUnavailable, match=f"another process uses {tmp_path}; stop it"):
            waiting.count(SPACE)
        child.kill()
    assert waiting.count(SPACE) >= 8, "the same index works once the other process is gone"
    waiting.close()


def test_a_second_index_in_this_process_waits_for_the_first_to_close(
    opened: Open, tmp_path: Path
) -> None:
    first = opened()
    second = QdrantEdgeIndex(tmp_path)
    with pytest.raises(StoreUnavailable, match="another process"):
        second.ensure_space(SPACE)
    first.close()
    second.ensure_space(SPACE)
    second.close()


# -- the disk


@pytest.mark.parametrize("watermark", [{"min_free_bytes": HUGE}, {"min_free_share": 1.0}])
def test_an_almost_full_disk_refuses_writes_but_not_reads_and_deletes(
    opened: Open, watermark: dict[str, float]
) -> None:
    roomy = opened()
    stored = point(uuid4(), np.ones(DIM), {1: 1.0})
    roomy.upsert(SPACE, [stored])
    roomy.close()

    tight = opened(**watermark)
    with pytest.raises(StoreUnavailable, match=r"disk almost full: \d+ MB free at .* MB needed"):
        tight.upsert(SPACE, [point(stored.dataset_id, np.ones(DIM), {})])
    with pytest.raises(StoreUnavailable, match="disk almost full"):
        tight.ensure_space(Space("another", DIM))
    assert [h.id for h in tight.best(SPACE, stored.dataset_id, terms({1: 1.0}), 5)] == [stored.id]
    assert tight.optimize(budget_s=1.0) is False
    tight.delete(SPACE, [stored.id], up_to_version=1)
    assert tight.count(SPACE) == 0


# -- what a kill or a hand leaves behind


def test_leavings_of_a_killed_upkeep_and_a_killed_creation_are_cleared(
    opened: Open, tmp_path: Path
) -> None:
    index = opened()
    index.upsert(SPACE, [numbered(1)])
    index.close()
    left = tmp_path / SPACE.name / "shard" / "temp_segments" / "half"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"x" * 100)
    half_made = tmp_path / "other.new" / "shard"
    half_made.mkdir(parents=True)
    (half_made / "edge_config.json").write_text("{")

    again = opened()
    assert [h.id for h in again.scan(SPACE)] == [numbered(1).id]
    assert not left.exists()
    again.ensure_space(Space("other", None))
    assert again.count(Space("other", None)) == 0
    assert not half_made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "space.json cannot be read"),
        ('{"layout": 1}', "space.json cannot be read"),
        ("[]", "space.json cannot be read"),
        ('{"layout": 99, "name": "contract", "dim": 16}', "layout 99, this version reads 1"),
    ],
)
def test_a_space_that_cannot_be_understood_is_named(
    opened: Open, tmp_path: Path, content: str, message: str
) -> None:
    opened().close()
    (tmp_path / SPACE.name / "space.json").write_text(content)
    index = QdrantEdgeIndex(tmp_path)
    with pytest.raises(StoreUnavailable, match=message):
        index.count(SPACE)
    index.close()


def test_what_the_engine_says_is_passed_on(opened: Open, tmp_path: Path) -> None:
    opened().close()
    (tmp_path / SPACE.name / "shard" / "edge_config.json").write_text("no json")
    index = QdrantEdgeIndex(tmp_path)
    with pytest.raises(StoreUnavailable, match=r"qdrant edge failed at open: .+") as caught:
        index.count(SPACE)
    assert caught.value.__cause__ is not None
    index.close()


def test_a_directory_that_cannot_be_made_is_an_unavailable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        QdrantEdgeIndex(tmp_path / "file" / "index")


# -- upkeep


def test_upkeep_seals_segments_and_then_has_nothing_to_do(opened: Open, tmp_path: Path) -> None:
    index = opened(segment_kb=100)
    rng = np.random.default_rng(1)
    points = random_points(rng, uuid4(), 6000)
    before = len(segments(tmp_path))
    index.upsert(SPACE, points[:3000])
    assert index.optimize(budget_s=0.0) is True, "no time: all of it is still pending"
    assert index.optimize(budget_s=30.0) is False
    assert len(segments(tmp_path)) > before
    sealed = len(segments(tmp_path))
    assert index.optimize(budget_s=0.0) is False
    index.upsert(SPACE, points[3000:])
    assert index.optimize(budget_s=30.0) is False
    assert len(segments(tmp_path)) > sealed
    assert index.count(SPACE) == 6000


def test_without_upkeep_the_writer_seals_segments_itself(opened: Open, tmp_path: Path) -> None:
    index = opened(segment_kb=50)
    before = len(segments(tmp_path))
    points = random_points(np.random.default_rng(2), uuid4(), 1500)
    for start in range(0, 1500, 100):
        index.upsert(SPACE, points[start : start + 100])
    assert len(segments(tmp_path)) > before


def test_upkeep_after_a_restart_takes_up_what_was_left(opened: Open, tmp_path: Path) -> None:
    index = opened()
    index.upsert(SPACE, random_points(np.random.default_rng(3), uuid4(), 3000))
    index.close()
    before = len(segments(tmp_path))
    again = opened(segment_kb=100)
    assert again.optimize(budget_s=30.0) is False
    assert len(segments(tmp_path)) > before


def test_equal_texts_tie_exactly_whichever_segment_holds_them(opened: Open, tmp_path: Path) -> None:
    index = opened(segment_kb=50)
    rng = np.random.default_rng(4)
    dataset, vector = uuid4(), rng.normal(size=DIM)
    weights = {int(i): float(w) for i, w in zip(range(30), rng.uniform(0.1, 2, 30), strict=True)}
    twins = [point(dataset, vector, weights) for _ in range(60)]
    for start in range(0, 60, 15):
        index.upsert(SPACE, twins[start : start + 15])
        index.upsert(SPACE, random_points(rng, dataset, 600, words=200))
        while index.optimize(budget_s=10.0):
            pass
    assert len(segments(tmp_path)) >= 3
    ids, near = sorted(p.id for p in twins), (vector + 0.2).astype(np.float32)
    query = terms(dict.fromkeys(range(30), 1.0))
    for limit in (7, 50):
        assert [h.id for h in index.best(SPACE, dataset, query, limit)] == ids[:limit]
    assert len(set(index.text_scores(SPACE, dataset, query, ids).values())) == 1
    assert len(set(index.dense_scores(SPACE, dataset, near, ids).values())) == 1


def test_a_sealed_index_still_answers_as_brute_force_does_after_a_restart(opened: Open) -> None:
    index = opened(segment_kb=60)
    rng = np.random.default_rng(6)
    dataset = uuid4()
    points = random_points(rng, dataset, 3000)
    index.upsert(SPACE, points)
    while index.optimize(budget_s=10.0):
        pass
    rewritten = random_points(rng, dataset, 300)
    index.upsert(SPACE, rewritten)
    index.delete(SPACE, [p.id for p in points[:900]], up_to_version=1)
    index.close()
    again = opened(segment_kb=60)
    oracle = Oracle.of([*points[900:], *rewritten])
    for _ in range(5):
        query = rng.normal(size=DIM).astype(np.float32)
        words = terms({int(i): 1.0 for i in rng.integers(1, 40, size=3)})
        nearest = again.nearest(SPACE, dataset, query, 25)
        assert_ranked(nearest, oracle.dense(dataset, query), 25)
        assert_ranked(again.best(SPACE, dataset, words, 25), oracle.text(dataset, words), 25)


# -- closing


def test_closing_under_load_ends_every_call_with_an_answer_or_unavailable(opened: Open) -> None:
    index = opened()
    dataset: UUID = uuid4()
    points = random_points(np.random.default_rng(5), dataset, 500)
    index.upsert(SPACE, points)
    query = np.ones(DIM, dtype=np.float32)
    expected = index.nearest(SPACE, dataset, query, 5)

    def ask_until_closed() -> int:
        answers = 0
        while True:
            try:
                assert index.nearest(SPACE, dataset, query, 5) == expected
                index.upsert(SPACE, points[:10])
            except StoreUnavailable:
                return answers
            answers += 1

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask_until_closed) for _ in range(3)]
        time.sleep(0.2)
        index.close()
        assert sum(future.result(timeout=30) for future in asking) > 0
