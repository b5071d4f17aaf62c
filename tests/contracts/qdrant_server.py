"""Where the contract tests find a Qdrant server: a double, or the one at KB_TEST_QDRANT_URL.

`KB_TEST_QDRANT_URL=http://HOST:6333` runs the same tests against that server, over REST and over
gRPC (`KB_TEST_QDRANT_GRPC_PORT`, 6334), with `KB_TEST_QDRANT_API_KEY`. Collections get a prefix
of this run and are removed at its end.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import uuid
from pathlib import Path

from qdrant_client import QdrantClient

from kb.adapters.qdrant_server import QdrantServerIndex
from kb.settings import Qdrant
from tests.contracts.qdrant_double import Double

# The child processes of a test belong to the same run.
_RUN = os.environ.setdefault("KB_TEST_QDRANT_RUN", f"{os.getpid()}-{uuid.uuid4().hex[:8]}")
_prefixes: set[str] = set()


def options_for(double: Double, *, grpc: bool = False, **options: object) -> Qdrant:
    """Settings that lead to a double; failing calls are repeated soon."""
    chosen: dict[str, object] = {
        "url": double.url,
        "prefer_grpc": grpc,
        "grpc_port": double.grpc_port,
        "retry_base_s": 0.01,
        **options,
    }
    return Qdrant.model_validate(chosen)


def open_server_index(directory: Path, *, grpc: bool) -> QdrantServerIndex:
    """An index that belongs to the directory: opened again, it holds what was written."""
    url = os.environ.get("KB_TEST_QDRANT_URL")
    if url is None:
        return _OnDouble(directory, grpc=grpc)
    key = os.environ.get("KB_TEST_QDRANT_API_KEY")
    prefix = f"kbtest-{_RUN}-{hashlib.sha256(str(directory).encode()).hexdigest()[:8]}-"
    if not _prefixes:
        atexit.register(_clean_up, url, key)
    _prefixes.add(prefix)
    return QdrantServerIndex(
        Qdrant.model_validate(
            {
                "url": url,
                "api_key": key,
                "prefer_grpc": grpc,
                "grpc_port": os.environ.get("KB_TEST_QDRANT_GRPC_PORT", "6334"),
                "collection_prefix": prefix,
            }
        )
    )


class _OnDouble(QdrantServerIndex):
    """An index with a server of its own in this process, which closing stops.

    So the kill of a writer kills its server too: what was acknowledged has to be on disk.
    """

    def __init__(self, directory: Path, *, grpc: bool) -> None:
        self._double = Double(directory, grpc_port=0 if grpc else None)
        super().__init__(options_for(self._double, grpc=grpc))
        self._stopped = False

    def close(self) -> None:
        super().close()
        if not self._stopped:
            self._stopped = True
            self._double.close()


def _clean_up(url: str, key: str | None) -> None:
    client = QdrantClient(url=url, api_key=key, check_compatibility=False)
    for collection in client.get_collections().collections:
        if collection.name.startswith(tuple(_prefixes)):
            client.delete_collection(collection.name)
    client.close()
