"""The collections: made with their indexes, recognised, checked once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from qdrant_client import QdrantClient
from qdrant_client.http import models

from kb.adapters.index_checks import check_space
from kb.adapters.index_facts import FIRST_SLOTS, TAGS, number_key
from kb.adapters.qdrant_server.server import STORE, AlreadyThere, NotThere, Server
from kb.adapters.qdrant_server.words import BM25, DENSE
from kb.errors import StoreUnavailable
from kb.ports import Space
from kb.settings import Qdrant

T = TypeVar("T")

LAYOUT = 1
"""Version of what is stored and how; another one is rebuilt, never guessed at."""

_LAYOUT_KEY = "kb_layout"
_GRAPH_LINKS = 16  # per vector, within its dataset

_KEYWORD = models.KeywordIndexType.KEYWORD
_Index = models.KeywordIndexParams | models.IntegerIndexParams | models.FloatIndexParams
_NUMBER = models.FloatIndexParams(type=models.FloatIndexType.FLOAT, enable_hnsw=False)
_PAYLOAD_INDEXES: dict[str, _Index] = {
    "dataset_id": models.KeywordIndexParams(type=_KEYWORD, is_tenant=True),
    # No graph of their own: a document's few points are compared one by one.
    "document_id": models.KeywordIndexParams(type=_KEYWORD, enable_hnsw=False),
    "version": models.IntegerIndexParams(
        type=models.IntegerIndexType.INTEGER, lookup=False, range=True, enable_hnsw=False
    ),
    # Without graph links: what a filter leaves of a dataset is compared one by one.
    TAGS: models.KeywordIndexParams(type=_KEYWORD, enable_hnsw=False),
    **{number_key(slot): _NUMBER for slot in range(FIRST_SLOTS)},
}


class Spaces:
    """Space -> collection; every method is thread-safe."""

    def __init__(self, server: Server, options: Qdrant) -> None:
        self._server = server
        self._options = options
        self._checked: dict[str, Space] = {}
        self._numbers: dict[str, set[int]] = {}
        """Per collection the slots that are known to have an index."""

    def ensure(self, space: Space) -> None:
        """Make the collection and its payload indexes where they are missing; repeats safely.

        Several processes may do so at once, and one that was killed half-way is completed.

        Raises:
            ValueError: it exists with another `dim`, or the name or `dim` cannot be used.
            StoreUnavailable: the server does not answer, or keeps another layout there.
        """
        self._server.refuse_when_closed("ensure_space")
        check_space(space)
        name = self.collection(space)
        try:
            info = self._info(name)
        except NotThere:
            self._create(name, space)
            info = self._info(name)
        self._recognise(name, info, space)
        for field, params in _PAYLOAD_INDEXES.items():
            if field not in info.payload_schema:
                self._index(name, field, params)
        self._checked[space.name] = space

    def ask(self, space: Space, call: Callable[[str], T]) -> T:
        """What `call` returns for the collection's name; the space is checked at first.

        Raises:
            ValueError: there is no such space, or it has another `dim`.
        """
        self._server.refuse_when_closed("open")
        name = self.collection(space)
        try:
            if self._checked.get(space.name) != space:
                check_space(space)
                self._recognise(name, self._info(name), space)
                self._checked[space.name] = space
            return call(name)
        except NotThere as exc:
            self._checked.pop(space.name, None)
            self._numbers.pop(name, None)
            raise ValueError(
                f"no space {space.name!r} in the index (collection {name!r}); "
                "call ensure_space first"
            ) from exc

    def index_slots(self, name: str, slots: Collection[int]) -> None:
        """Make the indexes of these numbers where they are missing; repeats safely."""
        known = self._numbers.setdefault(name, set(range(FIRST_SLOTS)))
        if known.issuperset(slots):
            return
        there = self._info(name).payload_schema
        for slot in sorted(set(slots) - known):
            if number_key(slot) not in there:
                self._index(name, number_key(slot), _NUMBER)
            known.add(slot)

    def collection(self, space: Space) -> str:
        """The name of the space's collection."""
        return self._options.collection_prefix + space.name

    def _info(self, name: str) -> models.CollectionInfo:
        def send(client: QdrantClient) -> models.CollectionInfo:
            return client.get_collection(name)

        return self._server.call("open", send)

    def _create(self, name: str, space: Space) -> None:
        options = self._options
        dense: dict[str, models.VectorParams] = {}
        if space.dim is not None:
            cosine = models.Distance.COSINE
            dense[DENSE] = models.VectorParams(size=space.dim, distance=cosine)

        def send(client: QdrantClient) -> bool:
            return client.create_collection(
                name,
                vectors_config=dense,
                sparse_vectors_config={
                    BM25: models.SparseVectorParams(modifier=models.Modifier.IDF)
                },
                shard_number=options.shard_number,
                replication_factor=options.replication_factor,
                write_consistency_factor=options.write_consistency_factor,
                # A graph per dataset, none over all of them: every query is about one dataset.
                hnsw_config=models.HnswConfigDiff(
                    m=0, payload_m=_GRAPH_LINKS, full_scan_threshold=options.full_scan_kb
                ),
                metadata={_LAYOUT_KEY: LAYOUT},
            )

        try:
            self._server.call("ensure_space", send)
        except AlreadyThere:
            return  # another process was faster, or an answer of ours was lost

    def _index(self, name: str, field: str, params: _Index) -> None:
        ordering = models.WriteOrdering(self._options.write_ordering)

        def send(client: QdrantClient) -> models.UpdateResult:
            return client.create_payload_index(
                name, field, field_schema=params, wait=True, ordering=ordering
            )

        self._server.write("ensure_space", send)

    def _recognise(self, name: str, info: models.CollectionInfo, space: Space) -> None:
        """Raise for a collection that is not ours, of another layout or of another `dim`."""
        layout = (info.config.metadata or {}).get(_LAYOUT_KEY)
        if layout is None:
            raise StoreUnavailable(
                STORE,
                "open",
                f"collection {name!r} was not made by this program; "
                "set another KB_QDRANT__COLLECTION_PREFIX",
            )
        if int(layout) != LAYOUT:
            reason = f"collection {name!r} has layout {layout}, this version reads {LAYOUT}"
            raise StoreUnavailable(STORE, "open", f"{reason}; rebuild the index")
        vectors = info.config.params.vectors
        dense = vectors.get(DENSE) if isinstance(vectors, dict) else None
        dim = dense.size if dense is not None else None
        if dim != space.dim:
            raise ValueError(
                f"space {space.name!r} holds vectors of dim {dim}, not {space.dim}; "
                "another model needs a space of its own"
            )
