"""SegmentIndex on a Qdrant server or cluster, through `qdrant-client` (extra `service`).

One collection per embedding space, `<prefix><space name>`: `dense` (cosine), `bm25` (sparse, IDF
by the server with the dataset as its corpus), payload indexes on `dataset_id` (tenant),
`document_id`, `version`, `meta.tags` and `meta.n<slot>`. Its metadata names the layout.
"""

from kb.errors import ProviderNotInitialized

try:
    import qdrant_client  # noqa: F401
except ImportError as exc:
    raise ProviderNotInitialized(
        "KB_QDRANT__URL is set, but qdrant-client is not installed; "
        "run pip install 'kb-engine[service]'"
    ) from exc

from kb.adapters.qdrant_server.index import QdrantServerIndex
from kb.adapters.qdrant_server.server import MINIMUM_VERSION
from kb.adapters.qdrant_server.spaces import LAYOUT

__all__ = ["LAYOUT", "MINIMUM_VERSION", "QdrantServerIndex"]
