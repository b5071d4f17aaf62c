"""The shards of a directory: made, opened once, kept open by one process, closed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from filelock import FileLock, Timeout

from kb.adapters.index_checks import check_space
from kb.adapters.index_facts import FIRST_SLOTS, TAGS, number_key
from kb.adapters.qdrant_edge.words import BM25, DENSE, STORE, answers
from kb.errors import StoreUnavailable
from kb.ports import Space

LAYOUT = 1
"""Version of what is stored and how; another one is rebuilt, never guessed at."""

_INDEXES: dict[str, Any] = {
    "dataset_id": edge.KeywordIndexParams(is_tenant=True),
    "document_id": edge.KeywordIndexParams(),
    TAGS: edge.KeywordIndexParams(),
    **{number_key(slot): edge.FloatIndexParams() for slot in range(FIRST_SLOTS)},
}

UPKEEP_POINTS = 500
"""Changes after which upkeep asks the engine; it finds nothing to do below `segment_kb`."""


@dataclass(slots=True)
class Shard:
    """An open space. Queries go straight to the engine; writers take turns."""

    space: Space
    engine: edge.EdgeShard
    writing: threading.RLock = field(default_factory=threading.RLock)
    unkept_points: int = 0
    unkept_bytes: int = 0
    indexed: set[str] = field(default_factory=set)
    """Payload fields with an index."""

    def index_fields(self, fields: dict[str, Any]) -> None:
        """Make the indexes that are missing; a second per 100,000 points that are there."""
        if fields.keys() <= self.indexed:
            return
        with self.writing:
            for name, params in fields.items():
                if name not in self.indexed:
                    with answers("index a field"):
                        self.engine.update(edge.UpdateOperation.create_field_index(name, params))
                    self.indexed.add(name)

    def index_slots(self, slots: Iterable[int]) -> None:
        """Make the indexes of these numbers."""
        self.index_fields({number_key(slot): edge.FloatIndexParams() for slot in slots})


@dataclass(frozen=True, slots=True)
class Room:
    """How much of the disk stays free; see QdrantEdgeIndex."""

    directory: Path
    min_free_bytes: int
    min_free_share: float

    def refuse_when_full(self, operation: str, *, at_least: int | None = None) -> None:
        """Raise StoreUnavailable below the watermark, or below `at_least` bytes."""
        with answers(operation):
            disk = shutil.disk_usage(self.directory)
        needed = at_least
        if needed is None:
            needed = max(self.min_free_bytes, int(self.min_free_share * disk.total))
        if disk.free < needed:
            raise StoreUnavailable(
                STORE,
                operation,
                f"disk almost full: {disk.free // 2**20} MB free at {self.directory}, "
                f"{needed // 2**20} MB needed; free some space",
            )


class Shards:
    """All shards of one directory, for one process at a time. Every method is thread-safe."""

    def __init__(
        self, directory: Path, room: Room, *, max_search_threads: int, segment_kb: int
    ) -> None:
        with answers("open"):
            directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._room = room
        self._max_search_threads = max_search_threads
        self._segment_kb = segment_kb
        self._shards: dict[str, Shard] = {}
        self._opening = threading.Lock()
        self._held = FileLock(directory / "lock", thread_local=False)
        self._closed = False

    def ensure(self, space: Space) -> None:
        """Make the shard if it is not there; repeats safely.

        Raises:
            ValueError: it exists with another `dim`, or the name or `dim` cannot be used.
            StoreUnavailable: another process has the directory, or the disk is almost full.
        """
        check_space(space)
        with self._opening:
            self._hold()
            if not (self._directory / space.name).exists():
                self._room.refuse_when_full("ensure_space")
                self._create(space)
        self.open(space)

    def open(self, space: Space) -> Shard:
        """The space's shard; loaded at the first call.

        Raises:
            ValueError: there is no such space, or it has another `dim`.
            StoreUnavailable: closed, in use by another process, or not readable.
        """
        if self._closed:
            raise StoreUnavailable(STORE, "open", "the index is closed")
        shard = self._shards.get(space.name)
        if shard is None:
            with self._opening:
                self._hold()
                shard = self._shards.get(space.name) or self._load(space)
                self._shards[space.name] = shard
        if shard.space != space:
            raise ValueError(
                f"space {space.name!r} holds vectors of dim {shard.space.dim}, not {space.dim}; "
                "another model needs a space of its own"
            )
        return shard

    def opened(self) -> list[Shard]:
        """Those that were opened so far."""
        return list(self._shards.values())

    def close(self) -> None:
        """Flush and let go of the store; repeats safely. Everything after it is refused."""
        with self._opening:
            self._closed = True
            try:
                while self._shards:
                    _, shard = self._shards.popitem()
                    with shard.writing, answers("close"):
                        shard.engine.flush()
                        shard.engine.close()
            finally:
                self._held.release()

    def _create(self, space: Space) -> None:
        """Build aside and rename: a shard is there whole or not at all."""
        building = self._directory / f"{space.name}.new"
        with answers("ensure_space"):
            shutil.rmtree(building, ignore_errors=True)
            (building / "shard").mkdir(parents=True)
            engine = edge.EdgeShard.create(str(building / "shard"), self._config(space))
            for name, index in _INDEXES.items():
                # On the empty shard: on a full one it takes seconds.
                engine.update(edge.UpdateOperation.create_field_index(name, index))
            engine.flush()
            engine.close()
            described = {"layout": LAYOUT, "name": space.name, "dim": space.dim}
            (building / "space.json").write_text(json.dumps(described))
            _sync(building / "space.json")
            _sync(building)
            building.rename(self._directory / space.name)
            _sync(self._directory)

    def _load(self, space: Space) -> Shard:
        check_space(space)
        home = self._directory / space.name
        if not home.exists():
            raise ValueError(f"no space {space.name!r} in the index; call ensure_space first")
        found = _read_space(home / "space.json")
        with answers("open"):
            # Left by a kill during upkeep; the engine would keep it for ever.
            shutil.rmtree(home / "shard" / "temp_segments", ignore_errors=True)
            engine = edge.EdgeShard.load(str(home / "shard"), self._config(found))
        # How much of it is unkept is not known: the first upkeep looks.
        shard = Shard(found, engine, unkept_points=UPKEEP_POINTS)
        shard.indexed.update(engine.info().payload_schema)
        shard.index_fields(_INDEXES)  # of a shard that was made before there was metadata
        return shard

    def _hold(self) -> None:
        """Be the only process on the directory. The engine's own lock is taken too late for us:
        clearing up before the load would disturb the other process.
        """
        if self._closed:
            raise StoreUnavailable(STORE, "open", "the index is closed")
        if self._held.is_locked:
            return
        try:
            self._held.acquire(timeout=0)
        except Timeout as exc:
            reason = f"another process uses {self._directory}; stop it, or ask it over its API"
            raise StoreUnavailable(STORE, "open", reason) from exc
        except OSError as exc:
            raise StoreUnavailable(STORE, "open", str(exc)) from exc

    def _config(self, space: Space) -> edge.EdgeConfig:
        dense = None
        if space.dim is not None:
            dense = {DENSE: edge.EdgeVectorParams(size=space.dim, distance=edge.Distance.Cosine)}
        return edge.EdgeConfig(
            vectors=dense,
            sparse_vectors={BM25: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
            # No graph: an exact scan of 50k vectors takes 3 ms, and filters cost it no recall.
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10),
            optimizers=edge.EdgeOptimizersConfig(
                default_segment_number=100,
                max_segment_size=self._segment_kb,
                indexing_threshold=self._segment_kb,
            ),
            max_search_threads=self._max_search_threads,
            wal_enabled=True,
        )


def _read_space(path: Path) -> Space:
    try:
        described = json.loads(path.read_text())
        layout, space = described["layout"], Space(described["name"], described["dim"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        reason = f"{path} cannot be read ({exc}); remove its folder and rebuild the index"
        raise StoreUnavailable(STORE, "open", reason) from exc
    if layout != LAYOUT:
        reason = f"{path} has layout {layout}, this version reads {LAYOUT}; rebuild the index"
        raise StoreUnavailable(STORE, "open", reason)
    return space


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
