"""SegmentIndex in this process: Qdrant Edge, one shard per embedding space.

On disk: `<directory>/<space name>/space.json` (name, dim, layout version) and, beside it, the
engine's `shard/`. `<directory>/lock` is held while any shard is open: one process at a time.

Every engine call holds the interpreter lock, so everything here goes in small pieces: 256 points
a write (5-15 ms), upkeep by about 10 MB of new points (0.3 s).
"""

from kb.adapters.qdrant_edge.index import QdrantEdgeIndex
from kb.adapters.qdrant_edge.shards import LAYOUT

__all__ = ["LAYOUT", "QdrantEdgeIndex"]
