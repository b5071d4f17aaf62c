"""Client: a kb server in Python, from file to answer in five lines.

```python
from kb.client import Client
with Client("http://127.0.0.1:8000", api_key="dataset-...") as kb:
    kb.ingest("handbook", "warranty.pdf")
    for passage in kb.search("handbook", "How long is the warranty?"):
        print(passage.score, passage.document, passage.text)
```
"""

from __future__ import annotations

from kb.client.connection import Connection
from kb.client.errors import ApiError, ClientError, IngestionFailed, Missing, Unreachable
from kb.client.external import External
from kb.client.metadata import Metadata
from kb.client.models import Models
from kb.client.moving import Moving
from kb.client.passages import Answer, Passage
from kb.client.search import Search
from kb.client.segments import Segments
from kb.client.steering import Steering
from kb.client.tags import Tags
from kb.client.upkeep import Upkeep
from kb.client.uploads import Uploads
from kb.client.webhooks import Webhooks
from kb.client.wire import FINISHED, METHODS, Json, Method


class Client(
    Moving,
    Tags,
    Steering,
    Uploads,
    Segments,
    Search,
    External,
    Metadata,
    Models,
    Webhooks,
    Upkeep,
    Connection,
):
    """A kb server over HTTP. Datasets and documents are given by name or id.

    Every method raises ClientError: Unreachable, ApiError or Missing; the constructor does when
    `url` is none.

    Args:
        url: such as http://127.0.0.1:8000.
        api_key: what `kb serve` printed at its first start, or its KB_API_KEY.
        timeout_s: for one answer.
        transport: another way to the server than the network.
        retries: how often a call is made again that the server could not do now (503), or, when it
            only reads, whose connection broke.
    """


__all__ = [
    "FINISHED",
    "METHODS",
    "Answer",
    "ApiError",
    "Client",
    "ClientError",
    "IngestionFailed",
    "Json",
    "Method",
    "Missing",
    "Passage",
    "Unreachable",
]
